"""The WebSockets of a Prefect server, as far as the relay can tell: the handshake, then an echo of each message.

A stand-in, for what a real server does not do when asked: close with any code, refuse, or stop reading. Tests with a
real Prefect server are in tests/e2e.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


@dataclass
class Opened:
    """A socket that somebody has opened, what it sent, and how it was closed."""

    path: str
    headers: dict[str, str]
    subprotocol: str | None
    connection: ServerConnection
    messages: list[str | bytes] = field(default_factory=list)
    closed: tuple[int, str] | None = None


@dataclass
class PrefectSockets:
    """A server on loopback. ``auth_string`` is what the first message must say; without one, anything will do."""

    auth_string: str | None = None
    opened: list[Opened] = field(default_factory=list)
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)  # the first message
    url: str = ""

    def __post_init__(self) -> None:
        self.reading.set()
        self.answering.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PrefectSockets]:
        """Serve on a free port."""
        server = await serve(
            self._talk, "127.0.0.1", 0, subprotocols=[Subprotocol("prefect")], select_subprotocol=_select, max_size=None
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        headers = {name.lower(): value for name, value in connection.request.headers.raw_items()}
        one = Opened(connection.request.path, headers, connection.subprotocol, connection)
        self.opened.append(one)
        try:
            if connection.subprotocol:
                first: dict[str, Any] = json.loads(await connection.recv())
                one.messages.append(json.dumps(first))
                if first["type"] != "auth" or (self.auth_string and first["token"] != self.auth_string):
                    await connection.close(1008, "Auth required")
                    return
                await self.answering.wait()
                await connection.send(json.dumps({"type": "auth_success"}))
            elif self.auth_string:
                await connection.close(1008, "Auth required")
                return
            while True:
                message = await connection.recv()
                await self.reading.wait()
                one.messages.append(message)
                if isinstance(message, str) and message.startswith("close "):
                    _, code, reason = message.split(" ", 2)
                    await connection.close(int(code), reason)
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            one.closed = (connection.close_code or 0, connection.close_reason or "")


def _select(_: ServerConnection, offered: Any) -> Subprotocol | None:
    return Subprotocol("prefect") if "prefect" in offered else None
