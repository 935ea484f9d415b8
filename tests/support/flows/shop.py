"""What a deployer deploys, a runner runs and a worker carries out in the tests of roles."""

import time

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.system import Secret
from prefect.concurrency.sync import concurrency
from prefect.variables import Variable


@task
def double(number: int) -> int:
    return 2 * number


@flow
def child() -> int:
    return double(2)


@flow
def quick(marker: str = "none") -> int:
    """Use what a flow may use: tasks, a child, an artifact, a variable, a secret, a slot, and the log."""
    answer = double(1) + child()
    create_markdown_artifact(marker, key="shop")
    Variable.set("shop_marker", marker, overwrite=True)
    assert Secret.load("shop-secret").get() == "told-in-plain-text"
    with concurrency("shop-slots", occupy=1):
        return answer


@flow
def slow() -> None:
    """Run until it is cancelled."""
    time.sleep(120)
