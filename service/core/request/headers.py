"""Headers → ForwardedRequest and Credential: the only place where a caller's bytes are parsed.

Whatever two readers could understand differently is refused here, so that nothing behind has to ask. The
upstream's router decodes a path once and matches it exactly; a path that a proxy, this service and the
upstream could each read in another way has no meaning that could be allowed.
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from service.core.errors import MalformedCredential, MalformedRequest
from service.core.model import Basic, Bearer

Headers = Sequence[tuple[bytes, bytes]]

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
_TOKEN68: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="  # RFC 9110 §11.2
_JWT_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
_JSON_OBJECT: Final = "eyJ"  # base64url of '{"': how every compact JWS and JWE begins


class Target(NamedTuple):
    """The path of a request target, percent-decoded, and its query, as sent."""

    path: str
    query: str


def collect(headers: Headers, wanted: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the headers by name; a wanted one that is repeated is refused, for readers differ on which counts."""
    found = dict(headers)
    if len(found) != len(headers):
        names = [name for name, _ in headers]
        for name in wanted:
            if names.count(name) > 1:
                raise MalformedRequest(f"The header {name.decode()} was sent more than once. Send it once.")
    return found


def require(found: Mapping[bytes, bytes], name: bytes) -> bytes:
    """Return a forwarded header; one that is absent is refused: the proxy, or its caller, dropped it."""
    value = found.get(name)
    if not value:
        raise MalformedRequest(f"The proxy did not send {name.decode()}. Check its forward-auth configuration.")
    return value


def parse_method(raw: bytes) -> str:
    """Return one of the seven methods, which are case-sensitive (RFC 9110 §9.1)."""
    method = METHODS.get(raw)
    if method is None:
        raise MalformedRequest("The request's method is not one that Prefect's API has.", reason=repr(raw[:20]))
    return method


def parse_scheme(raw: bytes) -> str:
    """Return http, https, ws or wss."""
    scheme = SCHEMES.get(raw.lower())
    if scheme is None:
        raise MalformedRequest("The forwarded protocol is neither HTTP nor WebSocket.", reason=repr(raw[:20]))
    return scheme


def parse_host(raw: bytes) -> str:
    """Return the host name, lower-case, without port and trailing dot (RFC 3986 §3.2.2)."""
    match = _HOST.fullmatch(raw.decode("latin-1"))
    if match is None or len(raw) > 255 + 6:
        raise MalformedRequest("The forwarded host is not a host name.", reason=repr(raw[:80]))
    return match["name"].lower()


def parse_target(raw: bytes) -> Target:
    r"""Return path and query of an origin-form request target (RFC 9112 §3.2.1).

    Refused, since readers differ on them: bytes outside printable ASCII, a fragment, a back-slash, ``;``, dot
    segments, empty segments, an escape that is incomplete, hides ``/``, ``\`` or a control character, is
    itself escaped, or is not UTF-8 (overlong forms included).
    """
    if len(raw) > MAX_TARGET:
        raise MalformedRequest("The request's URL is too long.", reason=f"{len(raw)} bytes")
    raw_path, _, query = raw.partition(b"?")  # in a query there may be secrets, which are not for the log
    if not raw.startswith(b"/") or not _PRINTABLE.fullmatch(raw) or b"#" in raw or b"\\" in raw:
        raise MalformedRequest("The request's URL is not a plain path and query.", reason=repr(raw_path[:80]))
    if b"%" in raw_path:
        if _BAD_ESCAPE.search(raw_path):
            raise MalformedRequest("The request's path has an incomplete percent-escape.")
        try:
            path = unquote_to_bytes(raw_path).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedRequest("The request's path is not UTF-8.") from None
        if path.count("/") != raw_path.count(b"/") or "%" in path or "\\" in path or _CONTROL.search(path):
            raise MalformedRequest("The request's path hides a character that changes its meaning.")
    else:
        path = raw_path.decode("ascii")
    if ";" in path:
        raise MalformedRequest("The request's path has parameters (';').")
    if "//" in path or "/./" in path or "/../" in path or path.endswith(("/.", "/..")):
        raise MalformedRequest("The request's path has empty or dot segments.")
    return Target(path, query.decode("ascii"))


def split_url(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Return scheme, authority and target of an absolute URL, as Nginx is told to send it; none is parsed yet."""
    scheme, separator, rest = raw.partition(b"://")
    authority, slash, target = rest.partition(b"/")
    if not separator or not slash:
        raise MalformedRequest("The original URL is not absolute.", reason=f"{len(raw)} bytes")
    return scheme, authority, slash + target


def parse_credential(authorization: bytes) -> Bearer | Basic:
    """Return what was presented, by its shape alone; nothing is verified, and nothing is tried twice.

    The forms: ``Bearer JWT`` (RFC 6750 §2.1), ``Basic user:password`` (RFC 7617), ``Basic anything:JWT``, and
    ``Basic`` of the text ``Bearer JWT``. Schemes are case-insensitive (RFC 9110 §11.1).
    """
    if len(authorization) > MAX_AUTHORIZATION:
        raise MalformedCredential("The Authorization header is too large.", reason=f"{len(authorization)} bytes")
    scheme, _, rest = authorization.partition(b" ")
    scheme = scheme.lower()
    if scheme == b"bearer":
        return _parse_bearer(rest)
    if scheme == b"basic":
        return _parse_basic(rest)
    raise MalformedCredential("The Authorization header is neither Bearer nor Basic.")


def _parse_bearer(rest: bytes) -> Bearer:
    token = rest.strip(b" ")
    if not token or token.translate(None, _TOKEN68):
        raise MalformedCredential("The Bearer credential is not a token: expected 'Bearer <JWT>'.")
    return Bearer(token)


def _parse_basic(rest: bytes) -> Bearer | Basic:
    try:
        text = binascii.a2b_base64(rest.strip(b" "), strict_mode=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise MalformedCredential("The Basic credential is not base64 of UTF-8 text (RFC 7617).") from None
    username, colon, password = text.partition(":")
    if not colon:
        scheme, _, token = text.partition(" ")
        if scheme.lower() == "bearer":
            return _parse_bearer(token.encode())
        raise MalformedCredential(
            "The Basic credential has no colon: set PREFECT_API_AUTH_STRING to 'user:password', or to "
            "'jwt:<token>' for a JWT."
        )
    if password.startswith(_JSON_OBJECT) and _JWT_SHAPE.fullmatch(password):
        return Bearer(password.encode("ascii"))
    if not password and _JWT_SHAPE.fullmatch(username):
        raise MalformedCredential("The token stands where the user name belongs: use 'https://jwt:<token>@host'.")
    return parse_pair(username, password)


def parse_pair(username: str, password: str) -> Basic:
    """Return a user name and a password that somebody could have, or raise MalformedCredential."""
    text = username + password
    plain = text.isprintable() or not _CONTROL.search(text)
    if not username or len(username) > MAX_USERNAME or len(password) > MAX_PASSWORD or not plain:
        raise MalformedCredential("The user name or password is empty, too long, or has control characters.")
    return Basic(username, password)
