"""Client authentication at the provider (OIDC Core §9)."""

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote_plus

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.adapters.jwks import MIN_RSA_BITS
from service.adapters.roca import has_roca_structure

ASSERTION_SECONDS: Final = 60
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}

AuthMethod = Literal["client_secret_basic", "client_secret_post", "private_key_jwt", "none"]
AnotherAccount = Literal["auto", "select_account", "login", "sign_out"]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """The client's credentials at the provider, and what the client asks for.

    Without ``scopes`` those of DEFAULT_SCOPES are asked for that the provider lists. ``userinfo`` is asked ``auto``
    where the ID token lacks a claim that decides something; ``decisive_claims`` are those that grants look at, and
    ``kept_claims`` go into the session. ``access_token_claims`` tells whether the access token is read, too.
    ``other_audiences`` may be in an ID token beside the client id. ``timeout`` is in seconds, of one call.
    ``private_key`` is PEM, without a passphrase; ``private_key_alg`` picks another algorithm than the key's usual one.
    """

    client_id: str
    client_secret: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    private_key_id: str = ""
    private_key_alg: str = ""
    auth_method: AuthMethod = "client_secret_basic"
    scopes: frozenset[str] = frozenset()
    userinfo: Literal["auto", "always", "never"] = "auto"
    access_token_claims: bool = False
    other_audiences: frozenset[str] = frozenset()
    another_account: AnotherAccount = "auto"
    logout_needs_hint: bool = False
    preset: str = ""
    timeout: float = 10.0
    decisive_claims: frozenset[str] = frozenset()
    kept_claims: frozenset[str] = frozenset()


class ClientAuth:
    """Adds the client's authentication to a request."""

    def __init__(self, policy: ClientPolicy, issuer: str) -> None:
        """Read the private key, if there is one; raise ValueError if it cannot be used."""
        self._policy = policy
        self._issuer = issuer
        if policy.auth_method == "private_key_jwt":
            self._algorithm, self._sign = load_signer(policy.private_key, policy.private_key_alg)

    @property
    def encodes(self) -> bool:
        """Tell whether the id or the secret reads otherwise once it is encoded for ``client_secret_basic``."""
        pair = self._policy.client_id + self._policy.client_secret
        return self._policy.auth_method == "client_secret_basic" and quote_plus(pair) != pair

    def prove(self, form: dict[str, str], now: float) -> tuple[dict[str, str], dict[str, str]]:
        """Return the headers and the form of an authenticated request. ``now`` is in seconds since the epoch."""
        policy = self._policy
        match policy.auth_method:
            case "client_secret_basic":  # RFC 6749 §2.3.1: encoded as a form first, and only then by RFC 7617
                pair = f"{quote_plus(policy.client_id)}:{quote_plus(policy.client_secret)}"
                return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, form
            case "client_secret_post":
                return {}, {**form, "client_id": policy.client_id, "client_secret": policy.client_secret}
            case "private_key_jwt":
                proof = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": self.assertion(now)}
                return {}, {**form, "client_id": policy.client_id, **proof}
            case "none":
                return {}, {**form, "client_id": policy.client_id}

    def assertion(self, now: float) -> str:
        """Return a signed assertion, valid once and for a minute (RFC 7523 §3).

        Its audience is the issuer alone, as a string. The token endpoint, or a list of both, was usual; since 2025
        neither is safe (CVE-2025-27370, draft-ietf-oauth-rfc7523bis §4): a malicious provider can name another's
        token endpoint as its own, and would be handed what is good there. ``typ`` stays JWT, which all take.
        """
        header = {"alg": self._algorithm, "typ": "JWT"}
        if self._policy.private_key_id:
            header["kid"] = self._policy.private_key_id
        claims = {
            "iss": self._policy.client_id,
            "sub": self._policy.client_id,
            "aud": self._issuer,
            "jti": secrets.token_urlsafe(16),
            "iat": int(now),
            "exp": int(now) + ASSERTION_SECONDS,
        }
        signed = f"{_segment(header)}.{_segment(claims)}".encode()
        return f"{signed.decode()}.{_b64url(self._sign(signed))}"


def load_signer(pem: str, algorithm: str = "") -> tuple[str, Sign]:
    """Return the algorithm of a private key in PEM and its signing function; raise ValueError if it cannot be used."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except Exception as problem:  # noqa: BLE001 - its own words might quote the key
        raise ValueError(f"the private key cannot be read ({type(problem).__name__}): PEM is needed") from None
    if isinstance(key, rsa.RSAPrivateKey) and has_roca_structure(key.public_key().public_numbers().n):
        raise ValueError("the private key can be computed from the public one (ROCA, CVE-2017-15361): make a new one")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS and (algorithm or "RS256") in _RSA:
        return algorithm or "RS256", _rsa_signer(key, algorithm or "RS256")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        name = _CURVES.get(key.curve.name, "")
        if name and algorithm in {"", name}:
            return name, _ec_signer(key, name)
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) and algorithm in {"", "EdDSA"}:
        return "EdDSA", key.sign
    raise ValueError(f"the private key cannot sign {algorithm or 'with an accepted algorithm'}")


def _rsa_signer(key: rsa.RSAPrivateKey, algorithm: str) -> Sign:
    digest = _HASHES[algorithm[2:]]
    pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    scheme = pss if algorithm.startswith("PS") else padding.PKCS1v15()
    return lambda message: key.sign(message, scheme, digest)


def _ec_signer(key: ec.EllipticCurvePrivateKey, algorithm: str) -> Sign:
    size = (key.key_size + 7) // 8

    def sign(message: bytes) -> bytes:
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(_HASHES[algorithm[2:]])))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")  # RFC 7518 §3.4: not DER

    return sign


def _segment(value: dict[str, Any]) -> str:
    return _b64url(json.dumps(value, separators=(",", ":")).encode())


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
