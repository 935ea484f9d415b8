"""The flow that the end-to-end tests deploy: two tasks, an artifact, a log line from each."""

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger


@task
def double(number: int) -> int:
    get_run_logger().info("doubling %s", number)
    return 2 * number


@flow(name="proof")
def proof(marker: str = "none") -> int:
    get_run_logger().info("proof of %s", marker)
    answer = double(double(1))
    create_markdown_artifact(f"{marker}: {answer}", key="proof")
    return answer
