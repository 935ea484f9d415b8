"""A credential's fingerprint: what the memories of verified credentials are keyed by.

HMAC-SHA256 under a key of this process, so that memory, or a dump of it, holds no token and no password, and nobody
outside can tell which credentials would meet.
"""

import secrets

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from service.core.model import Basic, Bearer


class Fingerprints:
    """Takes fingerprints under a key that nobody else has and that ends with the process."""

    def __init__(self) -> None:
        self._hmac = HMAC(secrets.token_bytes(32), SHA256())

    def of(self, credential: Bearer | Basic) -> bytes:
        """Return 32 bytes that no other credential has.

        A kind in front and a length between keep a token from a pair, and ('ab', 'c') from ('a', 'bc').
        """
        mac = self._hmac.copy()  # to set the key up again would cost as much as all the rest
        if isinstance(credential, Bearer):
            mac.update(b"t")
            mac.update(credential.token)
        else:
            username = credential.username.encode()
            mac.update(b"p" + len(username).to_bytes(4, "big") + username + credential.password.encode())
        return mac.finalize()
