"""The compact form of a JWT, parsed strictly (RFC 7515 §7.1): bytes → segments, header and claims, or a refusal.

Nothing is verified here. Only canonical base64url and unambiguous JSON are accepted, so a token has one spelling.
"""

import binascii
import json
from functools import lru_cache
from typing import Any, Final, NamedTuple

from service.core.errors import Rejected
from service.core.problems import Problem

MAX_KID: Final = 512
MAX_CONTAINERS: Final = 900  # below the nesting limit of every Python version, so that all give the same answer


class TokenHeader(NamedTuple):
    """The members of the JOSE header that are used (RFC 7515 §4.1). All others are ignored, keys included."""

    algorithm: str
    kid: str | None
    token_type: str


@lru_cache(maxsize=256)  # one header is shared by all tokens of a key
def parse_header(segment: bytes) -> TokenHeader:
    """Return what the JOSE header says; extensions that must be understood are refused (RFC 7515 §4.1.11)."""
    header = parse_json_object(decode_segment(segment))
    if "crit" in header or "b64" in header:
        raise Rejected(Problem.TOKEN_EXTENSION_UNSUPPORTED)
    if "enc" in header or "zip" in header:
        raise Rejected(Problem.TOKEN_ENCRYPTED)
    algorithm, kid, token_type = header.get("alg"), header.get("kid"), header.get("typ", "")
    if not isinstance(algorithm, str):
        raise Rejected(Problem.TOKEN_HEADER_INVALID, member="alg")
    if not isinstance(token_type, str):
        raise Rejected(Problem.TOKEN_HEADER_INVALID, member="typ")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID):
        raise Rejected(Problem.TOKEN_HEADER_INVALID, member="kid")
    return TokenHeader(algorithm, kid or None, token_type)  # older Kubernetes writes an empty one for none


def decode_segment(segment: bytes) -> bytes:
    """Return the bytes of canonical, unpadded base64url (RFC 7515 §2): each value has one spelling."""
    padding = -len(segment) % 4
    try:
        decoded = binascii.a2b_base64(segment.translate(_FROM_URLSAFE) + b"=" * padding, strict_mode=True)
    except binascii.Error:
        raise Rejected(Problem.TOKEN_NOT_BASE64URL) from None
    if not decoded or (padding and segment[-1] not in _LAST[padding]):
        raise Rejected(Problem.TOKEN_NOT_CANONICAL)
    return decoded


# to the alphabet that binascii knows; that alphabet's own two characters, and padding, become one that it refuses
_FROM_URLSAFE: Final = bytes.maketrans(b"-_+/=", b"+/***")
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST: Final = {1: frozenset(_ALPHABET[::4]), 2: frozenset(_ALPHABET[::16])}  # whose unused low bits are zero


def parse_json_object(document: bytes) -> dict[str, Any]:
    """Return a JSON object; repeated names, NaN, Infinity and deep nesting are refused (RFC 8259 §4, RFC 7519 §4)."""
    if document.count(b"[") + document.count(b"{") > MAX_CONTAINERS:
        raise Rejected(Problem.TOKEN_TOO_MANY_CONTAINERS, limit=MAX_CONTAINERS)
    text = document.decode("utf-8").strip(" \t\n\r")
    value, end = _DECODER.raw_decode(text)
    if not isinstance(value, dict) or end != len(text):
        raise Rejected(Problem.TOKEN_NOT_JSON_OBJECT)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Rejected(Problem.TOKEN_NAME_REPEATED)
    return members


def _no_constant(name: str) -> None:
    raise Rejected(Problem.TOKEN_JSON_CONSTANT, got=name)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
