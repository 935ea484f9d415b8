"""An ASGI application in Prefect's place: it answers with the identity headers that it received."""

from __future__ import annotations

import json
from typing import Any

SHOWN = (b"x-auth-request-user", b"x-auth-request-roles", b"x-forwarded-for")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200 (ASGI 3.0)."""
    received = {name.decode(): value.decode() for name, value in scope.get("headers", ()) if name in SHOWN}
    body = json.dumps(received).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
