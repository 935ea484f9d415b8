"""uvicorn's HTTP protocol, with a bound on a request's head: httptools has none, and keeps whatever a peer sends."""

import json
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.core.errors import Code

MAX_HEAD: Final = 128 * 1024  # bytes of request line and headers; what the service reads of them is far below that
_TOO_LARGE: Final = 431  # RFC 6585 §5


class _HeadTooLargeError(Exception):
    """Ends the parsing of a request."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 431 to a request whose head is larger than ``MAX_HEAD``, and closes the connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._received = 0  # bytes of the request, but for those that came together with the end of the one before
        self._together = 0  # so many may have come together with that, at the most
        self._chunk = 0  # bytes that came last
        self._in_head = True

    def data_received(self, data: bytes) -> None:
        """Take what the peer sends; of a head that does not end, no more than the bound is kept."""
        self._chunk = len(data)
        self._received += self._chunk
        super().data_received(data)
        if self._received > MAX_HEAD and self._in_head and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head that came is too large."""
        self._in_head = False
        if self._received + self._together > MAX_HEAD and self._size_of_head() > MAX_HEAD:
            raise _HeadTooLargeError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Count anew for the next request."""
        self._received, self._together, self._in_head = 0, self._chunk, True
        super().on_message_complete()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or is too large."""
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
