"""A connection to the service without a socket: bytes into its HTTP protocol, and what it writes."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.gate.application import ForwardAuth
from service.gate.protocol import BoundedHeadProtocol
from service.gate.server import protocols


class Transport(asyncio.Transport):
    """Keeps what is written. While ``stuck``, the peer reads nothing."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 4711) if peer else None, "sockname": ("127.0.0.1", 8080)})
        self.written: list[bytes] = []
        self.closed = self.stuck = self.reading_paused = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False


class Connection:
    """A connection to an application that was started. ``http`` is the protocol, or that of the service."""

    def __init__(
        self, app: ForwardAuth, peer: str = "127.0.0.1", http: type[BoundedHeadProtocol] | None = None, **options: Any
    ) -> None:
        config = uvicorn.Config(app, log_config=None, **{**protocols(), "ws": "none", "lifespan": "off", **options})
        if http is not None:
            config.http = http
        config.load()
        self.state = ServerState()
        protocol: Any = config.http_protocol_class
        self.protocol: HttpToolsProtocol = protocol(config, self.state, {})
        self.transport = Transport(peer)
        self.protocol.connection_made(self.transport)

    async def send(self, *chunks: bytes) -> bytes:
        """Send chunks, one after the other, and return what is answered until nothing is under way any more."""
        before = len(self.transport.written)
        for chunk in chunks:
            self.protocol.data_received(chunk)
            for _ in range(3):  # turns of the event loop, in which a call that waits for nothing is answered
                await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.sleep(0)
            while self.state.tasks:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        return b"".join(self.transport.written[before:])

    def lose(self) -> None:
        """End the connection."""
        self.protocol.connection_lost(None)
