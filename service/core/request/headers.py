"""Headers → ForwardedRequest and Credential: the only place where a caller's bytes are parsed.

What two readers could understand differently is refused here, so no later code has to check it. The upstream's router
decodes a path once and matches it exactly; a path that a proxy, this service and the upstream could each read in
another way is never allowed.
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from service.core.errors import MalformedCredential, MalformedRequest
from service.core.model import Basic, Bearer
from service.core.names import is_visible_name
from service.core.problems import Problem

Headers = Sequence[tuple[bytes, bytes]]
ClientVersion = tuple[int, int, int]

METHODS: Final = {one.encode(): one for one in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
SCHEMES: Final = {one.encode(): one for one in ("http", "https", "ws", "wss")}
MAX_AUTHORIZATION: Final = 16 * 1024
MAX_TARGET: Final = 8 * 1024
MAX_USERNAME: Final = 256
MAX_PASSWORD: Final = 4096

_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]+")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST: Final = re.compile(r"(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])\.?(?::\d{1,5})?")
_DPOP: Final = b"dpop"  # RFC 9449 §7.1
_TOKEN68: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="  # RFC 9110 §11.2
_JWT_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*){2}(?:(?:\.[A-Za-z0-9_-]*){2})?")
_PREFECT: Final = re.compile(rb"prefect/(\d{1,4})\.(\d{1,4})\.(\d{1,4}) \(API ")
_JSON_OBJECT: Final = "eyJ"  # base64url of '{"': how every compact JWS and JWE begins


class Target(NamedTuple):
    """The path of a request target, percent-decoded, and its query, as sent."""

    path: str
    query: str


def collect(headers: Headers, wanted: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the headers by name; a wanted one that is repeated is refused, since readers differ on which counts."""
    found = dict(headers)
    if len(found) != len(headers):
        names = [name for name, _ in headers]
        for name in wanted:
            if names.count(name) > 1:
                raise MalformedRequest(Problem.HEADER_REPEATED, header=name.decode())
    return found


def require(found: Mapping[bytes, bytes], name: bytes) -> bytes:
    """Return a forwarded header; a missing one is refused: the proxy, or its caller, dropped it."""
    value = found.get(name)
    if not value:
        raise missing(name)
    return value


def missing(name: bytes) -> MalformedRequest:
    """Return the refusal for a forwarded header that is not there."""
    return MalformedRequest(Problem.HEADER_MISSING, header=name.decode())


def parse_method(raw: bytes) -> str:
    """Return one of the seven methods, which are case-sensitive (RFC 9110 §9.1)."""
    method = METHODS.get(raw)
    if method is None:
        raise MalformedRequest(Problem.METHOD_UNKNOWN, got=raw[:20])
    return method


def parse_scheme(raw: bytes) -> str:
    """Return http, https, ws or wss."""
    scheme = SCHEMES.get(raw.lower())
    if scheme is None:
        raise MalformedRequest(Problem.SCHEME_UNKNOWN, got=raw[:20])
    return scheme


def parse_host(raw: bytes) -> str:
    """Return the host name, lower-case, without port and trailing dot (RFC 3986 §3.2.2)."""
    match = _HOST.fullmatch(raw.decode("latin-1"))
    if match is None or len(raw) > 255 + 6:
        raise MalformedRequest(Problem.HOST_INVALID, got=raw[:80])
    return match["name"].lower()


def parse_target(raw: bytes) -> Target:
    r"""Return path and query of an origin-form request target (RFC 9112 §3.2.1).

    Refused, since readers differ on them: bytes outside printable ASCII, a fragment, a back-slash, ``;``, dot
    segments, empty segments, an escape that is incomplete, hides ``/``, ``\`` or a control character, is
    itself escaped, or is not UTF-8 (overlong forms included).
    """
    if len(raw) > MAX_TARGET:
        raise MalformedRequest(Problem.URL_TOO_LONG, size=len(raw))
    raw_path, _, query = raw.partition(b"?")  # a query may hold secrets: it never becomes a fact
    if not raw.startswith(b"/") or not _PRINTABLE.fullmatch(raw) or b"#" in raw or b"\\" in raw:
        raise MalformedRequest(Problem.URL_NOT_PLAIN, got=raw_path[:80])
    if b"%" in raw_path:
        if _BAD_ESCAPE.search(raw_path):
            raise MalformedRequest(Problem.PATH_ESCAPE_INCOMPLETE)
        try:
            path = unquote_to_bytes(raw_path).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedRequest(Problem.PATH_NOT_UTF8) from None
        if path.count("/") != raw_path.count(b"/") or "%" in path or "\\" in path or _CONTROL.search(path):
            raise MalformedRequest(Problem.PATH_HIDES_CHARACTER)
    else:
        path = raw_path.decode("ascii")
    if ";" in path:
        raise MalformedRequest(Problem.PATH_HAS_PARAMETERS)
    if "//" in path or "/./" in path or "/../" in path or path.endswith(("/.", "/..")):
        raise MalformedRequest(Problem.PATH_HAS_EMPTY_OR_DOT_SEGMENTS)
    return Target(path, query.decode("ascii"))


