"""An answer, as ASGI sends it and as HTTP/1.1 writes it."""

import re
from http import HTTPStatus
from typing import Final

WireHeaders = list[tuple[bytes, bytes]]

_UNSAFE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # in a header's value (RFC 9110 §5.5)
_STATUS_LINES: Final = {one.value: b"HTTP/1.1 %d %b\r\n" % (one.value, one.phrase.encode()) for one in HTTPStatus}


class Answer:
    """Status, headers with lower-case names, and body. The headers include the body's length. Do not change them."""

    __slots__ = ("_written", "body", "headers", "status")

    def __init__(self, status: int, headers: WireHeaders, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body
        self._written = b""

    @property
    def written(self) -> bytes:
        """Return the whole answer as HTTP/1.1 writes it on a connection that stays open (RFC 9112 §4).

        Raises ValueError if a header has a value that would not be one.
        """
        if not self._written:
            if _UNSAFE.search(b"".join([value for _, value in self.headers])):
                raise ValueError
            lines = b"".join([b"%b: %b\r\n" % header for header in self.headers])
            self._written = _STATUS_LINES[self.status] + lines + b"\r\n" + self.body
        return self._written
