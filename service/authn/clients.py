"""Client ids and secrets: proved to their issuer by a client-credentials grant (RFC 6749 §4.4), and remembered.

What is remembered is the access token that the issuer gave, and it is verified like a token that a caller sends, each
time that it is asked about: a key that was removed, another role, another audience take effect at once. Replicas share
it under a name that is an HMAC of id, secret and what was asked for, sealed for this very name.
"""

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import httpx
from cachetools import TTLCache

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import Endpoints, TokenError, out_of_reach
from service.adapters.outbound import FetchError
from service.adapters.store import Store, StoreUnavailable
from service.authn.issuers import Issuer
from service.authn.seal import Seal
from service.authn.tokens import Tokens
from service.core.errors import Cause, OutOfReach, Problem, Rejected
from service.core.globs import matches_any
from service.core.identity.grants import Grant
from service.core.model import Basic, Bearer, Proof
from service.state.client_tokens import MAX_CLIENTS, ClientToken, ClientTokens, GrantPolicy, Outcome, request_of
from service.state.concurrency import ConcurrencyLimit, RefusalDelay
from service.state.single_flight import SingleFlight

log = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 8  # to one issuer
REFUSED_SECONDS: Final = 15.0  # for which a refused pair is not asked about again
CALLS_WAITING: Final = 64  # callers who may wait for those; more are answered 429
# RFC 6749 §5.2, and what providers send in place of its first; any other error is about what this service asks for
_ABOUT_THE_CLIENT: Final = frozenset({"invalid_client", "unauthorized_client", "invalid_grant", "access_denied"})
_ABOUT_US: Final = frozenset({"invalid_request", "unsupported_grant_type", "invalid_scope", "invalid_target"})


class Shared(NamedTuple):
    """Where replicas share what they were granted, and the seal whose keys they have in common."""

    store: Store
    seal: Seal


class Clients:
    """The clients of one issuer."""

    def __init__(
        self,
        issuer: Issuer,
        policy: GrantPolicy,
        client: httpx.AsyncClient,
        memory: ClientTokens,
        delay: RefusalDelay,
        *,
        grants: Sequence[Grant] = (),
        shared: Shared | None = None,
    ) -> None:
        self.url = issuer.trust.issuer
        self._issuer = issuer
        self._policy = policy
        self._client = client
        self._memory = memory
        self._shared = shared
        self._asked = policy.asked(self.url)
        self._tokens = Tokens({self.url: issuer}, grants)  # no other issuer's token vouches for its clients
        self._refused: TTLCache[bytes, Cause] = TTLCache(MAX_CLIENTS, REFUSED_SECONDS)  # by what is accepted here
        self._flights: SingleFlight[bytes, Proof] = SingleFlight()
        self._limit = ConcurrencyLimit(CALLS_AT_ONCE, CALLS_WAITING, delay, Problem.CLIENT_CHECKS_FULL, issuer=self.url)

    def takes(self, username: str) -> bool:
        """Tell, by configuration alone, whether this name is one of a client of this issuer."""
        return matches_any(self._policy.clients, username)

    async def authenticate(self, credential: Basic) -> Proof:
        """Return whom the issuer says the client is; callers with the same pair share one call.

        Raises Rejected where the issuer refuses the pair, or its token is not accepted here; OutOfReach where it does
        not decide; Throttled where too many wait for it.
        """
        key = self._memory.key_of(credential, self._asked)
        return await self._flights.run(key, lambda: self._prove(credential, key))

    async def _prove(self, credential: Basic, key: bytes) -> Proof:
        refused = self._refused.get(key)
        if refused is not None:
            raise Rejected(refused.problem, **refused.facts)
        name = self._shared_name(credential)
        granted = self._memory.granted.get(key)
        if granted is None or time.time() >= granted.until:
            granted = await self._fetch(name)
        if granted is not None:
            with suppress(Rejected):  # it is by keys, or for an audience, of before
                return await self._believe(granted, key)
        try:
            granted = await self._ask(credential)
            proof = await self._believe(granted, key)
        except Rejected as refusal:
            self._refused[key] = refusal.cause
            raise
        await self._keep(name, proof.until, granted)
        return proof

    async def _believe(self, granted: ClientToken, key: bytes) -> Proof:
        """Return what a token proves here and now, and remember it for as long as it may be."""
        try:
            proof = await self._tokens.authenticate(Bearer(granted.token.encode()))
        except Rejected as refusal:
            raise Rejected(Problem.CLIENT_TOKEN_NOT_ACCEPTED, because=refusal.cause) from None
        until = min(granted.until, proof.principal.expires)
        self._memory.granted[key] = granted._replace(until=until)
        return proof._replace(until=min(until, proof.until))

    async def _ask(self, credential: Basic) -> ClientToken:
        """Return what the issuer grants to the client, or why it does not."""
        who = ClientPolicy(
            credential.username, credential.password, auth_method=self._policy.client_auth, timeout=self._policy.timeout
        )
        provider = self._issuer.as_provider(token_endpoint=self._policy.token_endpoint)
        endpoints = Endpoints(provider, who, self._client)
        began = time.time()
        try:
            async with asyncio.timeout(self._policy.timeout), self._limit.slot():
                answer = await endpoints.ask_for_tokens(self._policy.form())
        except TokenError as problem:
            raise self._refusal(problem.error) from None
        except (FetchError, TimeoutError) as problem:
            self._count("unavailable")
            raise out_of_reach(str(problem) or f"{self.url}: no answer in time") from None
        except OutOfReach:
            self._count("unavailable")
            raise
        self._count("granted")
        return ClientToken(answer.access_token, began + self._policy.remember)

    def _refusal(self, error: str) -> Rejected | OutOfReach:
        """Return what an error of the token endpoint means; its own words are a stranger's, and are not repeated."""
        if error in _ABOUT_THE_CLIENT:
            self._count("refused")
            return Rejected(Problem.PAIR_WRONG_AT_ISSUER, issuer=self.url, error=error)
        self._count("unavailable")
        named = error if error in _ABOUT_US else "an error of its own"
        log.warning(
            "the token endpoint of %s answered %s: check client_credentials, and the client there", self.url, named
        )
        return OutOfReach(Problem.GRANT_REFUSED, issuer=self.url, error=named)

    def _count(self, outcome: Outcome) -> None:
        self._memory.outcomes[self.url, outcome] += 1

    # what replicas share ----------------------------------------------------------------------------------

    def _shared_name(self, credential: Basic) -> str:
        """Return what stands for the pair, and for what is asked, where replicas share it."""
        if self._shared is None:
            return ""
        return "grant:" + self._shared.seal.name_of(request_of(credential, self._asked))

    async def _fetch(self, name: str) -> ClientToken | None:
        """Return what another replica was granted, if it may still be remembered."""
        if self._shared is None:
            return None
        with suppress(StoreUnavailable):
            opened = self._shared.seal.open(name, await self._shared.store.recall(name) or "")
            if opened is not None:
                token, until = json.loads(opened)
                return ClientToken(token, until) if time.time() < until else None
        return None

    async def _keep(self, name: str, until: float, granted: ClientToken) -> None:
        """Let the other replicas have it; a value that was put under another name opens for nobody."""
        left = until - time.time()
        if self._shared is not None and left > 0:
            sealed = self._shared.seal.seal(name, json.dumps([granted.token, until]).encode())
            with suppress(StoreUnavailable):
                await self._shared.store.keep(name, sealed, left)
