"""Access tokens that issuers granted to clients (RFC 6749 §4.4)."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

from cachetools import LRUCache

from service.core.model import Basic
from service.state.fingerprints import Fingerprints

MAX_CLIENTS: Final = 10_000

Outcome = Literal["granted", "refused", "unavailable"]


@dataclass(frozen=True, slots=True)
class GrantPolicy:
    """Which client ids are verified at an issuer, and what the token request contains.

    ``clients`` are patterns. If ``token_endpoint`` is empty, discovery provides it. ``audience`` and ``resource``
    (RFC 8707) are for issuers that need them. ``remember`` and ``timeout`` are in seconds.
    """

    clients: frozenset[str]
    scopes: frozenset[str] = frozenset()
    audience: str = ""
    resource: str = ""
    token_endpoint: str = ""
    client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    remember: float = 300.0
    timeout: float = 10.0

    def form(self) -> dict[str, str]:
        """Return the form of the token request, without the client's credentials (RFC 6749 §4.4.2)."""
        form = {"scope": " ".join(sorted(self.scopes)), "audience": self.audience, "resource": self.resource}
        return {"grant_type": "client_credentials", **{name: value for name, value in form.items() if value}}

    def asked(self, issuer: str) -> dict[str, Any]:
        """Return everything that the issuer's answer, and how long it is remembered, depends on."""
        return {"issuer": issuer, **asdict(self), "clients": "", "scopes": sorted(self.scopes)}


class ClientToken(NamedTuple):
    """An access token that an issuer granted to a client; ``until`` is in seconds since the epoch."""

    token: str
    until: float

    def __repr__(self) -> str:
        return f"ClientToken(until={self.until})"


class ClientTokens:
    """Remembers access tokens. An entry is only valid for the same client, secret and token request."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()  # of token requests, by issuer
        self.granted: LRUCache[bytes, ClientToken] = LRUCache(MAX_CLIENTS)
        self._fingerprints = Fingerprints()

    def key_of(self, credential: Basic, asked: dict[str, Any]) -> bytes:
        """Return the key for a client and a token request. It is an HMAC and contains no secret."""
        return self._fingerprints.of(request_of(credential, asked))


def request_of(credential: Basic, asked: dict[str, Any]) -> bytes:
    """Return an unambiguous text of a client's credentials and a token request."""
    return json.dumps([asked, *credential]).encode()
