"""Discovery and the JWKS cache: an issuer's keys, at hand while strangers knock and while the issuer is down.

One task an issuer keeps the keys fresh; requests only read. A request fetches in two cases: a key id that is
not known, or no keys yet. Then there is one fetch for all who wait (single flight), and the cool-down that
forbids the next one is armed *before* it starts, so a stranger's invented key ids cost one fetch a cool-down.
"""

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
from jose.backends.base import Key

from service.adapters.jwks import NO_KEYS, KeySet, parse_jwks
from service.adapters.outbound import FetchError, call, plain_http_from
from service.core.errors import OutOfReach, Rejected
from service.core.model import IssuerTrust
from service.core.problems import Problem

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1000  # requests that wait for one fetch; more are put off at once
REFRESH_AT: Final = 0.8  # of a key set's lifetime: before it ends, with time for a second try
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 30.0
MAX_DIGITS: Final = 10
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=\"?(\d{1,9})")


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """How long keys are believed, in seconds.

    ``refresh`` bounds how long a removed key stays accepted while the issuer answers, ``max_stale`` while it
    does not. ``cooldown`` is the least time between two fetches that requests cause. ``min_refresh`` bounds
    what the issuer's Cache-Control may ask for. ``timeout`` bounds one fetch, discovery included.
    """

    refresh: float = 300.0
    min_refresh: float = 30.0
    max_stale: float = 86_400.0
    cooldown: float = 5.0
    timeout: float = 5.0


