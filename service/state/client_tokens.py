"""What issuers granted to clients."""

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
    """Whose ids are proved to an issuer, and what is asked for; ``remember`` and ``timeout`` are in seconds.

    ``clients`` are patterns. An empty ``token_endpoint`` is discovered. ``audience`` and ``resource`` (RFC 8707) are
    for issuers that need to be told whom the token is for.
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
        """Return what is sent, but for the client itself (RFC 6749 §4.4.2)."""
        form = {"scope": " ".join(sorted(self.scopes)), "audience": self.audience, "resource": self.resource}
        return {"grant_type": "client_credentials", **{name: value for name, value in form.items() if value}}

    def asked(self, issuer: str) -> dict[str, Any]:
        """Return all that decides what an issuer grants, and for how long that is remembered."""
        return {"issuer": issuer, **asdict(self), "clients": "", "scopes": sorted(self.scopes)}


class ClientToken(NamedTuple):
    """An access token that an issuer granted to a client; ``until`` is in seconds since the epoch."""

    token: str
    until: float

    def __repr__(self) -> str:
        return f"ClientToken(until={self.until})"


class ClientTokens:
    """Remembers grants, each for the very pair and the very request that it was the answer to.

    So a policy that asks for something else finds nothing, and needs no forgetting.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()  # of the calls to issuers, by issuer
        self.granted: LRUCache[bytes, ClientToken] = LRUCache(MAX_CLIENTS)
        self._fingerprints = Fingerprints()

    def key_of(self, credential: Basic, asked: dict[str, Any]) -> bytes:
        """Return the key of what is asked for as a client; it holds no secret."""
        return self._fingerprints.of(request_of(credential, asked))


def request_of(credential: Basic, asked: dict[str, Any]) -> bytes:
    """Return one text for a client and what is asked for it, which no other client and question have."""
    return json.dumps([asked, *credential]).encode()
