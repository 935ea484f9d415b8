"""Client ids and secrets: proved to their issuer by a client-credentials grant (RFC 6749 §4.4), and remembered.

What is remembered is the access token that the issuer gave, and it is verified like a token that a caller sends, each
time that it is asked about: a key that was removed, another role, another audience take effect at once. Replicas share
it under a name that is an HMAC of id and secret, sealed for this very name.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final, Literal, NamedTuple

import httpx
from cachetools import LRUCache, TTLCache

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import Endpoints, Provider, TokenError, out_of_reach
from service.adapters.outbound import FetchError
from service.adapters.store import Store, StoreUnavailable
from service.authn.issuers import Issuer
from service.authn.seal import Seal
from service.authn.tokens import Tokens
from service.core.errors import OutOfReach, Rejected, Throttled
from service.core.globs import matches_any
from service.core.identity.grants import Grant
from service.core.model import Basic, Bearer, Proof
from service.state.fingerprints import Fingerprints

log = logging.getLogger(__name__)

AT_ONCE: Final = 8  # calls to one issuer
WAITING: Final = 64  # callers who may wait for those; more are answered 429
CAPACITY: Final = 10_000
REFUSED_SECONDS: Final = 15.0  # for which a refused pair is not asked about again
_WRONG: Final = (
    "The client id or the client secret is wrong: check PREFECT_API_AUTH_STRING ('client_id:client_secret')."
)
_NOT_ACCEPTED: Final = (
    "The identity provider knows this client, but gave it no token that is accepted here: tell whoever runs this."
)
# RFC 6749 §5.2, and what providers send in place of its first; any other error is about what this service asks for
_ABOUT_THE_CLIENT: Final = frozenset({"invalid_client", "unauthorized_client", "invalid_grant", "access_denied"})
_ABOUT_US: Final = frozenset({"invalid_request", "unsupported_grant_type", "invalid_scope", "invalid_target"})

Outcome = Literal["granted", "refused", "unavailable"]


@dataclass(frozen=True, slots=True)
class GrantPolicy:
    """Whose ids are proved to this issuer, and what is asked for; ``remember`` and ``timeout`` are in seconds.

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
        """Return what is sent, but for the client itself."""
        form = {"scope": " ".join(sorted(self.scopes)), "audience": self.audience, "resource": self.resource}
        return {"grant_type": "client_credentials", **{name: value for name, value in form.items() if value}}


class Shared(NamedTuple):
    """Where replicas share what they were granted, and the seal whose keys they have in common."""

    store: Store
    seal: Seal


class _Granted(NamedTuple):
    token: str
    until: float  # seconds since the epoch

    def __repr__(self) -> str:
        return f"_Granted(until={self.until})"


