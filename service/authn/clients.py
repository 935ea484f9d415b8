"""Verifies client ids and secrets at their issuer, by a client-credentials grant (RFC 6749 §4.4).

The access token that the issuer grants is remembered. It is verified on each look-up like a token that a caller sends,
so a removed key, another role or another audience takes effect at once. Replicas share it through the store: sealed,
under a name that is an HMAC of the id, the secret and the token request.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import httpx
from cachetools import TTLCache

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import Endpoints, NoTokenError, TokenError, out_of_reach
from service.adapters.outbound import FetchError
from service.adapters.store import Store, StoreUnavailable
from service.authn.issuers import Issuer
from service.authn.seal import Seal
from service.authn.tokens import Tokens
from service.core.errors import OutOfReach, Rejected, Unclear
from service.core.globs import matches_any
from service.core.model import Basic, Bearer, Proof
from service.core.problems import Cause, Problem
from service.state.client_tokens import MAX_CLIENTS, ClientToken, ClientTokens, GrantPolicy, Outcome, request_of
from service.state.concurrency import ConcurrencyLimit, RefusalDelay
from service.state.single_flight import SingleFlight

log = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 8  # running token requests to one issuer
MAX_DESCRIPTION: Final = 200  # characters of an error_description in the log
REFUSED_SECONDS: Final = 15.0  # for which a refused client is not verified again
CALLS_WAITING: Final = 64  # callers that may wait for one; others are answered 429
_UNAUTHENTICATED: Final = frozenset({401, 403})  # statuses of a refusal without an error response
# RFC 6749 §5.2, and the error that Auth0 sends instead of the first
_ABOUT_THE_SECRET: Final = frozenset({"invalid_client", "invalid_grant", "access_denied"})
_ABOUT_THE_REQUEST: Final = frozenset(
    {"invalid_request", "unsupported_grant_type", "invalid_scope", "invalid_target", "unauthorized_client"}
)


class Shared(NamedTuple):
    """The store in which replicas share tokens, and the seal whose key they share."""

    store: Store
    seal: Seal


class Clients:
    """The clients of one issuer. ``tokens`` verifies what it grants them, and accepts no other issuer's tokens."""

    def __init__(
        self,
        issuer: Issuer,
        policy: GrantPolicy,
        tokens: Tokens,
        client: httpx.AsyncClient,
        memory: ClientTokens,
        delay: RefusalDelay,
        *,
        shared: Shared | None = None,
    ) -> None:
        self.url = issuer.trust.issuer
        self._issuer = issuer
        self._policy = policy
        self._client = client
        self._memory = memory
        self._shared = shared
        self._asked = policy.asked(self.url)
        self._tokens = tokens
        self._refused: TTLCache[bytes, Cause] = TTLCache(MAX_CLIENTS, REFUSED_SECONDS)
        self._flights: SingleFlight[bytes, Proof] = SingleFlight()
        self._limit = ConcurrencyLimit(CALLS_AT_ONCE, CALLS_WAITING, delay, Problem.CLIENT_CHECKS_FULL, issuer=self.url)

    def takes(self, username: str) -> bool:
        """Tell whether this name is configured as a client of this issuer."""
        return matches_any(self._policy.clients, username)

    async def authenticate(self, credential: Basic) -> Proof:
        """Return the principal of the client's access token. Callers with the same pair share one token request.

        Raises Rejected if the issuer refuses the client or its token is not accepted here, OutOfReach if the issuer
        does not answer, and Throttled if too many callers wait for it.
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
            with suppress(Rejected):  # the keys or the accepted audiences have changed
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
        """Return the proof of an access token, and remember the token while it may be used."""
        try:
            proof = await self._tokens.authenticate(Bearer(granted.token.encode()))
        except Rejected as refusal:
            if refusal.problem is Problem.TOKEN_NOT_A_JWT:
                raise Rejected(Problem.CLIENT_TOKEN_NOT_A_JWT, issuer=self.url) from None
            if refusal.problem is Problem.TOKEN_ENCRYPTED:
                raise Rejected(Problem.CLIENT_TOKEN_ENCRYPTED, issuer=self.url) from None
            raise Rejected(Problem.CLIENT_TOKEN_NOT_ACCEPTED, because=refusal.cause) from None
        until = min(granted.until, proof.principal.expires)
        self._memory.granted[key] = granted._replace(until=until)
        return proof._replace(until=min(until, proof.until))

    async def _ask(self, credential: Basic) -> ClientToken:
        """Request an access token for the client."""
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
            raise self._refusal(problem, endpoints.hint) from None
        except NoTokenError as problem:
            if problem.status in _UNAUTHENTICATED:
                self._count("refused")
                facts = {"issuer": self.url, "error": f"status {problem.status}", "description": "", **endpoints.hint}
                raise Rejected(Problem.PAIR_WRONG_AT_ISSUER, **facts) from None
            self._count("unavailable")
            raise Unclear(Problem.ISSUER_OUT_OF_REACH, because=str(problem)) from None
        except (FetchError, TimeoutError) as problem:
            self._count("unavailable")
            raise out_of_reach(str(problem) or f"{self.url}: no answer in time") from None
        except OutOfReach:
            self._count("unavailable")
            raise
        self._count("granted")
        return ClientToken(answer.access_token, began + self._policy.remember)

    def _refusal(self, problem: TokenError, hint: Mapping[str, str]) -> Rejected | OutOfReach:
        """Return the refusal for an error response (RFC 6749 §5.2). An error code that is not known is not repeated.

        Status 401 says that the client could not be authenticated. Keycloak then writes ``unauthorized_client``, both
        for a wrong secret and for a client without service accounts.
        """
        known = problem.error in _ABOUT_THE_SECRET | _ABOUT_THE_REQUEST
        error = problem.error if known else "an error of its own"
        description = problem.description if known and problem.description.isprintable() else ""
        description = description[:MAX_DESCRIPTION]
        refused = self._kind_of_refusal(problem)
        if refused is not None:
            self._count("refused")
            facts = {} if refused is Problem.CLIENT_NOT_AUTHORIZED else hint
            return Rejected(refused, issuer=self.url, error=error, description=description, **facts)
        self._count("unavailable")
        log.warning(
            "the token endpoint of %s answered %s (%s): check client_credentials, and the client there",
            self.url,
            error,
            description,
        )
        kind = OutOfReach if known else Unclear
        return kind(Problem.GRANT_REFUSED, issuer=self.url, error=error, description=description)

    @staticmethod
    def _kind_of_refusal(problem: TokenError) -> Problem | None:
        """Return what an error response says of the client, or None if it is about the request."""
        unauthenticated = problem.status == httpx.codes.UNAUTHORIZED
        if problem.error == "unauthorized_client":
            return Problem.CLIENT_REFUSED if unauthenticated else Problem.CLIENT_NOT_AUTHORIZED
        if problem.error == "access_denied" and not unauthenticated:
            return Problem.CLIENT_NOT_AUTHORIZED
        return Problem.PAIR_WRONG_AT_ISSUER if problem.error in _ABOUT_THE_SECRET else None

    def _count(self, outcome: Outcome) -> None:
        self._memory.outcomes[self.url, outcome] += 1

    # what replicas share ----------------------------------------------------------------------------------

    def _shared_name(self, credential: Basic) -> str:
        """Return the name of the shared token in the store, or an empty string without a store."""
        if self._shared is None:
            return ""
        return "grant:" + self._shared.seal.name_of(request_of(credential, self._asked))

    async def _fetch(self, name: str) -> ClientToken | None:
        """Return the token that another replica has stored, if it may still be used."""
        if self._shared is None:
            return None
        with suppress(StoreUnavailable):
            opened = self._shared.seal.open(name, await self._shared.store.recall(name) or "")
            if opened is not None:
                token, until = json.loads(opened)
                return ClientToken(token, until) if time.time() < until else None
        return None

    async def _keep(self, name: str, until: float, granted: ClientToken) -> None:
        """Store the token for the other replicas. A value that is moved to another name cannot be opened."""
        left = until - time.time()
        if self._shared is not None and left > 0:
            sealed = self._shared.seal.seal(name, json.dumps([granted.token, until]).encode())
            with suppress(StoreUnavailable):
                await self._shared.store.keep(name, sealed, left)
