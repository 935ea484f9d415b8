"""What was proved a short while ago: the memory that the hot path reads instead of parsing and verifying.

Keyed by a fingerprint of the very bytes that were sent, at this very gate. A spelling that was not seen before is a
stranger's, and takes the long way; so is a password from an address that it was not seen from, lest guesses be
answered from memory, where nobody counts them.
"""

import time

from cachetools import FIFOCache

from service.core.model import Gate, Proof
from service.state.fingerprints import Fingerprints


class Verdicts:
    """Remembers proofs for at most ``seconds``, and never beyond their own end or a ``forget()``.

    Refusals are not remembered, so strangers cannot fill it; of more than ``capacity`` the oldest goes first. Nothing
    is remembered before ``renew()`` has set both.
    """

    def __init__(self) -> None:
        self.era = 0
        self._seconds = 0.0
        # order of use would have to be kept on each call, and all go soon
        self._proofs: FIFOCache[bytes, Proof] = FIFOCache(1)
        self._fingerprints = {gate: Fingerprints() for gate in Gate}  # what one gate believed is nothing to another

    def renew(self, *, seconds: float, capacity: int) -> None:
        """Forget everything, and go on within these bounds."""
        self.era += 1
        self._seconds = seconds
        self._proofs = FIFOCache(capacity)

    def key_of(self, gate: Gate, presented: bytes, address: str = "") -> bytes:
        """Return the key under which a proof of these bytes at this gate, from this address, is remembered."""
        fingerprint = self._fingerprints[gate].of(presented)
        if address and presented[1:2] not in b"eE":  # anything but a Bearer
            return fingerprint + address.encode()
        return fingerprint

    def recall(self, key: bytes) -> Proof | None:
        """Return what was proved a short time ago, if it may still be believed."""
        try:
            proof = self._proofs[key]
        except KeyError:
            return None
        return proof if time.time() < proof.until else None

    def remember(self, key: bytes, proof: Proof, era: int) -> None:
        """Remember a proof, unless what it rests on has changed since ``era`` was read, before it was made."""
        until = min(proof.until, time.time() + self._seconds)
        if era == self.era and self._seconds:
            self._proofs[key] = proof._replace(until=until)

    def forget(self) -> None:
        """Forget everything: keys, users or sessions have changed."""
        self.era += 1
        self._proofs.clear()
