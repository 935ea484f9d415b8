"""What issuers say of opaque tokens (RFC 7662)."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from cachetools import LRUCache, TTLCache

from service.state.fingerprints import Fingerprints

MAX_TOKENS: Final = 10_000
INACTIVE_SECONDS: Final = 5.0  # for which an issuer is not asked again about a token that it does not know

Outcome = Literal["active", "inactive", "unavailable"]


@dataclass(frozen=True, slots=True)
class IntrospectionPolicy:
    """The credentials of this service at an issuer, and how long an answer counts.

    If ``endpoint`` is empty, discovery provides it. ``remember`` and ``timeout`` are in seconds.
    """

    client_id: str
    client_secret: str = field(repr=False)
    endpoint: str = ""
    client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    remember: float = 60.0
    timeout: float = 5.0

    def asked(self, issuer: str) -> bytes:
        """Return an unambiguous text of what an answer, and how long it counts, depends on besides the token."""
        return json.dumps([issuer, self.endpoint, self.client_id, self.remember]).encode()


class ActiveToken(NamedTuple):
    """What an issuer said of a token that is active; ``until`` is in seconds since the epoch."""

    answer: Mapping[str, Any]
    until: float

    def __repr__(self) -> str:
        return f"ActiveToken(until={self.until})"


class Introspections:
    """Remembers what issuers said. An entry is only valid for the same token, and for who asked whom.

    Tokens that nobody issued have a memory of their own, so they displace none that is active.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()  # of calls, by issuer
        self.active: LRUCache[bytes, ActiveToken] = LRUCache(MAX_TOKENS)
        self.inactive: TTLCache[bytes, None] = TTLCache(MAX_TOKENS, INACTIVE_SECONDS)
        self._fingerprints = Fingerprints()

    def key_of(self, token: bytes, asked: bytes) -> bytes:
        """Return the key for a token and who asks whom. It is an HMAC and contains no token."""
        return self._fingerprints.of(len(asked).to_bytes(4, "big") + asked + token)
