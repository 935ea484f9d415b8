"""Asks an issuer about opaque tokens (RFC 7662), and remembers its answers for a while.

What an answer is worth is for ``core.identity.claims`` to say, on each use. Whatever is no clear answer is 503.
"""

import asyncio
import logging
import time
from typing import Final

import httpx

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import Endpoints, out_of_reach
from service.adapters.outbound import FetchError
from service.authn.issuers import Issuer
from service.core.errors import OutOfReach, Rejected
from service.core.identity.claims import MAX_NUMERIC_DATE
from service.core.problems import Problem
from service.state.concurrency import ConcurrencyLimit, RefusalDelay
from service.state.introspections import ActiveToken, IntrospectionPolicy, Introspections, Outcome
from service.state.single_flight import SingleFlight

log = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 8  # to one issuer, about tokens of each kind
CALLS_WAITING: Final = 64  # callers that may wait for one; others are answered 429
_REFUSED_US: Final = frozenset({401, 403})


class Introspection:
    """Asks one issuer about opaque tokens."""

    def __init__(
        self,
        issuer: Issuer,
        policy: IntrospectionPolicy,
        client: httpx.AsyncClient,
        memory: Introspections,
        delay: RefusalDelay,
    ) -> None:
        self.url = issuer.trust.issuer
        self._timeout, self._remember = policy.timeout, policy.remember
        self._memory = memory
        self._asked = policy.asked(self.url)
        who = ClientPolicy(
            policy.client_id, policy.client_secret, auth_method=policy.client_auth, timeout=policy.timeout
        )
        self._endpoints = Endpoints(issuer.as_provider(introspection_endpoint=policy.endpoint), who, client)
        self._flights: SingleFlight[bytes, ActiveToken] = SingleFlight()
        # invented tokens queue apart from those that were active, which workers go on sending
        self._of_known, self._of_others = (
            ConcurrencyLimit(CALLS_AT_ONCE, CALLS_WAITING, delay, Problem.TOKEN_CHECKS_FULL, issuer=self.url)
            for _ in range(2)
        )

    async def ask(self, token: bytes) -> ActiveToken:
        """Return what the issuer says of a token that is active. Callers with the same token share one call.

        Raises Rejected if the token is not active, OutOfReach if the issuer gives no clear answer, and Throttled if too
        many callers wait for one.
        """
        key = self._memory.key_of(token, self._asked)
        known = self._memory.active.get(key)
        if known is not None and time.time() < known.until:
            return known
        if key in self._memory.inactive:
            raise Rejected(Problem.TOKEN_NOT_ACTIVE, issuer=self.url)
        limit = self._of_others if known is None else self._of_known
        return await self._flights.run(key, lambda: self._ask(token.decode("ascii"), key, limit))

    async def _ask(self, token: str, key: bytes, limit: ConcurrencyLimit) -> ActiveToken:
        began = time.time()
        try:
            async with asyncio.timeout(self._timeout), limit.slot():
                status, answer = await self._endpoints.introspect(token)
        except (FetchError, TimeoutError) as problem:
            self._count("unavailable")
            raise out_of_reach(str(problem) or f"{self.url}: no answer in time") from None
        except OutOfReach:
            self._count("unavailable")
            raise
        active = answer.get("active") if status == httpx.codes.OK else None
        if active is True:
            self._count("active")
            found = self._memory.active[key] = ActiveToken(answer, self._until(answer.get("exp"), began))
            return found
        if active is False:
            self._count("inactive")
            self._memory.active.pop(key, None)
            self._memory.inactive[key] = None
            raise Rejected(Problem.TOKEN_NOT_ACTIVE, issuer=self.url)
        self._count("unavailable")
        if status in _REFUSED_US:
            hint = "".join(f": {one}" for one in self._endpoints.hint.values())
            log.warning(
                "the introspection endpoint of %s answered %s: check introspection.client_id%s", self.url, status, hint
            )
        raise out_of_reach(f"{self.url}: the introspection endpoint answered {status}, and not whether it is active")

    def _until(self, expires: object, began: float) -> float:
        """Return until when an answer counts. An issuer whose clock is behind ours is asked once a second at most."""
        until = began + self._remember
        if isinstance(expires, int | float) and not isinstance(expires, bool) and 0 <= expires < MAX_NUMERIC_DATE:
            return min(until, max(expires, began + 1))
        return until

    def _count(self, outcome: Outcome) -> None:
        self._memory.outcomes[self.url, outcome] += 1
