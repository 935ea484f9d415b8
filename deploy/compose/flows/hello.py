"""A flow with two tasks. `python hello.py` deploys it to the pool of the worker, and waits for a run of it."""

from pathlib import Path

from prefect import flow, task
from prefect.deployments import run_deployment


@task
def count(words: str) -> int:
    """Count words."""
    return len(words.split())


@flow(name="hello", log_prints=True)
def hello(words: str = "every task run arrives") -> int:
    """Count some words, and say how many they are."""
    number = count(words) + count("through the gate")
    print(f"counted {number} words")
    return number


if __name__ == "__main__":
    flow.from_source(source=str(Path(__file__).parent), entrypoint="hello.py:hello").deploy(
        name="compose", work_pool_name="default", build=False, push=False, print_next_steps=False, ignore_warnings=True
    )
    run = run_deployment("hello/compose", timeout=120, as_subflow=False)
    print(f"flow run {run.name}: {run.state_name}")
