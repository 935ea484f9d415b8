"""Where each proxy puts the original request, and what may not be missing there."""

from functools import lru_cache
from typing import Final

from service.core.errors import MalformedRequest
from service.core.model import Face, ForwardedRequest
from service.core.proxies import TrustedProxies
from service.core.request import (
    Headers,
    collect,
    parse_host,
    parse_method,
    parse_scheme,
    parse_target,
    parse_url,
    require,
)

MAX_REMEMBERED: Final = 512  # bytes; strangers' long requests must not fill the memory
_FORWARD_AUTH: Final = frozenset(
    {
        b"authorization",
        b"x-forwarded-method",
        b"x-forwarded-uri",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-for",
    }
)
_AUTH_REQUEST: Final = frozenset({b"authorization", b"x-original-method", b"x-original-url", b"x-forwarded-for"})
_EXT_AUTHZ: Final = frozenset({b"authorization", b"host", b"x-forwarded-proto", b"x-forwarded-for"})


def parse_call(
    face: Face, method: str, raw_target: bytes, headers: Headers, proxies: TrustedProxies
) -> tuple[ForwardedRequest, bytes | None]:
    """Return the original request behind a verify call, and its Authorization header.

    ``method`` and ``raw_target`` are the verify call's own; only Envoy's carry the original ones. Raises
    MalformedRequest where anything is missing, repeated or unreadable: a proxy drops a forwarded header that a
    client names in ``Connection``, so what is missing may have been made to.
    """
    if face is Face.FORWARD_AUTH:
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
        except KeyError as missing:
            require(found, missing.args[0])
            raise
    elif face is Face.AUTH_REQUEST:
        found = collect(headers, _AUTH_REQUEST)
        scheme, host, target = parse_url(require(found, b"x-original-url"))
        request = ForwardedRequest(
            parse_method(require(found, b"x-original-method")),
            scheme,
            host,
            target.path,
            target.query,
            _optional_client(found, proxies),
        )
    else:
        found = collect(headers, _EXT_AUTHZ)
        target = parse_target(raw_target)
        request = ForwardedRequest(
            parse_method(method.encode("latin-1", "replace")),
            parse_scheme(found.get(b"x-forwarded-proto", b"http")),
            parse_host(require(found, b"host")),
            target.path,
            target.query,
            _optional_client(found, proxies),
        )
    if face is not Face.EXT_AUTHZ and method != "GET":
        raise MalformedRequest("The verify endpoint is asked with GET.", reason=f"method {method!r:.20}")
    return request, found.get(b"authorization")


def _forwarded(
    method: bytes, uri: bytes, host: bytes, proto: bytes, forwarded_for: bytes, proxies: TrustedProxies
) -> ForwardedRequest:
    target = parse_target(uri)
    client = proxies.client_of(forwarded_for)
    return ForwardedRequest(
        parse_method(method), parse_scheme(proto), parse_host(host), target.path, target.query, client
    )


_remembered: Final = lru_cache(maxsize=4096)(_forwarded)  # a caller who polls sends the same again and again


def _optional_client(found: dict[bytes, bytes], proxies: TrustedProxies) -> str:
    forwarded_for = found.get(b"x-forwarded-for")
    return proxies.client_of(forwarded_for) if forwarded_for else ""
