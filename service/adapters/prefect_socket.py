"""Opens WebSockets of the Prefect server."""

import asyncio
from collections.abc import Sequence
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from service.core.errors import OutOfReach
from service.core.problems import Problem

MAX_MESSAGE: Final = 16 * 1024 * 1024  # bytes; what Prefect's own server accepts
OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0  # a server that is busy with a large event still answers


class _Connect(connect):
    """Connects to exactly the server that is configured."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Follow no redirect: the handshake says who the caller is."""
        return exc


async def open_socket(
    url: str,
    target: str,
    subprotocol: str | None,
    headers: Sequence[tuple[str, str]],
    *,
    first: str | None = None,
    take_answer: bool = False,
) -> ClientConnection:
    """Return an open WebSocket of the server at ``url`` (http or https), or raise OutOfReach.

    ``target`` is path and query. ``first`` is sent as the first message; ``take_answer`` waits for the answer to it and
    drops it. All of this takes at most ``OPEN_SECONDS``. The environment's proxies are not used, as Prefect is beside
    this service.
    """
    socket: ClientConnection | None = None
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            socket = await _Connect(
                "ws" + url.removeprefix("http") + target,
                subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)],
                additional_headers=headers,
                user_agent_header=None,
                compression=None,  # both are on one machine or one network, and each compressed socket needs 64 KiB
                proxy=None,
                open_timeout=None,
                close_timeout=CLOSE_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PONG_SECONDS,
                max_size=MAX_MESSAGE,
            )
            if first is not None:
                await socket.send(first)
                if take_answer:
                    await socket.recv()
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError, ConnectionClosed) as problem:
        if socket is not None:
            socket.transport.abort()
        because = f"{type(problem).__name__}: {problem!s:.200}"
        raise OutOfReach(Problem.PREFECT_OUT_OF_REACH, because=because, retry_after=2) from None
    for handshake in (socket.request, socket.response):
        if handshake is not None:
            handshake.headers.clear()  # which an idle socket would keep
    return socket
