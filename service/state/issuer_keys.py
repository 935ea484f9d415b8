"""The cache of issuers' keys.

The cache outlives every configuration. How long keys may be used is policy and is passed in with each call, so a limit
that a reload tightens applies to cached keys as well. Concurrent requests share one fetch. The cool-down that delays
the next fetch starts *before* the fetch does, so a flood of unknown key ids causes at most one fetch in each cool-down.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from service.adapters.discovery import KeySource, fetch_published
from service.adapters.jwks import NO_KEYS, KeySet, parse_jwks
from service.adapters.outbound import MisconfiguredError
from service.core.model import ALGORITHMS
from service.state.single_flight import SingleFlight

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000  # requests that may wait for one fetch; others do not wait
REFRESH_AT: Final = 0.8  # of a key set's lifetime, which leaves time for a retry
FIRST_RETRY: Final = 1.0  # seconds
LAST_RETRY: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """How long keys are used, in seconds.

    ``refresh``: a key that the issuer removed is accepted at most this long, while the issuer answers.
    ``max_stale``: the same, while the issuer does not answer.
    ``cooldown``: the minimum time between two fetches that requests cause.
    ``min_refresh``: the shortest lifetime that the issuer's Cache-Control can ask for.
    ``timeout``: the limit for one fetch, discovery included.
    """

    refresh: float = 300.0
    min_refresh: float = 30.0
    max_stale: float = 86_400.0
    cooldown: float = 5.0
    timeout: float = 5.0

    def lifetime(self, max_age: float | None) -> float:
        """Return the lifetime of keys in seconds. ``max_age`` is that of the response in seconds, or None."""
        return self.refresh if max_age is None else min(max(max_age, self.min_refresh), self.refresh)


class IssuerKeys:
    """The keys and the discovery document of one issuer. ``on_change`` is called when a fetch brings different keys."""

    def __init__(
        self, source: KeySource, client: httpx.AsyncClient, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.source = source
        self.keys: KeySet = NO_KEYS
        self.metadata: Mapping[str, Any] = {}  # the discovery document
        self.fetches = 0
        self.failures = 0
        self.last_problem = ""
        self.misconfigured = False  # whether that is a mistake of the configuration
        self.fetched_at = float("-inf")  # monotonic: when the last successful fetch began
        self.fetched_wall = float("-inf")  # the same moment in seconds since the epoch
        self._client = client
        self._on_change = on_change
        self._max_age: float | None = None
        self._cool_until = float("-inf")  # monotonic
        self._waiting = 0
        self._flight: SingleFlight[KeySource, None] = SingleFlight()

    @property
    def age(self) -> float | None:
        """Return the seconds since the last successful fetch, or None before the first."""
        return None if self.fetched_at == float("-inf") else time.monotonic() - self.fetched_at

    @property
    def retry_after(self) -> int:
        """Return the seconds until a request may cause the next fetch; at least 1."""
        return max(1, round(self._cool_until - time.monotonic() + 0.5)) if self._cool_until > 0 else 1

    async def keep_fresh(self, policy: KeyPolicy) -> None:
        """Fetch the keys now and again before they expire, until cancelled. Retry failures with increasing pauses."""
        failed_in_a_row = 0
        while True:
            if await self.refresh(policy):
                failed_in_a_row = 0
                pause = policy.lifetime(self._max_age) * REFRESH_AT
            else:
                pause = min(FIRST_RETRY * 2**failed_in_a_row, LAST_RETRY, policy.refresh)
                failed_in_a_row = min(failed_in_a_row + 1, 10)
            await asyncio.sleep(pause * random.uniform(0.9, 1.0))  # noqa: S311 - spreads replicas, no secret

    async def refresh_for_request(self, policy: KeyPolicy) -> None:
        """Fetch the keys or wait for a running fetch, unless the cool-down or ``MAX_WAITING`` forbids it."""
        may_fetch = self.source in self._flight or time.monotonic() >= self._cool_until
        if not may_fetch or self._waiting >= MAX_WAITING:
            return
        if self.source not in self._flight:
            self._cool_until = time.monotonic() + policy.cooldown
        self._waiting += 1
        try:
            await self.refresh(policy)
        finally:
            self._waiting -= 1

    async def refresh(self, policy: KeyPolicy) -> bool:
        """Fetch the keys or wait for a running fetch; tell whether it succeeded."""
        try:
            await self._flight.run(self.source, lambda: self._fetch(policy))
        except Exception:  # noqa: BLE001 - _fetch() has logged it
            return False
        return True

    async def close(self) -> None:
        """Cancel a running fetch."""
        await self._flight.cancel()

    async def _fetch(self, policy: KeyPolicy) -> None:
        self.fetches += 1
        began, began_wall = time.monotonic(), time.time()
        try:
            async with asyncio.timeout(policy.timeout):
                published = await fetch_published(self._client, self.source, policy.timeout)
            keys = parse_jwks(published.jwks, ALGORITHMS, self.source.issuer)
        except Exception as problem:
            self.failures += 1
            self.last_problem = f"{type(problem).__name__}: {problem!s:.400}"
            self.misconfigured = isinstance(problem, MisconfiguredError)
            log.warning(
                "issuer %s: keys not refreshed (%d keys at hand): %s",
                self.source.issuer,
                len(self.keys),
                self.last_problem,
            )
            raise
        self.metadata = published.metadata or self.metadata
        self.fetched_at, self.fetched_wall, self._max_age = began, began_wall, published.max_age
        self.last_problem, self.misconfigured = "", False
        if keys != self.keys:
            log.info("issuer %s: %d usable keys (were %d)", self.source.issuer, len(keys), len(self.keys))
            self.keys = keys
            self._on_change()


class KeysByIssuer:
    """The key caches of all issuers. The provider for sign-in has its own, even if it also issues machines' tokens."""

    def __init__(self, client: httpx.AsyncClient, on_change: Callable[[], None]) -> None:
        self._client = client
        self._on_change = on_change
        self._keys: dict[tuple[str, KeySource], IssuerKeys] = {}

    def of_tokens(self, source: KeySource) -> IssuerKeys:
        """Return the cache of the keys that verify access tokens."""
        return self._of("tokens", source, self._on_change)

    def of_sign_in(self, source: KeySource) -> IssuerKeys:
        """Return the cache of the keys that verify ID tokens."""
        return self._of("sign-in", source, lambda: None)

    def _of(self, purpose: str, source: KeySource, on_change: Callable[[], None]) -> IssuerKeys:
        found = self._keys.get((purpose, source))
        if found is None:
            found = self._keys[purpose, source] = IssuerKeys(source, self._client, on_change)
        return found

    def keep_only(self, in_use: Collection[IssuerKeys]) -> None:
        """Drop the caches of issuers that are no longer configured."""
        self._keys = {name: keys for name, keys in self._keys.items() if keys in in_use}

    async def close(self) -> None:
        """Cancel all running fetches."""
        for keys in self._keys.values():
            await keys.close()