class Issuer:
    """One issuer's trust and its keys."""

    def __init__(
        self,
        trust: IssuerTrust,
        *,
        jwks_url: str | None = None,
        policy: KeyPolicy | None = None,
        allow_http: bool = False,
        client: httpx.AsyncClient,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.trust = trust
        self.policy = policy or KeyPolicy()
        self.fetches = 0
        self.failures = 0
        self.last_problem = ""
        self.metadata: Mapping[str, Any] = {}  # the last good discovery document
        self._jwks_url = jwks_url
        self.allow_http = plain_http_from(jwks_url or trust.issuer, allow_http=allow_http)
        self._client = client
        self._on_change = on_change
        self._keys: KeySet = NO_KEYS
        self._fetched_at: float | None = None  # monotonic
        self._fetched_wall = 0.0
        self._usable_until = 0.0  # monotonic
        self._lifetime = self.policy.refresh
        self._cool_until = 0.0  # monotonic
        self._waiting = 0
        self._flight: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def succeed(self, before: "Issuer") -> None:
        """Take over the counts, and the keys if they would be fetched alike, from who stood for this issuer so far."""
        self.fetches, self.failures, self.last_problem = before.fetches, before.failures, before.last_problem
        source = (self.trust.issuer, self._jwks_url, self.trust.algorithms, self.allow_http)
        theirs = (before.trust.issuer, before._jwks_url, before.trust.algorithms, before.allow_http)
        if source != theirs or before._fetched_at is None:
            return
        self.metadata, self._keys = before.metadata, before._keys
        self._fetched_at, self._fetched_wall = before._fetched_at, before._fetched_wall
        self._usable_until = before._fetched_at + self.policy.max_stale
        self._cool_until = before._cool_until

    # what requests ask ------------------------------------------------------------------------------------

    def key_at_hand(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key if it is cached and the cache is still to be believed."""
        return self._keys.find(kid, algorithm) if time.monotonic() < self._usable_until else None

    async def find_key(self, kid: str | None, algorithm: str, unverified_issued_at: Any) -> Key:
        """Return a key that is not at hand, fetching at most once a cool-down, or say why there is none.

        Raises Rejected where the issuer has no such key, and OutOfReach where that cannot be told: the keys
        cannot be had, or those at hand are older than the token claims to be and must not be fetched yet. A
        caller who gave up on that (Prefect's worker ends at its first 401) would be lost to a key rotation.
        """
        known = self.warm and self._keys.knows(kid)
        if not known:
            await self._refresh_for_a_request()
        key = self.key_at_hand(kid, algorithm)
        if key is not None:
            return key
        if not self.warm:
            raise OutOfReach(
                Problem.KEYS_OUT_OF_REACH,
                retry_after=self._retry_after(),
                issuer=self.trust.issuer,
                because=self.last_problem or "no usable key",
            )
        if not known and _is_number(unverified_issued_at) and unverified_issued_at > self._fetched_wall:
            raise OutOfReach(Problem.KEY_NOT_KNOWN_YET, retry_after=self._retry_after(), kid=str(kid)[:100])
        raise Rejected(Problem.SIGNING_KEY_UNKNOWN, kid=str(kid)[:100], algorithm=algorithm, keys=len(self._keys))

    async def discover(self) -> Mapping[str, Any]:
        """Return the discovery document as it was last fetched with the keys, or raise OutOfReach before the first.

        An issuer that was given its ``jwks_url`` discovers nothing.
        """
        if not self.metadata:
            await self._refresh_for_a_request()
        if not self.metadata:
            raise OutOfReach(
                Problem.ISSUER_OUT_OF_REACH,
                retry_after=self._retry_after(),
                issuer=self.trust.issuer,
                because=self.last_problem or "nothing discovered",
            )
        return self.metadata

    async def _refresh_for_a_request(self) -> None:
        """Fetch, or wait for the fetch that is under way, unless it is too early, or too many wait already."""
        may_fetch = self._flight is not None or time.monotonic() >= self._cool_until
        if may_fetch and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                await self.refresh(by_request=True)
            finally:
                self._waiting -= 1

    def _retry_after(self) -> int:
        return max(1, round(self._cool_until - time.monotonic() + 0.5))

    @property
    def warm(self) -> bool:
        """Tell whether there are keys that may be believed now."""
        return len(self._keys) > 0 and time.monotonic() < self._usable_until

    @property
    def key_count(self) -> int:
        """Return how many keys are cached."""
        return len(self._keys)

    @property
    def age(self) -> float | None:
        """Return the seconds since the last successful fetch, or None before the first."""
        return None if self._fetched_at is None else time.monotonic() - self._fetched_at

    @property
    def believed_until(self) -> float:
        """Return until when, in seconds since the epoch, a verdict on these keys may be remembered."""
        return time.time() + self._usable_until - time.monotonic()

    # what keeps them fresh --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep the keys fresh; the first fetch starts now and nobody waits for it."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keys of {self.trust.issuer}")

    async def stop(self) -> None:
        """End the background work."""
        for task in (self._keeper, self._flight):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def _keep(self) -> None:
        failed_in_a_row = 0
        while True:
            if await self.refresh():
                failed_in_a_row = 0
                pause = self._lifetime * REFRESH_AT
            else:
                pause = min(FIRST_RETRY * 2**failed_in_a_row, LAST_RETRY, self._lifetime)
                failed_in_a_row = min(failed_in_a_row + 1, 10)
            await asyncio.sleep(pause * random.uniform(0.9, 1.0))  # noqa: S311 - spreads replicas, no secret

    async def refresh(self, *, by_request: bool = False) -> bool:
        """Fetch the keys, or wait for the fetch that is under way; tell whether it succeeded."""
        if self._flight is None:
            if by_request:
                self._cool_until = time.monotonic() + self.policy.cooldown
            self._flight = asyncio.create_task(self._fetch_once())
            self._flight.add_done_callback(self._landed)
        flight = self._flight
        await asyncio.wait([flight])
        return not flight.cancelled() and flight.exception() is None

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flight = None
        if flight.cancelled():
            return
        problem = flight.exception()
        if problem is None:
            return
        self.failures += 1
        self.last_problem = f"{type(problem).__name__}: {problem!s:.300}"
        have = f"serving {len(self._keys)} keys" if self.warm else "no usable keys"
        log.warning("issuer %s: keys not refreshed (%s): %s", self.trust.issuer, have, self.last_problem)

    async def _fetch_once(self) -> None:
        self.fetches += 1
        began, began_wall = time.monotonic(), time.time()
        async with asyncio.timeout(self.policy.timeout):
            document, max_age = await self._fetch_jwks()
        keys = parse_jwks(document, self.trust.algorithms, self.trust.issuer)
        ceiling = self.policy.refresh
        self._lifetime = ceiling if max_age is None else min(max(max_age, self.policy.min_refresh), ceiling)
        self._fetched_at, self._fetched_wall = began, began_wall
        self._usable_until = began + self.policy.max_stale
        self.last_problem = "" if len(keys) else "the issuer publishes no usable key"
        if keys != self._keys:
            log.info("issuer %s: %d usable keys (were %d)", self.trust.issuer, len(keys), len(self._keys))
            self._keys = keys
            self._on_change()

    async def _fetch_jwks(self) -> tuple[bytes, float | None]:
        url = self._jwks_url
        if url is None:
            discovery_url = self.trust.issuer.rstrip("/") + "/.well-known/openid-configuration"
            document, _ = await self._get(discovery_url)
            self.metadata = parse_discovery(document, self.trust.issuer)
            url = self.metadata["jwks_uri"]
        return await self._get(url)

    async def _get(self, url: str) -> tuple[bytes, float | None]:
        """Return a bounded body and its max-age; no redirect is followed, no other scheme is opened."""
        answer = await call(self._client, "GET", url, allow_http=self.allow_http, timeout=self.policy.timeout)
        if answer.status != httpx.codes.OK:
            raise FetchError(f"{url} answered {answer.status}, expected 200 (redirects are not followed)")
        return answer.body, parse_max_age(answer.headers)


def parse_discovery(document: bytes, issuer: str) -> dict[str, Any]:
    """Return a discovery document that speaks for this very issuer and names its keys (OIDC Discovery §4.3)."""
    try:
        metadata = json.loads(document)
    except (ValueError, RecursionError):
        raise FetchError("the discovery document is not JSON") from None
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        named = metadata.get("issuer") if isinstance(metadata, dict) else None
        raise FetchError(f"the discovery document is of issuer {named!r:.200}, expected exactly {issuer!r}")
    if not isinstance(metadata.get("jwks_uri"), str):
        raise FetchError("the discovery document has no jwks_uri")
    return metadata


def parse_max_age(headers: httpx.Headers) -> float | None:
    """Return for how many seconds a response is fresh (RFC 9111 §4.2), 0 if it may not be cached, or None."""
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    match = _MAX_AGE.search(control)
    if match is None:
        return None
    age = headers.get("age", "0")
    return max(0.0, float(match[1]) - (float(age) if age.isdecimal() and len(age) < MAX_DIGITS else 0.0))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
