"""Verification keys from a JWK set: which keys of an issuer may verify, and with which algorithm.

python-jose holds the keys; a ``Key`` is constructed once for each pair of JWK and algorithm, since that costs as
much as verifying. python-jose knows neither PS* nor EdDSA: both are registered here over ``cryptography``.
Symmetric keys are never built, so no token can be verified with an HMAC (RFC 8725 §3.1).
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jose import jwk
from jose.backends.base import Key
from jose.backends.cryptography_backend import CryptographyRSAKey
from jose.utils import base64url_decode

from service.adapters.roca import has_roca_structure

log = logging.getLogger(__name__)

MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
MAX_RSA_BITS: Final = 8192  # larger ones verify so slowly that a stranger's token becomes a load
RSA_EXPONENTS: Final = range(3, 2**32)

_FITTING: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
_PUBLIC_MEMBERS: Final = ("kty", "n", "e", "crv", "x", "y")


class JWKSError(Exception):
    """A document that is not a JWK set. The message is for the log."""


class RSAKey(CryptographyRSAKey):
    """RSASSA-PKCS1-v1_5 (RFC 7518 §3.3): python-jose's key, with its padding and hash created once."""

    _HASHES: Final = {"RS256": hashes.SHA256(), "RS384": hashes.SHA384(), "RS512": hashes.SHA512()}
    _PADDING: Final = padding.PKCS1v15()

    def __init__(self, key: Mapping[str, Any], algorithm: str) -> None:
        super().__init__(dict(key), algorithm)
        self._hash = self._HASHES[algorithm]
        self._verify = self.prepared_key.verify

    def verify(self, msg: bytes, sig: bytes) -> bool:
        """Tell whether the signature is valid for this key."""
        try:
            self._verify(sig, msg, self._PADDING, self._hash)
        except InvalidSignature:
            return False
        return True


class RSAPSSKey(Key):
    """RSASSA-PSS with a salt as long as the hash (RFC 7518 §3.5)."""

    _HASHES: Final = {"PS256": hashes.SHA256(), "PS384": hashes.SHA384(), "PS512": hashes.SHA512()}

    def __init__(self, key: Mapping[str, Any], algorithm: str) -> None:
        super().__init__(key, algorithm)
        self._hash = self._HASHES[algorithm]
        self._padding = padding.PSS(mgf=padding.MGF1(self._hash), salt_length=self._hash.digest_size)
        self._public_key = rsa_public_key(key)

    def verify(self, msg: bytes, sig: bytes) -> bool:
        """Tell whether the signature is valid for this key."""
        try:
            self._public_key.verify(sig, msg, self._padding, self._hash)
        except InvalidSignature:
            return False
        return True


class EdwardsKey(Key):
    """EdDSA with Ed25519 or Ed448 (RFC 8037 §3.1)."""

    def __init__(self, key: Mapping[str, Any], algorithm: str) -> None:
        super().__init__(key, algorithm)
        point = base64url_decode(key["x"].encode())
        self._public_key: Ed25519PublicKey | Ed448PublicKey
        if key["crv"] == "Ed448":
            self._public_key = Ed448PublicKey.from_public_bytes(point)
        else:
            self._public_key = Ed25519PublicKey.from_public_bytes(point)

    def verify(self, msg: bytes, sig: bytes) -> bool:
        """Tell whether the signature is valid for this key."""
        try:
            self._public_key.verify(sig, msg)
        except InvalidSignature:
            return False
        return True


