"""Opens WebSockets of the Prefect server."""

from collections.abc import Sequence
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI
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
    url: str, target: str, subprotocol: str | None, headers: Sequence[tuple[str, str]]
) -> ClientConnection:
    """Return an open WebSocket of the server at ``url`` (http or https), or raise OutOfReach.

    ``target`` is path and query. The environment's proxies are not used, as Prefect is beside this service.
    """
    try:
        return await _Connect(
            "ws" + url.removeprefix("http") + target,
            subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)],
            additional_headers=headers,
            user_agent_header=None,
            compression=None,  # both are on one machine or one network, and each compressed socket needs 64 KiB
            proxy=None,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            max_size=MAX_MESSAGE,
        )
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError) as problem:
        because = f"{type(problem).__name__}: {problem!s:.200}"
        raise OutOfReach(Problem.PREFECT_OUT_OF_REACH, because=because, retry_after=2) from None
