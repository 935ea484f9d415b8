"""Events of clients without a credential that wait for the request that names their run.

That request may still be on its way. After a restart of this service it may be the one that ends the run: a flow run
can work for long without naming itself in a request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Final, NamedTuple

from service.core.prefect.client_events import ClientEvent
from service.gate.passage import Send

HOLD_SECONDS: Final = 3_600.0
LAST_SECONDS: Final = 1.5  # for what is still held when its client has left
LOOK_SECONDS: Final = 0.1  # between two looks at what is held
MAX_EVENTS: Final = 1_000  # of one socket
MAX_BYTES: Final = 4_000_000  # of one socket
MAX_EVENTS_OF_ALL: Final = 20_000
MAX_BYTES_OF_ALL: Final = 64_000_000

Passes = Callable[[ClientEvent], bool]
Judge = Callable[[Iterable[ClientEvent]], Awaitable[Passes]]


class _Held(NamedTuple):
    event: ClientEvent
    message: str | bytes
    until: float  # monotonic


class HeldByAll:
    """Counts what all sockets hold together."""

    def __init__(self) -> None:
        self.events = 0
        self.bytes = 0


class HeldEvents:
    """What one socket holds, the oldest first. The oldest are dropped if there are too many.

    ``judge`` is given events, and returns what tells which of them may pass now.
    """

    def __init__(self, judge: Judge, by_all: HeldByAll, dropped: Callable[[str], None]) -> None:
        self._judge = judge
        self._by_all = by_all
        self._dropped = dropped
        self._held: dict[int, _Held] = {}  # by number, the oldest first
        self._numbers = count()
        self._bytes = 0
        self._added = asyncio.Event()

    def add(self, event: ClientEvent, message: str | bytes) -> None:
        """Hold an event."""
        self._held[next(self._numbers)] = _Held(event, message, time.monotonic() + HOLD_SECONDS)
        self._count(1, len(message))
        while self._held and self._too_many():
            self._remove(next(iter(self._held)), dropped=True)
        self._added.set()

    async def release(self, send: Send) -> None:
        """Send events as soon as they may pass, until cancelled."""
        while True:
            await self._added.wait()
            await asyncio.sleep(LOOK_SECONDS)
            await self._look(send)
            if not self._held:
                self._added.clear()

    async def finish(self, send: Send) -> None:
        """Give what is held a last moment, and drop the rest."""
        until = time.monotonic() + LAST_SECONDS
        while self._held and time.monotonic() < until:
            await self._look(send)
            await asyncio.sleep(LOOK_SECONDS)
        self.drop_all()

    def drop_all(self) -> None:
        """Drop everything."""
        for number in list(self._held):
            self._remove(number, dropped=True)

    async def _look(self, send: Send) -> None:
        """Send the events that may pass now, and drop those that were held for too long."""
        held = list(self._held.items())
        passes = await self._judge(one.event for _, one in held)
        for number, one in held:
            if passes(one.event):
                if self._remove(number):
                    await send(one.message)
            elif one.until <= time.monotonic():
                self._remove(number, dropped=True)

    def _too_many(self) -> bool:
        return (
            len(self._held) > MAX_EVENTS
            or self._bytes > MAX_BYTES
            or self._by_all.events > MAX_EVENTS_OF_ALL
            or self._by_all.bytes > MAX_BYTES_OF_ALL
        )

    def _remove(self, number: int, *, dropped: bool = False) -> bool:
        """Remove an event; return False if it has been removed meanwhile."""
        one = self._held.pop(number, None)
        if one is None:
            return False
        self._count(-1, -len(one.message))
        if dropped:
            self._dropped(one.event.name)
        return True

    def _count(self, events: int, size: int) -> None:
        self._bytes += size
        self._by_all.events += events
        self._by_all.bytes += size
