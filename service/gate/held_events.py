"""Events of clients without a credential that wait for the request that names their run.

That request may still be on its way. After a restart of this service it may be the one that ends the run: a flow run
can work for long without naming itself in a request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final, NamedTuple

from service.core.prefect.client_events import ClientEvent

HOLD_SECONDS: Final = 3_600.0
LAST_SECONDS: Final = 1.5  # for what is still held when its client has left
LOOK_SECONDS: Final = 0.1  # between two looks at what is held
MAX_EVENTS: Final = 1_000  # of one socket
MAX_BYTES: Final = 4_000_000  # of one socket
MAX_BYTES_OF_ALL: Final = 64_000_000

Passes = Callable[[ClientEvent], Awaitable[bool]]
Send = Callable[[str | bytes], Awaitable[None]]


class _Held(NamedTuple):
    event: ClientEvent
    message: str | bytes
    until: float  # monotonic


class HeldBytes:
    """Counts what all sockets hold together."""

    def __init__(self) -> None:
        self.count = 0


class HeldEvents:
    """What one socket holds, the oldest first. The oldest are dropped if there are too many."""

    def __init__(self, of_all: HeldBytes, dropped: Callable[[str], None]) -> None:
        self._of_all = of_all
        self._dropped = dropped
        self._held: dict[int, _Held] = {}  # by number, the oldest first
        self._numbers = count()
        self._bytes = 0
        self._added = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._held)

    def add(self, event: ClientEvent, message: str | bytes) -> None:
        """Hold an event."""
        self._held[next(self._numbers)] = _Held(event, message, time.monotonic() + HOLD_SECONDS)
        self._count(len(message))
        while self._held and (
            len(self._held) > MAX_EVENTS or self._bytes > MAX_BYTES or self._of_all.count > MAX_BYTES_OF_ALL
        ):
            self._drop_oldest()
        self._added.set()

    async def release(self, passes: Passes, send: Send) -> None:
        """Send events as soon as they may pass, until cancelled."""
        while True:
            await self._added.wait()
            await asyncio.sleep(LOOK_SECONDS)
            await self.look(passes, send)
            if not self._held:
                self._added.clear()

    async def finish(self, passes: Passes, send: Send) -> None:
        """Give what is held a last moment, and drop the rest."""
        until = time.monotonic() + LAST_SECONDS
        while self._held and time.monotonic() < until:
            await self.look(passes, send)
            await asyncio.sleep(LOOK_SECONDS)
        self.drop_all()

    async def look(self, passes: Passes, send: Send) -> None:
        """Send the events that may pass now, and drop those that were held for too long."""
        for number, one in list(self._held.items()):
            if one.until <= time.monotonic():
                self._remove(number, dropped=True)
            elif await passes(one.event) and self._remove(number):
                await send(one.message)

    def drop_all(self) -> None:
        """Drop everything."""
        while self._held:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._remove(next(iter(self._held)), dropped=True)

    def _remove(self, number: int, *, dropped: bool = False) -> bool:
        """Remove an event; return False if it has been removed meanwhile."""
        one = self._held.pop(number, None)
        if one is None:
            return False
        self._count(-len(one.message))
        if dropped:
            self._dropped(one.event.name)
        return True

    def _count(self, size: int) -> None:
        self._bytes += size
        self._of_all.count += size
