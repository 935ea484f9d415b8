"""The WebSockets whose first message has not come yet."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

FIRST_MESSAGE_SECONDS: Final = 10.0
MAX_UNPROVED: Final = 1_024
MAX_UNPROVED_OF_SENDER: Final = 128


class Unproved:
    """Bounds how many sockets may wait for their first message, and for how long.

    If there are too many, the one that has waited longest gives way: of the same sender if that one has too many, else
    of all. Prefect's clients send their first message at once, so whoever gives way has nothing to say.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Timeout, str] = {}  # and the sender; oldest first
        self._of_sender: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._deadlines)

    @asynccontextmanager
    async def waiting(self, sender: str) -> AsyncIterator[None]:
        """Wait inside for a first message. Raises TimeoutError when the time is up, or another socket needs the room.

        ``sender`` is a network, as ``throttle.sender_of`` returns it.
        """
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS) as deadline:
            self._make_room(sender)
            self._deadlines[deadline] = sender
            self._of_sender[sender] += 1
            try:
                yield
            finally:
                self._remove(deadline)

    def _make_room(self, sender: str) -> None:
        if self._of_sender[sender] >= MAX_UNPROVED_OF_SENDER:
            self._end(next(one for one, other in self._deadlines.items() if other == sender))
        elif len(self._deadlines) >= MAX_UNPROVED:
            self._end(next(iter(self._deadlines)))

    def _end(self, deadline: asyncio.Timeout) -> None:
        self._remove(deadline)
        if not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time())

    def _remove(self, deadline: asyncio.Timeout) -> None:
        sender = self._deadlines.pop(deadline, None)
        if sender is not None:
            self._of_sender[sender] -= 1
            if not self._of_sender[sender]:
                del self._of_sender[sender]
