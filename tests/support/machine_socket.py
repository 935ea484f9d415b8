"""A WebSocket of a machine, opened through a proxy from an address of one's choice."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

# What Prefect's clients open, and a pool's name with an escaped letter.
SOCKETS = [
    "/api/events/in",
    "/api/events/out?x=1",
    "/api/logs/out",
    "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/a%20b/workers/connect",
]
STRANGER = "127.0.0.9"  # loopback as well, and nobody vouches for it


def open_socket(
    port: int, host: str, path: str, *, source: str = "127.0.0.1", legacy: bool = False
) -> ClientConnection:
    """Open a WebSocket at a loopback port; a ``legacy`` client does not offer Prefect's sub-protocol."""
    connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0))
    subprotocols = None if legacy else [Subprotocol("prefect")]
    return connect(f"ws://{host}:{port}{path}", sock=connection, subprotocols=subprotocols)


def send_token(connection: ClientConnection, token: str | None) -> None:
    """Send the first message of Prefect's clients."""
    connection.send(json.dumps({"type": "auth", "token": token}))


def closing(connection: ClientConnection) -> tuple[int, str]:
    """Wait until the other side closes, and return the code and the reason."""
    with suppress(ConnectionClosed):
        while True:
            connection.recv(30)
    return connection.close_code or 0, connection.close_reason or ""
