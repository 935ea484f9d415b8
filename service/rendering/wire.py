"""An answer as ASGI sends it."""

from typing import NamedTuple

WireHeaders = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """Status, headers with lower-case names, and body."""

    status: int
    headers: WireHeaders
    body: bytes