class Clients:
    """The clients of one issuer."""

    def __init__(
        self,
        issuer: Issuer,
        policy: GrantPolicy,
        client: httpx.AsyncClient,
        grants: Sequence[Grant] = (),
        shared: Shared | None = None,
    ) -> None:
        self.url = issuer.trust.issuer
        self.outcomes: Counter[Outcome] = Counter()  # of the calls to the issuer
        self._issuer = issuer
        self._policy = policy
        self._client = client
        self._shared = shared
        self._tokens = Tokens({self.url: issuer}, grants)  # no other issuer's token vouches for its clients
        self._fingerprints = Fingerprints()
        self._granted: LRUCache[bytes, _Granted] = LRUCache(CAPACITY)
        self._refused: TTLCache[bytes, Rejected] = TTLCache(CAPACITY, REFUSED_SECONDS)
        self._flights: dict[bytes, asyncio.Task[Proof]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    def succeed(self, before: "Clients") -> None:
        """Go on with the counts, and with what was granted where it would be asked for alike."""
        self.outcomes = before.outcomes
        if (self._policy, self._issuer.allow_http) == (before._policy, before._issuer.allow_http):
            self._granted, self._fingerprints = before._granted, before._fingerprints

    def takes(self, username: str) -> bool:
        """Tell, by configuration alone, whether this name is one of a client of this issuer."""
        return matches_any(self._policy.clients, username)

    async def authenticate(self, credential: Basic) -> Proof:
        """Return whom the issuer says the client is; callers with the same pair share one call.

        Raises Rejected where the issuer refuses the pair, or its token is not accepted here; OutOfReach where it does
        not decide; Throttled where too many wait for it.
        """
        fingerprint = self._fingerprints.of_pair(credential.username, credential.password)
        flight = self._flights.get(fingerprint)
        if flight is None:
            flight = asyncio.create_task(self._prove(credential, fingerprint))
            self._flights[fingerprint] = flight
            flight.add_done_callback(lambda done: self._landed(fingerprint, done))
        return await asyncio.shield(flight)

    def _landed(self, fingerprint: bytes, flight: asyncio.Task[Proof]) -> None:
        del self._flights[fingerprint]
        if not flight.cancelled():
            flight.exception()  # each waiter has it; here it is only marked as seen

    async def _prove(self, credential: Basic, fingerprint: bytes) -> Proof:
        refused = self._refused.get(fingerprint)
        if refused is not None:
            raise Rejected(refused.detail, reason=f"{refused.reason}; remembered")
        name = self._name_of(credential)
        granted = self._granted.get(fingerprint)
        if granted is None or time.time() >= granted.until:
            granted = await self._fetch(name)
        if granted is not None:
            with suppress(Rejected):  # it is by keys, or for an audience, of before
                return await self._believe(granted, fingerprint)
        try:
            granted = await self._ask(credential)
            proof = await self._believe(granted, fingerprint)
        except Rejected as refusal:
            self._refused[fingerprint] = Rejected(refusal.detail, reason=refusal.reason)
            raise
        await self._keep(name, proof.until, granted)
        return proof

    async def _believe(self, granted: _Granted, fingerprint: bytes) -> Proof:
        """Return what a token proves here and now, and remember it for as long as it may be."""
        try:
            proof = await self._tokens.authenticate(Bearer(granted.token.encode()))
        except Rejected as refusal:
            raise Rejected(_NOT_ACCEPTED, reason=f"the access token of a client: {refusal.reason}") from None
        until = min(granted.until, proof.principal.expires)
        self._granted[fingerprint] = granted._replace(until=until)
        return proof._replace(until=min(until, proof.until))

    async def _ask(self, credential: Basic) -> _Granted:
        """Return what the issuer grants to the client, or why it does not."""
        if self._waiting >= AT_ONCE + WAITING:
            raise Throttled(
                "Too many clients are being proved at once: try again shortly.",
                reason=f"{self._waiting} calls to {self.url} wait",
            )
        who = ClientPolicy(
            credential.username, credential.password, auth_method=self._policy.client_auth, timeout=self._policy.timeout
        )
        configured = {"token_endpoint": self._policy.token_endpoint}
        provider = Provider(self.url, self._issuer.discover, self._issuer.allow_http, configured)
        endpoints = Endpoints(provider, who, self._client)
        began = time.time()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._policy.timeout), self._slots:
                answer = await endpoints.ask_for_tokens(self._policy.form())
        except TokenError as problem:
            raise self._refusal(problem.error) from None
        except (FetchError, TimeoutError) as problem:
            self.outcomes["unavailable"] += 1
            raise out_of_reach(str(problem) or f"{self.url}: no answer in time") from None
        except OutOfReach:
            self.outcomes["unavailable"] += 1
            raise
        finally:
            self._waiting -= 1
        self.outcomes["granted"] += 1
        return _Granted(answer.access_token, began + self._policy.remember)

    def _refusal(self, error: str) -> Rejected | OutOfReach:
        """Return what an error of the token endpoint means; its own words are a stranger's, and are not repeated."""
        if error in _ABOUT_THE_CLIENT:
            self.outcomes["refused"] += 1
            return Rejected(_WRONG, reason=f"the token endpoint of {self.url} answered {error}")
        self.outcomes["unavailable"] += 1
        named = error if error in _ABOUT_US else "with an error of its own"
        reason = f"the token endpoint of {self.url} answered {named}: check client_credentials, and the client there"
        log.warning("%s", reason)
        return OutOfReach(
            "The identity provider does not grant what this service asks it for: tell whoever runs this.", reason=reason
        )

    # what replicas share ----------------------------------------------------------------------------------

    def _name_of(self, credential: Basic) -> str:
        """Return what stands for the pair, and for what is asked, where replicas share it."""
        if self._shared is None:
            return ""
        asked = {"issuer": self.url, **asdict(self._policy), "clients": ""}
        secret = json.dumps([{**asked, "scopes": sorted(self._policy.scopes)}, *credential])
        return "grant:" + self._shared.seal.name_of(secret.encode())

    async def _fetch(self, name: str) -> _Granted | None:
        """Return what another replica was granted, if it may still be remembered."""
        if self._shared is None:
            return None
        with suppress(StoreUnavailable):
            opened = self._shared.seal.open(name, await self._shared.store.recall(name) or "")
            if opened is not None:
                token, until = json.loads(opened)
                return _Granted(token, until) if time.time() < until else None
        return None

    async def _keep(self, name: str, until: float, granted: _Granted) -> None:
        """Let the other replicas have it; a value that was put under another name opens for nobody."""
        left = until - time.time()
        if self._shared is not None and left > 0:
            sealed = self._shared.seal.seal(name, json.dumps([granted.token, until]).encode())
            with suppress(StoreUnavailable):
                await self._shared.store.keep(name, sealed, left)
