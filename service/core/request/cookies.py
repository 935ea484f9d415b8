"""The cookies of this service: their names, how they are read, and how they are written (RFC 6265bis).

With the prefix ``__Host-`` a browser keeps a cookie to this one host, over TLS, so that no sibling domain can set it.
The names lack the prefix only where plain http beyond this machine is permitted.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from service.core.errors import MalformedRequest, SessionEnded
from service.core.model import NO_CREDENTIAL, ForwardedRequest, NoCredential, SessionCookie
from service.core.problems import Problem
from service.core.request.proxies import is_loopback

NAME: Final = b"prefect-gate"
HOST_PREFIX: Final = b"__Host-"
MAX_CHUNKS: Final = 4
CHUNK: Final = 3800  # of the 4096 bytes that browsers accept for a cookie with its name and attributes
MAX_SEALED: Final = MAX_CHUNKS * CHUNK
_PARTS: Final = tuple(NAME.decode() + (f"-{number}" if number else "") for number in range(MAX_CHUNKS))
MAX_COOKIES: Final = 24 * 1024


def keeps_secure(request: ForwardedRequest) -> bool:
    """Tell whether a browser keeps Secure cookies for this request: over TLS, or on its own machine."""
    host = request.host
    return request.scheme in {"https", "wss"} or host.endswith(".localhost") or is_loopback(host.strip("[]"))


def split_cookies(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and value of each cookie of a Cookie header (RFC 6265 §5.4)."""
    for pair in header.split(b";"):
        name, equals, value = pair.strip(b" \t").partition(b"=")
        if equals:
            yield name, value


def own_cookies(header: bytes, prefix: bytes) -> dict[bytes, bytes]:
    """Return the cookies of this service by name, without the prefix.

    Raises SessionEnded for one that is repeated, and MalformedRequest for a header that is too large.
    """
    found: dict[bytes, bytes] = {}
    if len(header) > MAX_COOKIES:
        raise MalformedRequest(Problem.COOKIES_TOO_LARGE, size=len(header))
    for name, value in split_cookies(header):
        if name.startswith(prefix + NAME):
            if name in found:
                raise SessionEnded(Problem.SESSION_COOKIE_REPEATED)
            found[name] = value
    return {name.removeprefix(prefix): value for name, value in found.items()}


def session_cookie(cookies: Mapping[bytes, bytes]) -> SessionCookie | NoCredential:
    """Return the sealed session, joined from its cookies: ``<number of parts>.<first part>``, then the other parts.

    Raises SessionEnded if a part is missing.
    """
    first = cookies.get(NAME)
    if not first:
        return NO_CREDENTIAL
    count, _, sealed = first.partition(b".")
    if not count.isdigit() or len(count) > 1 or not 1 <= int(count) <= MAX_CHUNKS:
        raise SessionEnded(Problem.SESSION_COOKIE_INCOMPLETE)
    parts = [sealed, *(cookies.get(NAME + b"-%d" % number, b"") for number in range(1, int(count)))]
    whole = b"".join(parts)
    if not all(parts) or not whole.isascii():
        raise SessionEnded(Problem.SESSION_COOKIE_INCOMPLETE)
    return SessionCookie(whole.decode("ascii"))


def strip_own_cookies(header: bytes) -> bytes:
    """Return the Cookie header for the upstream, without this service's cookies."""
    if NAME not in header:
        return header
    return b"; ".join(
        [
            pair
            for one in header.split(b";")
            if not (pair := one.strip(b" \t")).removeprefix(HOST_PREFIX).startswith(NAME)
        ]
    )


def set_cookie(name: str, value: str, max_age: int, *, secure: bool) -> str:
    """Return a Set-Cookie value; ``max_age`` is in seconds, and 0 deletes the cookie."""
    prefix = HOST_PREFIX.decode() if secure else ""
    return f"{prefix}{name}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")


def set_session(sealed: str, max_age: int, *, secure: bool) -> list[str]:
    """Return the Set-Cookie values of a sealed session of at most MAX_SEALED characters, in as many parts as needed."""
    parts = [sealed[start : start + CHUNK] for start in range(0, len(sealed), CHUNK)]
    values = [f"{len(parts)}.{parts[0]}", *parts[1:]]
    return [set_cookie(name, value, max_age, secure=secure) for name, value in zip(_PARTS, values, strict=False)]


def clear_session(*, secure: bool) -> list[str]:
    """Return the Set-Cookie values that delete a session, whatever its number of parts."""
    return [set_cookie(name, "", 0, secure=secure) for name in _PARTS]
