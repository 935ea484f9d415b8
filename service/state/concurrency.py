"""Bounds on work that is dear: how many run at once, how many wait, and how soon the rest are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from service.core.errors import Problem, Throttled

REFUSAL_DELAY: Final = 0.25  # seconds
MAX_DELAYED: Final = 1_000  # callers who are held that long at once; beyond them, holding would cost more than it saves
RETRY_AFTER: Final = 2  # seconds


class RefusalDelay:
    """Holds callers for a moment before they are refused.

    Whoever sends guess after guess would otherwise send the next one at once, and the event loop would be busy with
    refusals. An honest caller may find room in the meantime.
    """

    def __init__(self) -> None:
        self._held = 0

    async def wait(self) -> None:
        """Return after ``REFUSAL_DELAY`` seconds, or at once where ``MAX_DELAYED`` callers are held already."""
        if self._held >= MAX_DELAYED:
            return
        self._held += 1
        try:
            await asyncio.sleep(REFUSAL_DELAY)
        finally:
            self._held -= 1


class ConcurrencyLimit:
    """Lets ``running`` callers work at once and ``waiting`` more wait for their turn; the others are refused.

    ``problem`` and ``facts`` are what the refusal says; how many callers are inside is added as ``waiting``.
    """

    def __init__(self, running: int, waiting: int, delay: RefusalDelay, problem: Problem, **facts: str) -> None:
        self._slots = asyncio.Semaphore(running)
        self._capacity = running + waiting
        self._delay = delay
        self._problem = problem
        self._facts = facts
        self.inside = 0  # callers who work or wait

    @property
    def full(self) -> bool:
        """Tell whether the next caller would be refused."""
        return self.inside >= self._capacity

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Enter when it is the caller's turn, or raise Throttled where there is still no room after a moment."""
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
