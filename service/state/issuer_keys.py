"""The keys that issuers publish, as they were last fetched.

They outlive every configuration. How long they may be believed is policy, and is given with each question: so a bound
that a reload tightens holds for the keys at hand. There is one fetch at a time for all who wait, and the cool-down that
forbids the next one is armed *before* it starts, so a stranger's invented key ids cost one fetch a cool-down.
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
from service.core.model import ALGORITHMS
from service.state.single_flight import SingleFlight

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000  # requests that wait for one fetch; more are put off at once
REFRESH_AT: Final = 0.8  # of a key set's lifetime: before it ends, with time for a second try
FIRST_RETRY: Final = 1.0  # seconds
LAST_RETRY: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """How long keys are believed, in seconds.

    ``refresh`` bounds how long a removed key stays accepted while the issuer answers, ``max_stale`` while it does not.
    ``cooldown`` is the least time between two fetches that requests cause. ``min_refresh`` bounds what the issuer's
    Cache-Control may ask for. ``timeout`` bounds one fetch, discovery included.
    """

    refresh: float = 300.0
    min_refresh: float = 30.0
    max_stale: float = 86_400.0
    cooldown: float = 5.0
    timeout: float = 5.0

    def lifetime(self, max_age: float | None) -> float:
        """Return after how many seconds keys are fetched again that the issuer calls fresh for ``max_age``."""
        return self.refresh if max_age is None else min(max(max_age, self.min_refresh), self.refresh)


class IssuerKeys:
    """What one issuer published last. ``on_change`` is called when its keys are others than before."""

    def __init__(
        self, source: KeySource, client: httpx.AsyncClient, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.source = source
        self.keys: KeySet = NO_KEYS
        self.metadata: Mapping[str, Any] = {}  # the last good discovery document
        self.fetches = 0
        self.failures = 0
        self.last_problem = ""
        self.fetched_at = float("-inf")  # monotonic: when the last successful fetch began
        self.fetched_wall = float("-inf")  # the same, in seconds since the epoch
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
        """Return the seconds until a request may cause the next fetch, at least 1."""
        return max(1, round(self._cool_until - time.monotonic() + 0.5)) if self._cool_until > 0 else 1

    async def keep_fresh(self, policy: KeyPolicy) -> None:
        """Fetch now, and again before the keys get old, for ever; after a failure sooner, less and less often."""
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
        """Fetch, or wait for the fetch under way, unless the cool-down forbids it or too many wait already."""
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
        """Fetch the keys, or wait for the fetch that is under way; tell whether it succeeded."""
        try:
            await self._flight.run(self.source, lambda: self._fetch(policy))
        except Exception:  # noqa: BLE001 - _fetch() has told the log
            return False
        return True

    async def close(self) -> None:
        """End a fetch that is under way."""
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
            self.last_problem = f"{type(problem).__name__}: {problem!s:.300}"
            log.warning(
                "issuer %s: keys not refreshed (%d keys at hand): %s",
                self.source.issuer,
                len(self.keys),
                self.last_problem,
            )
            raise
        self.metadata = published.metadata or self.metadata
        self.fetched_at, self.fetched_wall, self._max_age = began, began_wall, published.max_age
        self.last_problem = ""
        if keys != self.keys:
            log.info("issuer %s: %d usable keys (were %d)", self.source.issuer, len(keys), len(self.keys))
            self.keys = keys
            self._on_change()


class KeysByIssuer:
    """The keys of every issuer that a configuration names; people's provider has keys of its own.

    Who may sign people in is not whose tokens machines may send, even where both are one server.
    """

    def __init__(self, client: httpx.AsyncClient, on_change: Callable[[], None]) -> None:
        self._client = client
        self._on_change = on_change
        self._keys: dict[tuple[str, KeySource], IssuerKeys] = {}

    def of_tokens(self, source: KeySource) -> IssuerKeys:
        """Return the keys that verify the tokens of machines."""
        return self._of("tokens", source, self._on_change)

    def of_sign_in(self, source: KeySource) -> IssuerKeys:
        """Return the keys that verify the ID tokens of people."""
        return self._of("sign-in", source, lambda: None)

    def _of(self, purpose: str, source: KeySource, on_change: Callable[[], None]) -> IssuerKeys:
        found = self._keys.get((purpose, source))
        if found is None:
            found = self._keys[purpose, source] = IssuerKeys(source, self._client, on_change)
        return found

    def keep_only(self, in_use: Collection[IssuerKeys]) -> None:
        """Forget the issuers that no configuration names any more."""
        self._keys = {name: keys for name, keys in self._keys.items() if keys in in_use}

    async def close(self) -> None:
        """End every fetch that is under way."""
        for keys in self._keys.values():
            await keys.close()
