"""uvicorn's protocols, with limits that it does not have: on a request's head, and on a WebSocket's first message."""

import json
import logging
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from service.adapters.prefect_socket import CLOSE_SECONDS, MAX_MESSAGE
from service.core.errors import Code
from service.core.model import Face
from service.core.request.first_message import MAX_FIRST_MESSAGE

MAX_HEAD: Final = 128 * 1024  # bytes of the request line and the headers together
_TOO_LARGE: Final = 431  # RFC 6585 §5


RELAY_PREFIX: Final = f"/{Face.RELAY}/"
_RELAY: Final = RELAY_PREFIX.encode()
CONNECTION: Final = "forward_auth.connection"  # the ASGI extension through which the relay finds its RelayProtocol
PING: Final = "forward_auth.ping"  # the ASGI message of a ping, in its place among the messages


_log = logging.getLogger(__name__)
# The relay itself logs what becomes of a WebSocket. Text that is no UTF-8 is a fault of the client.
_log.addFilter(lambda record: record.levelno >= logging.WARNING and "Invalid UTF-8" not in str(record.msg))


class _HeadTooLargeError(Exception):
    """Ends the parsing of a request."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 431 to requests whose head is larger than ``MAX_HEAD``, and closes the connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._received = 0  # bytes of the request, without those that came with the end of the previous one
        self._together = 0  # the most that may have come with it
        self._chunk = 0  # size of the last chunk
        self._in_head = True

    def data_received(self, data: bytes) -> None:
        """Parse a chunk. Refuse a head that is not complete and is already too large."""
        self._chunk = len(data)
        self._received += self._chunk
        super().data_received(data)
        if self._received > MAX_HEAD and self._in_head and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """Start the request, or refuse a complete head that is too large."""
        self._in_head = False
        if self._received + self._together > MAX_HEAD and self._size_of_head() > MAX_HEAD:
            raise _HeadTooLargeError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request."""
        self._expect_next()
        super().on_message_complete()

    def _expect_next(self) -> None:
        self._received, self._together, self._in_head = 0, self._chunk, True

    def _should_upgrade_to_ws(self) -> bool:
        """Accept WebSockets for the relay alone. Some proxies send the Upgrade header of a request that they verify."""
        return self.url.startswith(_RELAY)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a call that is no WebSocket for the relay is answered as the plain HTTP that it is."""

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def send_400_response(self, msg: str) -> None:
        """Answer 431 to a head that is too large, and 400 to what cannot be parsed."""
        if not self._in_head and self._size_of_head() > MAX_HEAD:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        refusal = {
            "detail": f"The request's headers are larger than {MAX_HEAD} bytes: send fewer cookies or a shorter URL.",
            "code": Code.INVALID_REQUEST,
            "request_id": secrets.token_hex(8),
        }
        body = json.dumps(refusal).encode()
        headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[_TOO_LARGE] + headers + body)
        self.transport.close()


class RelayProtocol(WebSocketsSansIOProtocol):
    """Accepts only a small message until the client is proved, and answers pings when Prefect has answered them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = self.conn.logger = _log
        self._accept_messages_of(MAX_FIRST_MESSAGE)
        self.close_timeout = CLOSE_SECONDS
        self._proved = False

    def handle_connect(self, event: Request) -> None:
        """Start the application, and let it find this connection in the scope."""
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), CONNECTION: self}  # type: ignore[dict-item]

    def proved(self) -> None:
        """Accept messages of up to ``MAX_MESSAGE`` bytes from now on, and queue pings for the application."""
        self._accept_messages_of(MAX_MESSAGE)
        self._proved = True

    def _accept_messages_of(self, size: int) -> None:
        for name in ("max_message_size", "max_size"):  # as websockets calls it from 16 on, and before
            setattr(self.conn, name, size)

    def forget_handshake(self) -> None:
        """Let go of the headers of the upgrade, which is accepted: nothing reads them any more."""
        self.request.headers.clear()
        self.response.headers.clear()

    async def send(self, message: Any) -> None:
        """Send an ASGI message. uvicorn takes a refused upgrade for one that nobody has answered, and logs an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer a ping or, once the client is proved, queue it behind the messages that came before.

        Prefect's clients take a pong for the proof that the messages before it have arrived.
        """
        if not self._proved:
            super().handle_ping()
            return
        pong = b"".join(self.conn.data_to_send())
        self.queue.put_nowait({"type": PING, "answer": lambda: self._answer(pong)})  # type: ignore[arg-type]

    def _answer(self, pong: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(pong)
