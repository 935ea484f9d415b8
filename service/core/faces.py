"""Where each proxy puts the original request, and what may not be missing there."""

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

_WANTED: Final = {
    Face.FORWARD_AUTH: frozenset(
        {
            b"authorization",
            b"x-forwarded-method",
            b"x-forwarded-uri",
            b"x-forwarded-host",
            b"x-forwarded-proto",
            b"x-forwarded-for",
        }
    ),
    Face.AUTH_REQUEST: frozenset(
        {b"authorization", b"x-original-method", b"x-original-url", b"x-forwarded-for"},
    ),
    Face.EXT_AUTHZ: frozenset({b"authorization", b"host", b"x-forwarded-proto", b"x-forwarded-for"}),
}


def parse_call(
    face: Face, method: str, raw_target: bytes, headers: Headers, proxies: TrustedProxies
) -> tuple[ForwardedRequest, bytes | None]:
    """Return the original request behind a verify call, and its Authorization header.

    ``method`` and ``raw_target`` are the verify call's own; only Envoy's carry the original ones. Raises
    MalformedRequest where anything is missing, repeated or unreadable: a proxy drops a forwarded header that a
    client names in ``Connection``, so what is missing may have been made to.
    """
    found = collect(headers, _WANTED[face])
    authorization = found.get(b"authorization")
    if face is Face.FORWARD_AUTH:
        target = parse_target(require(found, b"x-forwarded-uri"))
        request = ForwardedRequest(
            parse_method(require(found, b"x-forwarded-method")),
            parse_scheme(require(found, b"x-forwarded-proto")),
            parse_host(require(found, b"x-forwarded-host")),
            target.path,
            target.query,
            proxies.client_of(require(found, b"x-forwarded-for")),
        )
    elif face is Face.AUTH_REQUEST:
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
    return request, authorization


def _optional_client(found: dict[bytes, bytes], proxies: TrustedProxies) -> str:
    forwarded_for = found.get(b"x-forwarded-for")
    return proxies.client_of(forwarded_for) if forwarded_for else ""
