"""Work that is done at once where nothing has to be waited for, and otherwise in time: written once for both.

Such work is a generator. It yields a function for each thing that it has to wait for, and returns its result. Up to the
first ``yield`` it has changed nothing that counts, so it can be given up there and begun again.
"""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")
Steps = Generator[Callable[[], Awaitable[Any]], Any, Result]


def at_once(steps: Steps[Result]) -> Result | None:
    """Return the result, or raise the exception, of work that waits for nothing. Return None if it has to wait."""
    try:
        next(steps)
    except StopIteration as done:
        result: Result = done.value
        return result
    steps.close()
    return None


async def in_time(steps: Steps[Result]) -> Result:
    """Return the result of work, or raise its exception, after all that it waits for."""
    try:
        wait = next(steps)
        while True:
            try:
                found = await wait()
            except BaseException as problem:  # noqa: BLE001 - it is the work that knows what to do about it
                wait = steps.throw(problem)
            else:
                wait = steps.send(found)
    except StopIteration as done:
        result: Result = done.value
        return result
