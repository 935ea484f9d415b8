"""The keys that sign the service's own tokens: Ed25519 (RFC 8037), each named by its thumbprint (RFC 7638)."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ALGORITHM: Final = "EdDSA"
TYPE: Final = "at+jwt"  # the type, RFC 9068 §2.1


class SigningKey(NamedTuple):
    """A private key and its id."""

    kid: str
    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r})"

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return an access token with these claims (RFC 9068)."""
        header = {"alg": ALGORITHM, "kid": self.kid, "typ": TYPE}
        signed = b".".join(_segment(_compact(part)) for part in (header, claims))
        return b".".join((signed, _segment(self.private.sign(signed)))).decode()

    def public_jwk(self) -> dict[str, str]:
        """Return the public key as a JWK (RFC 8037 §2)."""
        return {**_public_members(self.private), "kid": self.kid, "alg": ALGORITHM, "use": "sig"}

    def to_pem(self, secrets: Sequence[str]) -> str:
        """Return the private key as PKCS #8, encrypted under the first of these secrets if there are any."""
        encryption: KeySerializationEncryption = NoEncryption()
        if secrets:
            encryption = BestAvailableEncryption(_passphrase(secrets[0]))
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


def new_key() -> SigningKey:
    """Return a key that nobody has seen before."""
    return _named(Ed25519PrivateKey.generate())


def key_from_pem(pem: str, secrets: Sequence[str]) -> tuple[SigningKey, bool] | None:
    """Return the key of a PEM, and whether it is kept as ``to_pem()`` would; None if none of the secrets opens it."""
    for number, secret in enumerate((*secrets, None)):
        try:
            private = load_pem_private_key(pem.encode(), None if secret is None else _passphrase(secret))
        except (TypeError, ValueError):  # it has no passphrase, or needs one; or this is not the one
            continue
        if isinstance(private, Ed25519PrivateKey):
            return _named(private), number == 0
    return None


def _named(private: Ed25519PrivateKey) -> SigningKey:
    thumbprint = hashlib.sha256(_compact(_public_members(private))).digest()
    return SigningKey(_segment(thumbprint).decode(), private)


def _public_members(private: Ed25519PrivateKey) -> dict[str, str]:
    """Return the members of the thumbprint, in its order (RFC 8037 §2)."""
    return {"crv": "Ed25519", "kty": "OKP", "x": _segment(private.public_key().public_bytes_raw()).decode()}


def _passphrase(secret: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"prefect-forward-auth/tokens/1").derive(secret.encode()).hex().encode()


def _compact(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _segment(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
