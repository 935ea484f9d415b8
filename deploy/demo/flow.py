"""A flow with two tasks and an artifact: `python flow.py` runs it, `python flow.py --deploy` queues a run."""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger


@task
def count(words: str) -> int:
    """Count words."""
    return len(words.split())


@flow(name="hello")
def hello(words: str = "every task run arrives") -> int:
    """Count some words, and publish the number."""
    number = count(words) + count("through the gate")
    get_run_logger().info("counted %s words", number)
    create_markdown_artifact(f"{number} words", key="hello")
    return number


def deploy() -> None:
    """Deploy to the work pool `demo`, and queue a run for its worker."""
    source = flow.from_source(source=str(Path(__file__).parent), entrypoint=f"{Path(__file__).name}:hello")
    source.deploy(
        name="demo", work_pool_name="demo", build=False, push=False, print_next_steps=False, ignore_warnings=True
    )
    run = run_deployment("hello/demo", timeout=0, as_subflow=False)
    print(f"queued flow run {run.name}")


if __name__ == "__main__":
    deploy() if "--deploy" in sys.argv else hello()
