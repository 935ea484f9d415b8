"""HTTP/1.1 connections: one side of one connection, and the connections to the upstream that are kept for the next."""

import asyncio
import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, SupportsIndex
from urllib.parse import urlsplit

import h11

from service.core.request.proxies import is_loopback

log = logging.getLogger(__name__)

READ: Final = 64 * 1024
IDLE_SECONDS: Final = 60.0
MAX_IDLE: Final = 64
RESPONSE_SECONDS: Final = 300.0  # until an answer begins
_MAX_HEAD: Final = 64 * 1024
_LONGEST_PAUSE: Final = 1.0
_CONNECT_SECONDS: Final = 10.0
_SWITCHING: Final = 101

Event = h11.Event | type[h11.PAUSED]


class UpstreamAwayError(Exception):
    """No connection to the upstream could be had in time."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The one host that is called, and the path of Prefect's API there."""

    host: str
    port: int
    authority: str
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext, *, allow_http: bool = False) -> "Upstream":
        """Return the upstream of a URL; raise ValueError with what is wrong with it."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("it has to begin with https:// and name a host")
        if parts.scheme == "http" and not (allow_http or is_loopback(parts.hostname)):
            raise ValueError("plain http would show the credential to the network; --allow-http permits it")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("a credential, a query or a fragment in it is not used")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        authority = parts.netloc.rpartition("@")[2]
        return cls(parts.hostname, port, authority, parts.path.rstrip("/"), tls if secure else None)

    @property
    def url(self) -> str:
        """Return the URL again."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


class Connection:
    """One side of one connection."""

    __slots__ = ("http", "reader", "since", "writer")

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, role: type[h11.CLIENT | h11.SERVER]
    ) -> None:
        self.reader, self.writer = reader, writer
        self.http = h11.Connection(role, max_incomplete_event_size=_MAX_HEAD)
        self.since = 0.0  # when it was put aside, or 0 while it is new

    async def next_event(self) -> Event:
        """Return the next event of the other side; raise OSError or h11.RemoteProtocolError."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self.http.receive_data(await self.reader.read(READ))

    def write(self, *events: h11.Event) -> None:
        """Send events at once, and wait for nothing."""
        self.writer.write(b"".join([self.http.send(event) or b"" for event in events]))

    async def send(self, *events: h11.Event) -> None:
        """Send events at once, and wait while the other side is slow to read."""
        self.write(*events)
        await self.writer.drain()

    def is_done(self) -> bool:
        """Tell whether one request and its answer are complete, and begin anew if another one may follow."""
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        """Close it once all is sent."""
        self.writer.close()


async def response_on(upstream: Connection) -> h11.Response | h11.InformationalResponse:
    """Return the head of the answer, or of a change of protocols."""
    try:
        async with asyncio.timeout(RESPONSE_SECONDS):
            while True:
                event = await upstream.next_event()
                if isinstance(event, h11.Response):
                    return event
                if isinstance(event, h11.InformationalResponse) and event.status_code == _SWITCHING:
                    return event
    except TimeoutError:
        raise ConnectionAbortedError from None


class _Reader(asyncio.StreamReader):
    """Knows whether anything has come in, bytes or an end, that nobody has read: such a connection is not kept."""

    touched = False

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.touched = len(data) == n or self.at_eof()
        return data

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.touched = True
        super().feed_data(data)

    def feed_eof(self) -> None:
        self.touched = True
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        """End here: a reset does not take back what came before it, such as an answer to half a body."""
        del exc
        self.feed_eof()


class Pool:
    """Connections to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._idle: list[Connection] = []
        self._away = False

    async def take(self, until: float, *, fresh: bool = False) -> Connection:
        """Return a connection that nothing was sent on yet, or whose last answer is complete.

        Tries until this time of the event loop, or raises UpstreamAwayError.
        """
        loop = asyncio.get_running_loop()
        while self._idle and not fresh:
            kept = self._idle.pop()
            reader: _Reader = kept.reader  # type: ignore[assignment]
            if not (reader.touched or kept.writer.is_closing()) and loop.time() < kept.since + IDLE_SECONDS:
                return kept
            kept.close()
        pause = 0.1
        while True:
            try:
                async with asyncio.timeout_at(min(until, loop.time() + _CONNECT_SECONDS)):
                    connection = await self._connect()
            except OSError as problem:  # TimeoutError and ssl.SSLError, too
                if not self._away:
                    self._away = True
                    cause = str(problem) or "no answer"
                    log.warning("%s cannot be reached: %s. Requests wait.", self.upstream.url, cause)
                if loop.time() + pause >= until:
                    raise UpstreamAwayError from None
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if self._away:
                    self._away = False
                    log.warning("%s can be reached again.", self.upstream.url)
                return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        reader = _Reader(limit=READ, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        upstream = self.upstream
        transport, _ = await loop.create_connection(lambda: protocol, upstream.host, upstream.port, ssl=upstream.tls)
        return Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), h11.CLIENT)

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next request if its answer is complete, and close it otherwise."""
        reader: _Reader = connection.reader  # type: ignore[assignment]
        unread = reader.touched or connection.http.trailing_data[0]
        if unread or len(self._idle) >= MAX_IDLE or not connection.is_done():
            connection.close()
            return
        connection.since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop().close()
