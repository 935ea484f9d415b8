"""A token's bytes → VerifiedClaims: the only place where a signature is believed.

The checks stand in this order, and nothing is read before the one above it has passed: size; three canonical
base64url segments; a small JSON header without repeated names; no extension that is not understood; an
algorithm that the issuer may use and that fits the key; our own key, found by id; the signature. What the
claims are worth is for ``core.claims`` to say. Every exception on the way is a refusal.
"""

import binascii
import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from service.adapters.issuers import Issuer
from service.core.claims import principal_from, with_verified_email
from service.core.errors import Refusal, Rejected
from service.core.grants import Grant, with_roles
from service.core.model import Bearer, Proof, VerifiedClaims

_SEGMENTS: Final = 3
_NOT_A_JWT: Final = "This is not a JWT: set PREFECT_API_KEY to an access token of your identity provider."
_UNREADABLE: Final = "This token cannot be read: copy it again, whole."
_UNVERIFIED: Final = "This token's signature could not be verified: obtain a new one."
MAX_KID: Final = 512
MAX_CONTAINERS: Final = 900  # under every Python's limit of nesting, so that none differs from another


class TokenHeader(NamedTuple):
    """The JOSE header's members that are acted on (RFC 7515 §4.1); all others are ignored, keys included."""

    algorithm: str
    kid: str | None
    token_type: str


class Tokens:
    """Verifies access tokens of the given issuers."""

    def __init__(self, issuers: Mapping[str, Issuer], grants: Sequence[Grant] = ()) -> None:
        self._issuers = issuers
        self._grants = grants

    async def authenticate(self, credential: Bearer) -> Proof:
        """Return whom a token proves, until it ends or its keys are no longer believed; or a Rejected, or OutOfReach.

        Awaits only where the key is not at hand; with a known key there is no suspension between its look-up
        and the return, so the keys cannot change in between.
        """
        try:
            verified = await self.verify(credential.token)
            issuer = self._issuers[verified.issuer]
            principal = principal_from(verified, issuer.trust, time.time())
            principal = with_roles(principal, self._grants, with_verified_email(verified.claims, issuer.trust))
        except Refusal:
            raise
        except Exception as problem:  # noqa: BLE001 - hostile bytes may raise anything: it is no proof
            raise Rejected(_UNREADABLE, reason=f"{type(problem).__name__}: {problem!s:.200}") from None
        return Proof(principal, min(principal.expires, issuer.believed_until))

    async def verify(self, token: bytes) -> VerifiedClaims:
        """Return the claims of a token that one of the issuers signed."""
        segments = token.split(b".")
        if len(segments) != _SEGMENTS:
            raise Rejected(_NOT_A_JWT, reason="expected three segments (RFC 7515 §7.1)")
        header_segment, payload_segment, signature_segment = segments
        header = parse_header(header_segment)
        signature = decode_segment(signature_segment)
        unverified_claims = parse_json_object(decode_segment(payload_segment))
        unverified_issuer = unverified_claims.get("iss")
        issuer = self._issuers.get(unverified_issuer) if isinstance(unverified_issuer, str) else None
        if issuer is None:
            raise Rejected(
                "This token's issuer is not trusted here: obtain one from an accepted identity provider.",
                reason=f"iss {unverified_issuer!r:.200}, expected one of {sorted(self._issuers)}",
            )
        if header.algorithm not in issuer.trust.algorithms:
            raise Rejected(
                "This token is signed with an algorithm that is not accepted here.",
                reason=f"alg {header.algorithm!r:.40}, expected one of {sorted(issuer.trust.algorithms)}",
            )
        key = issuer.key_at_hand(header.kid, header.algorithm)
        if key is None:
            key = await issuer.find_key(header.kid, header.algorithm, unverified_claims.get("iat"))
        if key.verify(token[: -len(signature_segment) - 1], signature) is not True:
            raise Rejected(_UNVERIFIED, reason=f"alg {header.algorithm}, kid {header.kid!r:.100}")
        return VerifiedClaims(issuer.trust.issuer, header.token_type, unverified_claims)


@lru_cache(maxsize=256)  # one header is shared by all tokens of a key
def parse_header(segment: bytes) -> TokenHeader:
    """Return what the JOSE header says; extensions that must be understood are refused (RFC 7515 §4.1.11)."""
    header = parse_json_object(decode_segment(segment))
    if "crit" in header or "b64" in header:
        raise Rejected("This token uses an extension that is not supported here.", reason="crit or b64")
    if "enc" in header or "zip" in header:
        raise Rejected("This token is encrypted or compressed: send a signed one.", reason="JWE")
    algorithm, kid, token_type = header.get("alg"), header.get("kid"), header.get("typ", "")
    if not isinstance(algorithm, str) or not isinstance(token_type, str):
        raise Rejected(_UNREADABLE, reason="alg or typ is not a string")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID):
        raise Rejected(_UNREADABLE, reason="kid is not a short string")
    return TokenHeader(algorithm, kid, token_type)


def decode_segment(segment: bytes) -> bytes:
    """Return the bytes of canonical, unpadded base64url (RFC 7515 §2): each value has one spelling."""
    padding = -len(segment) % 4
    try:
        decoded = binascii.a2b_base64(segment.translate(_FROM_URLSAFE) + b"=" * padding, strict_mode=True)
    except binascii.Error:
        raise Rejected(_UNREADABLE, reason="a segment is not base64url") from None
    if not decoded or (padding and segment[-1] not in _LAST[padding]):
        raise Rejected(_UNREADABLE, reason="a segment is empty, or has stray trailing bits")
    return decoded


# to the alphabet that binascii knows, with its own two characters, and padding, turned into what it refuses
_FROM_URLSAFE: Final = bytes.maketrans(b"-_+/=", b"+/***")
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST: Final = {1: frozenset(_ALPHABET[::4]), 2: frozenset(_ALPHABET[::16])}  # whose unused low bits are zero


def parse_json_object(document: bytes) -> dict[str, Any]:
    """Return a JSON object; repeated names, NaN, Infinity and deep nesting are refused (RFC 8259 §4, RFC 7519 §4)."""
    if document.count(b"[") + document.count(b"{") > MAX_CONTAINERS:
        raise Rejected(_UNREADABLE, reason=f"more than {MAX_CONTAINERS} arrays and objects")
    text = document.decode("utf-8").strip(" \t\n\r")
    value, end = _DECODER.raw_decode(text)
    if not isinstance(value, dict) or end != len(text):
        raise Rejected(_UNREADABLE, reason="expected one JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Rejected(_UNREADABLE, reason="a member of the JSON object is repeated")
    return members


def _no_constant(name: str) -> None:
    raise Rejected(_UNREADABLE, reason=f"JSON has no {name}")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
