"""Sends requests and WebSocket handshakes exactly as written: no path is normalised and no header is merged."""

from __future__ import annotations

import base64
import http.client
import os
from collections.abc import Sequence
from dataclasses import dataclass

UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Protocol", "prefect"),
)


@dataclass(frozen=True)
class Answer:
    """An answer: status, headers in their order, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first header of this name, in any case."""
        return next(iter(self.values(name)), None)

    def values(self, name: str) -> list[str]:
        """Return the headers of this name, in any case."""
        return [value for seen, value in self.headers if seen.lower() == name.lower()]


def basic(user: str, password: str) -> tuple[str, str]:
    """Return the Authorization header of a user name and a password."""
    return "Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def bearer(token: str) -> tuple[str, str]:
    """Return the Authorization header of a token."""
    return "Authorization", f"Bearer {token}"


def send(  # noqa: PLR0913 - a request has these parts
    port: int,
    host: str,
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    method: str = "GET",
    body: bytes = b"",
    chunked: bool = False,
    timeout: float = 30,
    source: str = "127.0.0.1",
) -> Answer:
    """Send one request to a loopback port, for this host and from this address, and return the answer.

    A ``chunked`` body does not say its length beforehand, and may be empty (RFC 9112 §7.1).
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0))
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", f"{host}:{port}")
        for name, value in headers:
            connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        elif body or method in {"POST", "PUT", "PATCH"}:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        # After 101 the socket stays open for frames: there is no body to read.
        received = b"" if response.status == 101 else response.read()
        return Answer(response.status, tuple(response.getheaders()), received)
    finally:
        connection.close()


def handshake(port: int, host: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Send a WebSocket handshake; status 101 means that it was accepted."""
    key = ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode())
    return send(port, host, path, (*UPGRADE, key, *headers))
