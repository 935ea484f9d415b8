"""Authenticated encryption of cookies, form fields and shared values.

AES-256-GCM under keys derived from the configured secrets (HKDF, RFC 5869). The first secret encrypts and all of them
decrypt. To rotate, put a new secret in front of the old one: nobody is signed out.
"""

import base64
import binascii
import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_ID = 4  # bytes in front that identify the key
_NONCE = 12


class Seal:
    """Seals and opens short texts. What is sealed for one purpose cannot be opened for another."""

    def __init__(self, secrets_: tuple[str, ...] = ()) -> None:
        keys = [_derive(one) for one in secrets_ or (secrets.token_urlsafe(32),)]
        self._sealing, self._naming = keys[0][:2], keys[0][2]
        self._opening = {key_id: cipher for key_id, cipher, _ in reversed(keys)}

    def seal(self, purpose: str, content: bytes) -> str:
        """Return the sealed content as base64url text, for a cookie or a form."""
        key_id, cipher = self._sealing
        nonce = os.urandom(_NONCE)
        sealed = key_id + nonce + cipher.encrypt(nonce, content, purpose.encode())
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, purpose: str, text: str) -> bytes | None:
        """Return the content that was sealed for this purpose, or None if the text is anything else."""
        try:
            sealed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
            cipher = self._opening[sealed[:_KEY_ID]]
            nonce = sealed[_KEY_ID : _KEY_ID + _NONCE]
            return cipher.decrypt(nonce, sealed[_KEY_ID + _NONCE :], purpose.encode())
        except (KeyError, InvalidTag, ValueError, binascii.Error):
            return None

    def name_of(self, secret: bytes) -> str:
        """Return an HMAC of a secret as hexadecimal text. Only holders of the first key can compute it."""
        mac = HMAC(self._naming, SHA256())
        mac.update(secret)
        return mac.finalize().hex()


def _derive(secret: str) -> tuple[bytes, AESGCM, bytes]:
    """Return the id of a key, its cipher, and its key for HMACs."""
    derived = HKDF(SHA256(), 32 + _KEY_ID, salt=None, info=b"prefect-forward-auth/seal/1").derive(secret.encode())
    naming = HKDF(SHA256(), 32, salt=None, info=b"prefect-forward-auth/name/1").derive(secret.encode())
    return derived[32:], AESGCM(derived[:32]), naming
