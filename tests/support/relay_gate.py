"""The service with its own server on a free port, and WebSockets as proxies hand them over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from service.gate.application import ForwardAuth
from service.gate.server import protocols
from service.settings import Settings
from service.web.app import create_app

EVENTS = "/api/events/in"
PREFECT = Subprotocol("prefect")


class Gate:
    """The service on a free loopback port."""

    def __init__(self, app: ForwardAuth, port: int) -> None:
        self.app, self.port = app, port

    def connect(
        self,
        path: str = EVENTS,
        *,
        gate: str = "api",
        legacy: bool = False,
        client: str = "203.0.113.7",
        **headers: str,
    ) -> connect:
        """Open a WebSocket as a proxy hands it over."""
        sent = {
            "x-forwarded-for": client or "",
            "x-forwarded-proto": "ws",
            "x-forwarded-host": "prefect-m2m.example.com",
        }
        return connect(
            f"ws://127.0.0.1:{self.port}/relay/{gate}{path}",
            subprotocols=None if legacy else [PREFECT],
            additional_headers={**sent, **headers},
            proxy=None,
        )

    @asynccontextmanager
    async def opened(self, token: str | None, path: str = EVENTS, **options: Any) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket as Prefect's clients do, with the token in the first message."""
        async with self.connect(path, **options) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token}))
            assert json.loads(await socket.recv()) == {"type": "auth_success"}
            yield socket

    async def refused(self, token: str | None, path: str = EVENTS, **options: Any) -> tuple[int, str]:
        """Return how a WebSocket is closed that begins like one of Prefect's clients."""
        async with self.connect(path, **options) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token}))
            return await closed(socket)


async def closed(socket: ClientConnection, seconds: float = 10) -> tuple[int, str]:
    async with asyncio.timeout(seconds):
        with suppress(ConnectionClosed):
            while True:
                await socket.recv()
    return socket.close_code or 0, socket.close_reason or ""


@asynccontextmanager
async def served(settings: dict[str, Any], port: int = 0) -> AsyncIterator[Gate]:
    app = create_app(Settings(**settings))
    config = uvicorn.Config(app, "127.0.0.1", port, lifespan="on", log_config=None, **protocols())
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    assert not server.should_exit
    try:
        yield Gate(app, server.servers[0].sockets[0].getsockname()[1])
    finally:
        await server.shutdown()


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
