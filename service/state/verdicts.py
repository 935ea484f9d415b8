"""The cache of recently verified credentials, which the hot path reads instead of parsing and verifying again.

The key is an HMAC of exactly the bytes that were sent, at one gate. Any other spelling of a credential is verified as
if it were new. So is a password from another address: otherwise the cache could answer guesses that nobody counts.
"""

import time
from collections import OrderedDict

from service.core.model import Gate, Proof
from service.state.bounded import keep
from service.state.fingerprints import Fingerprints


class Verdicts:
    """Remembers proofs for at most ``seconds``, until they expire, or until ``forget()``.

    Refusals are not remembered, so only verified callers add entries. If there are more than ``capacity``, the oldest
    is dropped. ``renew()`` sets both limits; before that, nothing is remembered.
    """

    def __init__(self) -> None:
        self.era = 0
        self._seconds = 0.0
        self._capacity = 0
        # the oldest first: keeping the order of use would cost time on each call
        self._proofs: OrderedDict[bytes, Proof] = OrderedDict()
        self._fingerprints = {gate: Fingerprints() for gate in Gate}  # a proof at one gate is not valid at another

    def renew(self, *, seconds: float, capacity: int) -> None:
        """Forget everything, and use these limits from now on; ``seconds`` of 0 turns the cache off."""
        self.era += 1
        self._seconds, self._capacity = seconds, capacity
        self._proofs.clear()

    def key_of(self, gate: Gate, presented: bytes, address: str = "") -> bytes:
        """Return the cache key of these bytes at this gate; for a password, of the address as well."""
        fingerprint = self._fingerprints[gate].of(presented)
        if address and presented[1:2] not in b"eE":  # anything but a Bearer
            return fingerprint + address.encode()
        return fingerprint

    def recall(self, key: bytes) -> Proof | None:
        """Return the cached proof if it has not expired, or None."""
        proof = self._proofs.get(key)
        return proof if proof is not None and time.time() < proof.until else None

    def remember(self, key: bytes, proof: Proof, era: int) -> None:
        """Remember a proof, unless ``forget()`` or ``renew()`` was called since ``era`` was read."""
        if era == self.era and self._seconds:
            until = min(proof.until, time.time() + self._seconds)
            keep(self._proofs, key, Proof(proof.principal, until), self._capacity)

    def forget(self) -> None:
        """Forget everything, because keys, users or sessions have changed."""
        self.era += 1
        self._proofs.clear()
