"""Issuers: what is accepted of an issuer's tokens, and the keys that verify them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from jose.backends.base import Key

from service.adapters.oauth_endpoints import Provider
from service.core.errors import OutOfReach, Rejected
from service.core.model import IssuerTrust, Principal
from service.core.problems import Problem
from service.state.issuer_keys import IssuerKeys, KeyPolicy


class TokenIssuer(Protocol):
    """An issuer whose access tokens can be verified."""

    @property
    def trust(self) -> IssuerTrust:
        """Return what its tokens must carry."""

    @property
    def believed_until(self) -> float:
        """Return until when a verdict is valid, in seconds since the epoch."""

    def key_at_hand(self, kid: str | None, algorithm: str) -> Key | None:
        """Return a key without waiting, or None."""

    def may_be_replaced(self, kid: str | None) -> bool:
        """Tell whether another key may have taken the place of the one for ``kid``."""

    async def find_key(
        self, kid: str | None, algorithm: str, unverified_issued_at: Any, *, instead_of: Key | None = None
    ) -> Key:
        """Return a key that is not at hand. Raises a Refusal."""

    def has_listed(self, claims: Mapping[str, Any]) -> bool:
        """Tell whether a verified token is in the issuer's list of tokens, or the issuer keeps none."""

    async def read_list(self) -> None:
        """Read what is new in the issuer's list of tokens."""

    def admit(self, principal: Principal, claims: Mapping[str, Any]) -> Principal:
        """Return the principal of a verified token, with what the issuer itself knows of it. Raises a Refusal."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One configured issuer: the trust in its tokens, its cached keys, and how long those are used."""

    trust: IssuerTrust
    keys: IssuerKeys
    policy: KeyPolicy = field(default_factory=KeyPolicy)

    def key_at_hand(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the cached key if there is one and it may still be used, or None."""
        keys = self.keys
        if time.monotonic() < keys.fetched_at + self.policy.max_stale:
            return keys.keys.find(kid, algorithm)
        return None

    def may_be_replaced(self, kid: str | None) -> bool:
        """Tell whether another key may have taken the place of the one for ``kid``: no id tells the two apart."""
        return not self.keys.keys.knows(kid)

    async def find_key(
        self, kid: str | None, algorithm: str, unverified_issued_at: Any, *, instead_of: Key | None = None
    ) -> Key:
        """Return a key that is not in the cache, after fetching the keys if the cool-down allows it.

        ``instead_of`` is a cached key that does not verify the token.

        Raises Rejected if the issuer has no such key. Raises OutOfReach if that is not known: the keys cannot be
        fetched, or the cached keys are older than the token's ``iat`` and the cool-down forbids a fetch. A Prefect
        worker stops at its first 401, so a 401 here would end workers when the issuer rotates its keys.
        """
        asked = time.monotonic()
        known = self.warm and self.keys.keys.knows(kid)
        if not known:
            await self.keys.refresh_for_request(self.policy)
        key = self.key_at_hand(kid, algorithm)
        if key is not None and key is not instead_of:
            return key
        if not self.warm:
            reached = self.keys.age is not None and not self.keys.last_problem
            self._refuse_misconfigured()
            raise OutOfReach(
                Problem.NO_USABLE_KEY if reached else Problem.KEYS_OUT_OF_REACH,
                issuer=self.trust.issuer,
                because=self.problem,
                retry_after=self.keys.retry_after,
            )
        looked_up_since = known or self.keys.fetched_at >= asked
        if not looked_up_since and _may_be_later(unverified_issued_at, self.keys.fetched_wall):
            raise OutOfReach(Problem.KEY_NOT_KNOWN_YET, kid=kid, retry_after=self.keys.retry_after)
        if instead_of is not None:
            raise Rejected(Problem.SIGNATURE_INVALID, kid=kid, algorithm=algorithm)
        if self.keys.keys.lacks_ids(algorithm):
            raise Rejected(Problem.KEY_IDS_MISSING, issuer=self.trust.issuer, algorithm=algorithm)
        raise Rejected(Problem.SIGNING_KEY_UNKNOWN, kid=kid, algorithm=algorithm, keys=self.key_count)

    @staticmethod
    def has_listed(claims: Mapping[str, Any]) -> bool:
        """Tell that there is no list: such an issuer says everything in its tokens."""
        del claims
        return True

    async def read_list(self) -> None:
        """Do nothing: there is no list."""

    @staticmethod
    def admit(principal: Principal, claims: Mapping[str, Any]) -> Principal:
        """Return the principal as it is."""
        del claims
        return principal

    async def discover(self) -> Mapping[str, Any]:
        """Return the discovery document that was fetched with the keys, or raise OutOfReach if there is none yet.

        An issuer with a configured ``jwks_url`` never has one.
        """
        if not self.keys.metadata:
            await self.keys.refresh_for_request(self.policy)
        if not self.keys.metadata:
            raise self._out_of_reach()
        return self.keys.metadata

    async def reach(self) -> None:
        """Raise OutOfReach if the issuer does not answer. An answer of the last ``min_refresh`` seconds is enough."""
        age = self.keys.age
        if self.keys.last_problem or age is None:
            await self.keys.refresh_for_request(self.policy)
        elif age > self.policy.min_refresh:  # without a cool-down, which a token with a new key would have to wait for
            await self.keys.refresh(self.policy)
        if self.keys.last_problem or self.keys.age is None:
            raise self._out_of_reach()

    def _out_of_reach(self) -> OutOfReach:
        self._refuse_misconfigured()
        return OutOfReach(Problem.ISSUER_OUT_OF_REACH, because=self.problem, retry_after=self.keys.retry_after)

    def _refuse_misconfigured(self) -> None:
        """Raise OutOfReach with the reason if it is a mistake of the configuration that nothing usable was fetched."""
        if self.keys.misconfigured:
            raise OutOfReach(
                Problem.ISSUER_MISCONFIGURED,
                issuer=self.trust.issuer,
                because=self.problem,
                retry_after=self.keys.retry_after,
            )

    def as_provider(self, **configured: str) -> Provider:
        """Return the issuer as a provider whose endpoints are called. ``configured`` endpoints need no discovery."""
        return Provider(self.keys.source, self.discover, configured)

    @property
    def warm(self) -> bool:
        """Tell whether there are keys that may be used now."""
        return self.key_count > 0 and time.monotonic() < self.keys.fetched_at + self.policy.max_stale

    @property
    def key_count(self) -> int:
        """Return how many cached keys fit an accepted algorithm."""
        return self.keys.keys.usable(self.trust.algorithms)

    @property
    def problem(self) -> str:
        """Return why there are no usable keys, or why the last fetch failed; an empty string if neither is so."""
        if self.keys.last_problem or self.key_count:
            return self.keys.last_problem
        return "not fetched yet" if self.keys.age is None else "the issuer publishes no usable key"

    @property
    def believed_until(self) -> float:
        """Return until when a verdict that rests on these keys is valid, in seconds since the epoch."""
        return time.time() + self.keys.fetched_at + self.policy.max_stale - time.monotonic()


def _may_be_later(unverified_issued_at: object, fetched: float) -> bool:
    """Tell whether a token may have been issued after the keys were fetched. Both are in seconds since the epoch.

    A token's ``iat`` of 100 says that it was issued between 100 and 101.
    """
    if isinstance(unverified_issued_at, bool) or not isinstance(unverified_issued_at, int | float):
        return False
    ends = unverified_issued_at + 1 if isinstance(unverified_issued_at, int) else unverified_issued_at
    return ends > fetched
