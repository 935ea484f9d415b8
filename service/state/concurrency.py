"""Limits on expensive work: how many callers run at once, how many wait, and what happens to the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from service.core.errors import Throttled
from service.core.problems import Problem

REFUSAL_DELAY: Final = 0.25  # seconds
MAX_DELAYED: Final = 1_000  # callers that are delayed at the same time; more are refused at once
RETRY_AFTER: Final = 2  # seconds


class RefusalDelay:
    """Delays callers before they are refused.

    This slows down a client that sends one guess after another, and keeps the event loop free. For an honest client, a
    slot may become free in the meantime.
    """

    def __init__(self) -> None:
        self._held = 0

    async def wait(self) -> None:
        """Return after ``REFUSAL_DELAY`` seconds, or immediately if ``MAX_DELAYED`` callers are being delayed."""
        if self._held >= MAX_DELAYED:
            return
        self._held += 1
        try:
            await asyncio.sleep(REFUSAL_DELAY)
        finally:
            self._held -= 1


class ConcurrencyLimit:
    """Lets ``running`` callers work at the same time and ``waiting`` more queue for a slot. Others are refused.

    A refusal has ``problem`` and ``facts`` as its cause, and the number of callers inside as the fact ``waiting``.
    """

    def __init__(self, running: int, waiting: int, delay: RefusalDelay, problem: Problem, **facts: str) -> None:
        self._slots = asyncio.Semaphore(running)
        self._capacity = running + waiting
        self._delay = delay
        self._problem = problem
        self._facts = facts
        self.inside = 0  # callers that work or wait

    @property
    def full(self) -> bool:
        """Tell whether the next caller is refused, unless a slot becomes free in time."""
        return self.inside >= self._capacity

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it; raise Throttled if the queue is full and stays full for ``REFUSAL_DELAY``."""
        if self.full:
            await self._delay.wait()
        if self.full:
            raise Throttled(self._problem, retry_after=RETRY_AFTER, waiting=self.inside, **self._facts)
        self.inside += 1
        try:
            async with self._slots:
                yield
        finally:
            self.inside -= 1