def rsa_public_key(key: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """Return a JWK's RSA key, as python-jose reads it."""
    prepared: rsa.RSAPublicKey = RSAKey(key, "RS256").prepared_key
    return prepared


for _family, _key in (("RS", RSAKey), ("PS", RSAPSSKey)):
    for _bits in ("256", "384", "512"):
        jwk.register_key(_family + _bits, _key)
jwk.register_key("EdDSA", EdwardsKey)


class KeySet:
    """The keys of one issuer at one moment. Equal sets hold the same keys.

    ``algorithms`` has, by a fingerprint of each key, which algorithms it may verify.
    """

    def __init__(
        self,
        keys: Mapping[tuple[str | None, str], Key],
        algorithms: Mapping[str, frozenset[str]],
        without_id: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """``without_id`` has how many keys without an id fit each algorithm."""
        self._keys = keys
        self._algorithms = algorithms
        self._without_id = without_id
        self._ids = frozenset(kid for kid, _ in keys if kid is not None)

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key for a token's key id and algorithm, or None.

        A token without a key id gets the only key that fits its algorithm. So does a token whose key id is not in the
        set, if that only key has no id.
        """
        key = self._keys.get((kid, algorithm))
        if key is None and kid is not None and self._without_id.get(algorithm) == 1:
            return self._keys.get((None, algorithm))
        return key

    def lacks_ids(self, algorithm: str) -> bool:
        """Tell whether several keys fit the algorithm and some have no id, so that a token's key cannot be told."""
        return algorithm in self._without_id and (None, algorithm) not in self._keys

    def knows(self, kid: str | None) -> bool:
        """Tell whether the set has a key with this id, for any algorithm."""
        return kid in self._ids

    def usable(self, algorithms: frozenset[str]) -> int:
        """Return how many keys may verify with one of the algorithms."""
        return sum(not one.isdisjoint(algorithms) for one in self._algorithms.values())

    def __len__(self) -> int:
        return len(self._algorithms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self._algorithms == other._algorithms

    def __hash__(self) -> int:
        return hash(frozenset(self._algorithms))


NO_KEYS: Final = KeySet({}, {})


def parse_jwks(document: bytes, algorithms: frozenset[str], issuer: str) -> KeySet:
    """Return the keys of a JWK set (RFC 7517 §5) that may verify with one of ``algorithms``.

    A key that is unusable (for encryption, symmetric, too weak, off its curve, of an unknown kind) is left out
    and logged; a document that is no JWK set, or has more than ``MAX_KEYS`` keys, raises JWKSError.
    """
    found: dict[tuple[str | None, str], list[Key]] = {}
    by_fingerprint: dict[str, frozenset[str]] = {}
    without_id: Counter[str] = Counter()
    for member in _members(document):
        try:
            usable = _construct(member, algorithms)
        except Exception as problem:  # noqa: BLE001 - whatever a stranger's key raises, it is not used
            log.warning("issuer %s: a key is not used: %s: %.200s", issuer, type(problem).__name__, problem)
            continue
        kid = member.get("kid") or None  # an empty one names no key, in a set as in a token
        fingerprint = json.dumps([kid, sorted(usable), *(member.get(name) for name in _PUBLIC_MEMBERS)])
        if not usable or fingerprint in by_fingerprint:
            continue
        by_fingerprint[fingerprint] = frozenset(usable)
        if kid is None:
            without_id.update(usable.keys())
        for algorithm, key in usable.items():
            for name in {kid, None}:
                found.setdefault((name, algorithm), []).append(key)
    for (kid, algorithm), candidates in found.items():
        if len(candidates) > 1 and kid is not None:
            log.warning("issuer %s: several keys share the id %.100r for %s: none is used", issuer, kid, algorithm)
    unambiguous = {name: keys[0] for name, keys in found.items() if len(keys) == 1}
    return KeySet(unambiguous, by_fingerprint, without_id)


def _members(document: bytes) -> list[Any]:
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as problem:
        raise JWKSError(f"the JWKS is not JSON: {problem!s:.200}") from None
    members = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(members, list):
        raise JWKSError("the JWKS has no list of keys")
    if len(members) > MAX_KEYS:
        raise JWKSError(f"the JWKS has {len(members)} keys, at most {MAX_KEYS} are read")
    return members


def _construct(member: object, algorithms: frozenset[str]) -> dict[str, Key]:
    """Build one key for each algorithm that it may verify; raise if it cannot be used for any."""
    if not isinstance(member, dict):
        raise TypeError("it is not an object")
    kid, use, operations = member.get("kid"), member.get("use", "sig"), member.get("key_ops", ["verify"])
    if kid is not None and not isinstance(kid, str):
        raise TypeError("its kid is not a string")
    if use != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return {}  # a key for something else is no news
    kty = member.get("kty")
    curve = member.get("crv", "") if kty != "RSA" else ""
    fitting = _FITTING.get((kty, curve)) if isinstance(kty, str) and isinstance(curve, str) else None
    if fitting is None:
        raise ValueError(f"kty {kty!r:.40} with crv {curve!r:.40} verifies no accepted algorithm")
    alg = member.get("alg")
    wanted = [one for one in fitting if one in algorithms and alg in {None, one}]
    public = {name: member[name] for name in _PUBLIC_MEMBERS if name in member}
    if not all(isinstance(value, str) for value in public.values()):
        raise TypeError("a member is not a string")
    if kty == "RSA":
        _check_rsa(rsa_public_key(public))
    return {one: jwk.construct(public, one) for one in wanted}


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    modulus, exponent = key.public_numbers().n, key.public_numbers().e
    if has_roca_structure(modulus):
        raise ValueError("its private key can be computed from it (ROCA, CVE-2017-15361): replace it at the issuer")
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS or exponent not in RSA_EXPONENTS:
        raise ValueError(f"RSA of {key.key_size} bits, expected {MIN_RSA_BITS} to {MAX_RSA_BITS}")
