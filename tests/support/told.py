"""What stands in Prefect's place under load: it says who it was told is asking, and from where."""

from __future__ import annotations

import json
from typing import Any

ASKED = (b"x-auth-request-user", b"x-auth-request-roles", b"x-forwarded-for")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200 (ASGI 3.0)."""
    told = {name.decode(): value.decode() for name, value in scope.get("headers", ()) if name in ASKED}
    body = json.dumps(told).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
