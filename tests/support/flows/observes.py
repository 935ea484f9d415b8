"""What observers do, in the environment of one client: `python observes.py COMMAND …`."""

import asyncio
import inspect
import sys
from uuid import UUID

from prefect import task
from prefect.client.orchestration import get_client
from prefect.flow_runs import wait_for_flow_run


@task(persist_result=True)
def double(number: int) -> int:
    return 2 * number


async def waits(deployment: str) -> None:
    """Start a run of a deployment, and print the state that it ends in."""
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(UUID(deployment))
        ended = wait_for_flow_run(run.id, timeout=60)
        if inspect.isawaitable(ended):
            ended = await ended
        print("ended as", ended.state.type.value)  # noqa: T201


match sys.argv[1:]:
    case ["serve"]:
        double.serve()
    case ["delay"]:
        print("result", double.delay(21).result(timeout=60))  # noqa: T201
    case ["wait", deployment]:
        asyncio.run(waits(deployment))
    case _:
        sys.exit("usage: observes.py serve | delay | wait DEPLOYMENT")
