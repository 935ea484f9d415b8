"""The flow that the end-to-end tests deploy: tasks one after the other, each with a log line, then an artifact."""

import time

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger


@task
def double(number: int, pause: float) -> int:
    get_run_logger().info("doubling %s", number)
    time.sleep(pause)
    return 2 * number


@flow(name="proof")
def proof(marker: str = "none", tasks: int = 20, pause: float = 0) -> int:
    get_run_logger().info("proof of %s", marker)
    answer = sum(double(number, pause) for number in range(1, tasks + 1))
    create_markdown_artifact(f"{marker}: {answer}", key="proof")
    return answer
