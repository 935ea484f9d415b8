"""An answer, as ASGI sends it and as HTTP/1.1 writes it."""

import re
from collections.abc import Iterable
from functools import cached_property
from http import HTTPStatus
from typing import Final

WireHeaders = list[tuple[bytes, bytes]]

_UNSAFE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # in the value of a header (RFC 9110 §5.5)
_STATUS_LINES: Final = {one.value: b"HTTP/1.1 %d %b\r\n" % (one.value, one.phrase.encode()) for one in HTTPStatus}
_NO_HEADERS: Final[WireHeaders] = []


class Head:
    """A status and headers with lower-case names. Many answers may share one: do not change the headers."""

    def __init__(self, status: int, headers: WireHeaders) -> None:
        self.status, self.headers = status, headers

    @cached_property
    def written(self) -> bytes:
        """Return the status line and the headers as HTTP/1.1 writes them (RFC 9112 §2); raises ValueError."""
        return _STATUS_LINES[self.status] + _written(self.headers)


class Answer:
    """A head, more headers of this very answer, and a body."""

    __slots__ = ("_head", "_more", "body")

    def __init__(self, head: Head, body: bytes = b"", more: WireHeaders = _NO_HEADERS) -> None:
        self._head, self._more, self.body = head, more, body

    @property
    def status(self) -> int:
        """Return the status."""
        return self._head.status

    @property
    def headers(self) -> WireHeaders:
        """Return all headers. Do not change them."""
        return self._head.headers + self._more

    @property
    def written(self) -> bytes:
        """Return the whole answer as HTTP/1.1 writes it on a connection that stays open.

        Raises ValueError if a header's value would be more than that.
        """
        more = _written(self._more) if self._more else b""
        return b"%b%b\r\n%b" % (self._head.written, more, self.body)


def _written(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    if _UNSAFE.search(b"".join([value for _, value in headers])):
        raise ValueError("a header's value has a control character")
    return b"".join([b"%b: %b\r\n" % header for header in headers])
