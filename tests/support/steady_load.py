"""Sends requests at a steady rate over kept-alive connections, and counts every answer that is not 200."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Self

CALLERS = 64  # most are idle; this many requests may be unanswered before the rate falls
ANSWER_TIMEOUT = 30.0  # seconds for one answer


@dataclass(repr=False)
class Answers:
    """The results: how long each answer took, and each failure with the time of its request."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def rate(self) -> float:
        """Return the answers per second, including failures."""
        return (len(self.seconds) + len(self.failures)) / (self.ended - self.began)

    def slowest(self, share: float = 0.0) -> float:
        """Return the longest time of an answer in seconds, without the slowest share of them."""
        return sorted(self.seconds)[int(len(self.seconds) * (1 - share)) - 1] if self.seconds else 0.0

    def __repr__(self) -> str:
        return (
            f"{len(self.seconds)} answers, {len(self.failures)} failures {self.failures[:5]}, {self.rate:.0f}/s, "
            f"p50 {self.slowest(0.5) * 1000:.1f} ms, p99 {self.slowest(0.01) * 1000:.1f} ms, "
            f"slowest {self.slowest() * 1000:.0f} ms"
        )


class SteadyLoad:
    """Sends requests during the `with` block, whatever happens to the server; ``answers`` has the results afterwards.

    No request is sent twice: a connection that breaks is a failure, and the next request opens a new one.
    """

    def __init__(self, port: int, head: str, *, rate: int) -> None:
        self._port, self._request, self._rate = port, head.encode() + b"\r\n\r\n", rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))
        self._next = 0
        self.sent = 0
        self.answers = Answers()

    async def _ask(self) -> None:
        self.answers.began = time.monotonic()
        await asyncio.gather(*(self._caller() for _ in range(CALLERS)))
        self.answers.ended = time.monotonic()

    async def _caller(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._over.is_set():
            due = self.answers.began + self._next / self._rate
            self._next += 1
            await asyncio.sleep(due - time.monotonic())
            asked = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                    status, closes = await self._exchange(*connection)
                if closes:
                    connection[1].close()
                    connection = None
                problem = "" if status == "200" else f"status {status}"
            except (OSError, EOFError) as error:
                problem = repr(error)
                if connection is not None:
                    connection[1].close()
                    connection = None
            if problem:
                self.answers.failures.append(f"{problem} at {asked - self.answers.began:.2f} s")
            else:
                self.answers.seconds.append(time.monotonic() - asked)
        if connection is not None:
            connection[1].close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bool]:
        writer.write(self._request)
        self.sent += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = head.partition("\r\ncontent-length:")[2].partition("\r\n")[0]
        await reader.readexactly(int(length))
        return head.split(" ", 2)[1], "\r\nconnection: close\r\n" in head

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
