"""What an agent calls: a server that answers 401 to every token but those it accepts, and echoes the rest."""

from __future__ import annotations

import json
from typing import Any

from tests.support.upstream import Upstream


class AgentGate(Upstream):
    """Accepts tokens, over HTTP and at the upgrade of WebSockets; a WebSocket's message `close 1012` closes it so."""

    def __init__(self, *accepted: str) -> None:
        super().__init__()
        self.accepted = set(accepted)
        self.refused: list[str] = []

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        presented = dict(scope["headers"]).get(b"authorization", b"").decode()
        if presented.removeprefix("Bearer ") in self.accepted and presented.startswith("Bearer "):
            await super()._app(scope, receive, send)
            return
        self.refused.append(presented)
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        if scope["type"] == "websocket":
            await receive()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": f"{kind}.start", "status": 401, "headers": headers})
        await send({"type": f"{kind}.body", "body": json.dumps({"code": "refused"}).encode()})

    @staticmethod
    async def _talk(scope: Any, receive: Any, send: Any, request: dict[str, Any]) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        await send({"type": "websocket.send", "text": json.dumps(request)})
        while (message := await receive())["type"] == "websocket.receive":
            command, _, code = (message.get("text") or "").partition(" ")
            if command == "close":
                await send({"type": "websocket.close", "code": int(code), "reason": "renewed"})
                return
            await send({**message, "type": "websocket.send"})
