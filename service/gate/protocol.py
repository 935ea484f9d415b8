"""uvicorn's HTTP protocol with a limit on the size of a request's head. httptools itself has none."""

import json
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.core.errors import Code

MAX_HEAD: Final = 128 * 1024  # bytes of the request line and the headers together
_TOO_LARGE: Final = 431  # RFC 6585 §5


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
        """Reset the counters for the next request."""
        self._received, self._together, self._in_head = 0, self._chunk, True
        super().on_message_complete()

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
