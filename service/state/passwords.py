"""Verified passwords, and the addresses from which each was used."""

import time
from hmac import compare_digest
from typing import Final, NamedTuple

from cachetools import LRUCache, TTLCache

from service.core.model import Basic
from service.state.fingerprints import Fingerprints

MAX_USERS: Final = 200_000
MAX_KNOWN_PAIRS: Final = 10_000  # only correct pairs are added
KNOWN_PAIR_SECONDS: Final = 86_400.0


class _Verified(NamedTuple):
    fingerprint: bytes
    password_hash: str
    at: float  # seconds since the epoch


class VerifiedPasswords:
    """Remembers for each user which password matched which bcrypt hash.

    An entry is only valid for the hash it was verified against. If the user's hash changes, the entry no longer
    applies. Failed verifications are not remembered. Passwords are stored as HMACs under a key of this process.
    """

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._verified: LRUCache[str, _Verified] = LRUCache(MAX_USERS)

    def remember(self, credential: Basic, password_hash: str) -> float:
        """Remember that a password matches a hash. Return the time, in seconds since the epoch."""
        verified = _Verified(self._fingerprint(credential), password_hash, time.time())
        self._verified[credential.username] = verified
        return verified.at

    def verified_at(self, credential: Basic, password_hash: str) -> float | None:
        """Return when this password was last verified against this hash, in seconds since the epoch, or None."""
        found = self._verified.get(credential.username)
        if found is None or found.password_hash != password_hash:
            return None
        return found.at if compare_digest(found.fingerprint, self._fingerprint(credential)) else None

    def _fingerprint(self, credential: Basic) -> bytes:
        return self._fingerprints.of_pair(credential.username, credential.password)


class KnownPairs:
    """Remembers which user name and password were correct from which address, for a day after their last use.

    Wrong passwords that others send from the same address do not throttle such a pair. A pair is forgotten as soon as
    it is wrong.
    """

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._known: TTLCache[tuple[str, bytes], bool] = TTLCache(MAX_KNOWN_PAIRS, KNOWN_PAIR_SECONDS)

    def key_of(self, sender: str, credential: Basic) -> tuple[str, bytes]:
        """Return the key of a pair and its sender. It contains an HMAC, not the password."""
        return sender, self._fingerprints.of_pair(credential.username, credential.password)

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._known

    def add(self, key: tuple[str, bytes]) -> None:
        """Remember that the pair is correct."""
        self._known[key] = True

    def discard(self, key: tuple[str, bytes]) -> None:
        """Forget a pair, if it is known."""
        self._known.pop(key, None)

    def clear(self) -> None:
        """Forget every pair."""
        self._known.clear()