def split_url(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Return scheme, authority and target of an absolute URL, as Nginx is told to send it. None is parsed here."""
    scheme, separator, rest = raw.partition(b"://")
    authority, slash, target = rest.partition(b"/")
    if not separator or not slash:
        raise MalformedRequest(Problem.URL_NOT_ABSOLUTE, size=len(raw))
    return scheme, authority, slash + target


def parse_client_version(user_agent: bytes) -> ClientVersion | None:
    """Return the version of Prefect's client, of a release alone; None for every other User-Agent.

    Its WebSockets name no version.
    """
    match = _PREFECT.match(user_agent)
    return (int(match[1]), int(match[2]), int(match[3])) if match is not None else None


def parse_credential(authorization: bytes) -> Bearer | Basic:
    """Return what was presented, by its shape alone. Nothing is verified, and no second form is tried.

    The forms: ``Bearer TOKEN`` (RFC 6750 §2.1), ``Basic user:password`` (RFC 7617), ``Basic anything:JWT``, and
    ``Basic`` of the text ``Bearer TOKEN``. Schemes are case-insensitive (RFC 9110 §11.1). An opaque token where a
    password stands cannot be told from one, and is a password.
    """
    if len(authorization) > MAX_AUTHORIZATION:
        raise MalformedCredential(Problem.AUTHORIZATION_TOO_LARGE, size=len(authorization))
    scheme, _, rest = authorization.partition(b" ")
    scheme = scheme.lower()
    if scheme == b"bearer":
        return _parse_bearer(rest)
    if scheme == b"basic":
        return _parse_basic(rest)
    if scheme == _DPOP:
        raise MalformedCredential(Problem.AUTHORIZATION_SCHEME_DPOP)
    raise MalformedCredential(Problem.AUTHORIZATION_SCHEME_UNKNOWN)


def _parse_bearer(rest: bytes) -> Bearer:
    token = rest.strip(b" ")
    if not token or token.translate(None, _TOKEN68):
        raise MalformedCredential(Problem.BEARER_NOT_A_TOKEN)
    return Bearer(token)


def _parse_basic(rest: bytes) -> Bearer | Basic:
    try:
        text = binascii.a2b_base64(rest.strip(b" "), strict_mode=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise MalformedCredential(Problem.BASIC_NOT_BASE64) from None
    username, colon, password = text.partition(":")
    if not colon:
        scheme, _, token = text.partition(" ")
        if scheme.lower() == "bearer":
            return _parse_bearer(token.encode())
        if scheme.lower().encode() == _DPOP:
            raise MalformedCredential(Problem.AUTHORIZATION_SCHEME_DPOP)
        raise MalformedCredential(Problem.BASIC_WITHOUT_COLON)
    if is_jwt(password):
        return Bearer(password.encode("ascii"))
    if not password and _JWT_SHAPE.fullmatch(username):
        raise MalformedCredential(Problem.BASIC_TOKEN_AS_NAME)
    return parse_pair(username, password)


def is_jwt(text: str) -> bool:
    """Tell whether text has the shape of a JWT, signed (RFC 7515 §3.1) or encrypted (RFC 7516 §3.1).

    No password can have it here.
    """
    return text.startswith(_JSON_OBJECT) and _JWT_SHAPE.fullmatch(text) is not None


def is_token(text: str) -> bool:
    """Tell whether text is made of the characters of a token alone (RFC 9110 §11.2): there is no colon among them."""
    return bool(text) and text.isascii() and not text.encode().translate(None, _TOKEN68)


def parse_pair(username: str, password: str) -> Basic:
    """Return a user name and a password, or raise MalformedCredential if no user could have them."""
    possible = is_visible_name(username) and (password.isprintable() or not _CONTROL.search(password))
    if not possible or len(username) > MAX_USERNAME or len(password) > MAX_PASSWORD:
        raise MalformedCredential(Problem.PAIR_UNUSABLE)
    return Basic(username, password)
