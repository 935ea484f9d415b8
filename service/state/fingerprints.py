"""A fingerprint of a secret: what memories of verified credentials are keyed by.

HMAC-SHA256 under a key of this process, so that memory, or a dump of it, holds no token and no password, and nobody
outside can tell which credentials would meet.
"""

import secrets

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC


class Fingerprints:
    """Takes fingerprints under a key that nobody else has and that ends with the process."""

    def __init__(self) -> None:
        self._hmac = HMAC(secrets.token_bytes(32), SHA256())

    def of(self, secret: bytes) -> bytes:
        """Return 32 bytes that no other secret has."""
        mac = self._hmac.copy()  # to set the key up again would cost as much as all the rest
        mac.update(secret)
        return mac.finalize()

    def of_pair(self, name: str, secret: str) -> bytes:
        """Return 32 bytes that no other pair has: a length between keeps ('ab', 'c') from ('a', 'bc')."""
        raw = name.encode()
        return self.of(len(raw).to_bytes(4, "big") + raw + secret.encode())
