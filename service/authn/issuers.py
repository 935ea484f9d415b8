"""Whose tokens are believed: an issuer as it is configured, over the keys that it publishes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jose.backends.base import Key

from service.adapters.oauth_endpoints import Provider
from service.core.errors import OutOfReach, Problem, Rejected
from service.core.model import IssuerTrust
from service.state.issuer_keys import IssuerKeys, KeyPolicy


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer: what is believed of its tokens, its keys, and for how long those are believed."""

    trust: IssuerTrust
    keys: IssuerKeys
    policy: KeyPolicy = field(default_factory=KeyPolicy)

    def key_at_hand(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key if it is at hand and may still be believed."""
        keys = self.keys
        if time.monotonic() < keys.fetched_at + self.policy.max_stale:
            return keys.keys.find(kid, algorithm)
        return None

    async def find_key(self, kid: str | None, algorithm: str, unverified_issued_at: Any) -> Key:
        """Return a key that is not at hand, fetching at most once a cool-down, or say why there is none.

        Raises Rejected where the issuer has no such key, and OutOfReach where that cannot be told: the keys cannot be
        had, or those at hand are older than the token claims to be and must not be fetched yet. A caller who gave up
        on that (Prefect's worker ends at its first 401) would be lost to a key rotation.
        """
        asked = time.monotonic()
        known = self.warm and self.keys.keys.knows(kid)
        if not known:
            await self.keys.refresh_for_request(self.policy)
        key = self.key_at_hand(kid, algorithm)
        if key is not None:
            return key
        if not self.warm:
            raise OutOfReach(
                Problem.KEYS_OUT_OF_REACH,
                issuer=self.trust.issuer,
                because=self.problem,
                retry_after=self.keys.retry_after,
            )
        looked_up_since = known or self.keys.fetched_at >= asked
        if not looked_up_since and _may_be_later(unverified_issued_at, self.keys.fetched_wall):
            raise OutOfReach(Problem.KEY_NOT_KNOWN_YET, kid=kid, retry_after=self.keys.retry_after)
        raise Rejected(Problem.SIGNING_KEY_UNKNOWN, kid=kid, algorithm=algorithm, keys=self.key_count)

    async def discover(self) -> Mapping[str, Any]:
        """Return the discovery document as it was last fetched with the keys, or raise OutOfReach before the first.

        An issuer that was given its ``jwks_url`` discovers nothing.
        """
        if not self.keys.metadata:
            await self.keys.refresh_for_request(self.policy)
        if not self.keys.metadata:
            raise OutOfReach(Problem.ISSUER_OUT_OF_REACH, because=self.problem, retry_after=self.keys.retry_after)
        return self.keys.metadata

    def as_provider(self, **configured: str) -> Provider:
        """Return the issuer as one whose endpoints are called; ``configured`` are those that need no discovery."""
        return Provider(self.trust.issuer, self.discover, self.keys.source.allow_http, configured)

    @property
    def warm(self) -> bool:
        """Tell whether there are keys that may be believed now."""
        return self.key_count > 0 and time.monotonic() < self.keys.fetched_at + self.policy.max_stale

    @property
    def key_count(self) -> int:
        """Return how many keys are at hand that may verify with an accepted algorithm."""
        return self.keys.keys.usable(self.trust.algorithms)

    @property
    def problem(self) -> str:
        """Return why there are no usable keys, or why the last fetch failed; an empty text if all is well."""
        if self.keys.last_problem or self.key_count:
            return self.keys.last_problem
        return "not fetched yet" if self.keys.age is None else "the issuer publishes no usable key"

    @property
    def believed_until(self) -> float:
        """Return until when, in seconds since the epoch, a verdict on these keys may be remembered."""
        return time.time() + self.keys.fetched_at + self.policy.max_stale - time.monotonic()


def _may_be_later(unverified_issued_at: object, fetched: float) -> bool:
    """Tell whether a token may have been issued after the keys were fetched; both in seconds since the epoch.

    A whole number stands for all of its second.
    """
    if isinstance(unverified_issued_at, bool) or not isinstance(unverified_issued_at, int | float):
        return False
    ends = unverified_issued_at + 1 if isinstance(unverified_issued_at, int) else unverified_issued_at
    return ends > fetched
