"""An upstream that answers with the request it received, so that a test sees what a proxy passed on."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.waiting import free_port


@dataclass(frozen=True)
class Received:
    """One request as it arrived: header names as sent, duplicates kept."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Read what the echo wrote."""
        return cls(body["method"], body["path"], tuple((name, value) for name, value in body["headers"]))

    def values(self, name: str) -> list[str]:
        """Return every value of a header, however its name is spelled (case, `_` or `.` for `-`)."""
        return [value for seen, value in self.headers if _canonical(seen) == _canonical(name)]


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


class Echo:
    """An HTTP server on loopback; it also answers a WebSocket handshake with 200 and the request."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[Received] = []
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        echo = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = {"method": self.command, "path": self.path, "headers": self.headers.items()}
                echo.received.append(Received.from_json(request))
                body = json.dumps(request).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
