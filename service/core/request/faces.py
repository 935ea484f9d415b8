"""Where each kind of proxy puts the original request, and which headers it must send."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from service.core.errors import MalformedRequest
from service.core.model import Browser, Face, ForwardedRequest
from service.core.problems import Problem
from service.core.request.headers import (
    Headers,
    collect,
    missing,
    parse_host,
    parse_method,
    parse_scheme,
    parse_target,
    require,
    split_url,
)
from service.core.request.proxies import TrustedProxies

_TRAEFIK: Final = Face.FORWARD_AUTH  # Python 3.11 takes long to find a member of an enumeration
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # "safe" in RFC 9110 §9.2.1
MAX_REMEMBERED: Final = 512  # bytes; long requests of strangers must not fill the memory
_PLAIN, _TLS = ("http://", ":80"), ("https://", ":443")
_ORIGIN: Final = {"http": _PLAIN, "ws": _PLAIN, "https": _TLS, "wss": _TLS}
_NO_OTHER_SITE: Final = frozenset({b"same-origin", b"none"})  # none: the person typed the address, or used a bookmark
_FROM_CALLERS: Final = (b"authorization", b"cookie", b"origin", b"sec-fetch-mode", b"sec-fetch-site")
_FORWARD_AUTH: Final = frozenset(
    {
        *_FROM_CALLERS,
        b"x-forwarded-method",
        b"x-forwarded-uri",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-for",
    }
)
_AUTH_REQUEST: Final = frozenset({*_FROM_CALLERS, b"x-original-method", b"x-original-url", b"x-forwarded-for"})
_EXT_AUTHZ: Final = frozenset({*_FROM_CALLERS, b"host", b"x-forwarded-proto", b"x-forwarded-for"})


def parse_call(
    face: Face, method: str, raw_target: bytes, headers: Headers, proxies: TrustedProxies
) -> tuple[ForwardedRequest, Mapping[bytes, bytes]]:
    """Return the original request of a verify call, and the call's headers. No header that is read may be repeated.

    ``method`` and ``raw_target`` are the verify call's own; only Envoy's carry the original ones. Raises
    MalformedRequest if a header is missing, repeated or unreadable. A missing one is never guessed: a proxy drops a
    forwarded header that the client names in ``Connection``.
    """
    if face is _TRAEFIK:
        found = collect(headers, _FORWARD_AUTH)
        try:
            uri, forwarded_for = found[b"x-forwarded-uri"], found[b"x-forwarded-for"]
            forwarded = _remembered if len(uri) + len(forwarded_for) <= MAX_REMEMBERED else _forwarded
            request = forwarded(
                found[b"x-forwarded-method"],
                uri,
                found[b"x-forwarded-host"],
                found[b"x-forwarded-proto"],
                forwarded_for,
                proxies,
            )
        except KeyError as absent:
            raise missing(absent.args[0]) from None
    elif face is Face.AUTH_REQUEST:
        found = collect(headers, _AUTH_REQUEST)
        scheme, authority, target = split_url(require(found, b"x-original-url"))
        method_of_origin = require(found, b"x-original-method")
        request = _request(method_of_origin, scheme, authority, target, _optional_client(found, proxies))
    elif face is Face.RELAY:
        return parse_routed(method, raw_target, headers, proxies)
    else:
        found = collect(headers, _EXT_AUTHZ)
        request = _request(
            method.encode("latin-1", "replace"),
            found.get(b"x-forwarded-proto", b"http"),
            require(found, b"host"),
            raw_target,
            _optional_client(found, proxies),
        )
    if method != "GET" and face is not Face.EXT_AUTHZ:
        raise MalformedRequest(Problem.VERIFY_METHOD_NOT_GET, got=method[:20])
    return request, found


def _forwarded(
    method: bytes, uri: bytes, host: bytes, proto: bytes, forwarded_for: bytes, proxies: TrustedProxies
) -> ForwardedRequest:
    client = _client if len(forwarded_for) <= MAX_REMEMBERED else TrustedProxies.client_of
    return _request(method, proto, host, uri, client(proxies, forwarded_for))


def _request(method: bytes, scheme: bytes, authority: bytes, raw_target: bytes, client: str) -> ForwardedRequest:
    parsed_scheme, host, target = parse_scheme(scheme), parse_host(authority), parse_target(raw_target)
    shown, default_port = _ORIGIN[parsed_scheme]
    origin = shown + authority.decode("ascii").lower().removesuffix(default_port)
    raw = raw_target.decode("ascii")
    return ForwardedRequest(parse_method(method), parsed_scheme, host, target.path, target.query, client, raw, origin)


_remembered: Final = lru_cache(maxsize=4096)(_forwarded)  # clients that poll send the same request again and again
_client: Final = lru_cache(maxsize=4096)(TrustedProxies.client_of)  # and each sends others, too


def _optional_client(found: dict[bytes, bytes], proxies: TrustedProxies) -> str:
    forwarded_for = found.get(b"x-forwarded-for")
    return proxies.client_of(forwarded_for) if forwarded_for else ""


def parse_browser(found: Mapping[bytes, bytes], request: ForwardedRequest) -> Browser:
    """Return what a browser says about a request: by Fetch Metadata, or else by Origin and Accept.

    Browsers send Sec-Fetch-* over https and to localhost only. A page's script can set neither these nor Origin. Some
    proxies pass Upgrade on, and some drop it.
    """
    site = found.get(b"sec-fetch-site")
    navigates = request.method in READS and shows_answer(found)
    websocket = found.get(b"sec-fetch-mode") == b"websocket" or b"upgrade" in found
    if site is not None:
        return Browser(navigates, site == b"same-origin", site not in _NO_OTHER_SITE, websocket)
    origin, own = found.get(b"origin"), request.origin.encode()
    return Browser(navigates, origin == own, origin not in {None, own}, websocket)


def shows_answer(found: Mapping[bytes, bytes]) -> bool:
    """Tell whether a browser shows the answer to a person, who opens a page or sends a form."""
    mode = found.get(b"sec-fetch-mode")
    return found.get(b"accept", b"").startswith(b"text/html") if mode is None else mode == b"navigate"


def browser_of(found: Mapping[bytes, bytes], request: ForwardedRequest) -> Browser | None:
    """Return what a browser says about a request, or None if no header shows that a browser sent it."""
    if b"sec-fetch-mode" in found or b"sec-fetch-site" in found or b"origin" in found:
        return parse_browser(found, request)
    return parse_browser(found, request) if found.get(b"accept", b"").startswith(b"text/html") else None


def parse_routed(
    method: str, raw_target: bytes, headers: Headers, proxies: TrustedProxies
) -> tuple[ForwardedRequest, Mapping[bytes, bytes]]:
    """Return a request that the proxy routed to this service itself, and its headers.

    That is one for a page under /_auth/, or a WebSocket for the relay. The proxy may name the host in X-Forwarded-Host
    or leave it in Host.
    """
    found = collect(headers, _FORWARD_AUTH | _EXT_AUTHZ)
    request = _request(
        method.encode("latin-1", "replace"),
        found.get(b"x-forwarded-proto", b"http"),
        found.get(b"x-forwarded-host") or require(found, b"host"),
        raw_target,
        _optional_client(found, proxies),
    )
    return request, found
