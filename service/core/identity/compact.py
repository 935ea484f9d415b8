"""The compact form of a JWT, read strictly (RFC 7515 §7.1): bytes → segments, header and claims, or a refusal.

Nothing here is verified. Base64url is canonical and JSON has one reading, so that a token has one spelling.
"""

import binascii
import json
from functools import lru_cache
from typing import Any, Final, NamedTuple

from service.core.errors import Rejected

_UNREADABLE: Final = "This token cannot be read: copy it again, whole."
MAX_KID: Final = 512
MAX_CONTAINERS: Final = 900  # under every Python's limit of nesting, so that none differs from another


class TokenHeader(NamedTuple):
    """The JOSE header's members that are acted on (RFC 7515 §4.1); all others are ignored, keys included."""

    algorithm: str
    kid: str | None
    token_type: str


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
