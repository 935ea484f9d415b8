"""An upstream on uvicorn that speaks HTTP and WebSocket as Prefect does, and answers with what it received."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from typing import Any, Self

import uvicorn

from tests.support.echo import Received
from tests.support.waiting import accepts, free_port, wait_until

PARTS_OF_STREAM = (b"first\n", b"second\n")


class Upstream:
    """A server on loopback: it answers 200, except on two paths.

    `/api/status/418` is answered 418. `/api/stream` sends its second half when `release` is set. An answer to a request
    with `X-Padding: 1000` is 1000 bytes longer.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[Received] = []
        self.release = threading.Event()
        config = uvicorn.Config(
            self._app,
            "127.0.0.1",
            self.port,
            interface="asgi3",
            lifespan="off",
            ws="websockets-sansio",
            log_config=None,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: accepts(self.port), timeout=10, what="the upstream")
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.should_exit = True
        self._thread.join(10)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        request = {
            "method": scope.get("method", "GET"),
            "path": (scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode(),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        }
        self.received.append(Received.from_json(request))
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send, request)
        elif scope["path"] == "/api/stream":
            await self._stream(send)
        else:
            await self._answer(receive, send, request)

    async def _answer(self, receive: Any, send: Any, request: dict[str, Any]) -> None:
        digest, length, more = hashlib.sha256(), 0, True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            digest.update(message.get("body", b""))
            length += len(message.get("body", b""))
        padding = next((int(value) for name, value in request["headers"] if name == "x-padding"), 0)
        body = json.dumps({**request, "length": length, "sha256": digest.hexdigest()}).encode() + b" " * padding
        _, is_status, status = request["path"].partition("/api/status/")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"set-cookie", b"theme=dark; Path=/"),
        ]
        await send({"type": "http.response.start", "status": int(status) if is_status else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request["method"] == "HEAD" else body})

    async def _stream(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": PARTS_OF_STREAM[0], "more_body": True})
        await asyncio.to_thread(self.release.wait, 30)
        await send({"type": "http.response.body", "body": PARTS_OF_STREAM[1]})

    @staticmethod
    async def _talk(scope: Any, receive: Any, send: Any, request: dict[str, Any]) -> None:
        """Accept, send the request, then echo every message."""
        await receive()
        subprotocols = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": subprotocols[0] if subprotocols else None})
        await send({"type": "websocket.send", "text": json.dumps(request)})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
