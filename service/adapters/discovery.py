"""What an issuer publishes: its discovery document and its keys (OIDC Discovery 1.0 §4, RFC 7517 §5)."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx

from service.adapters.outbound import FetchError, PlainHTTP, call, plain_http_from

MAX_DIGITS: Final = 10
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=\"?(\d{1,9})")


class KeySource(NamedTuple):
    """Where the keys of an issuer are: at ``jwks_url``, or where its discovery document says if that is empty."""

    issuer: str
    jwks_url: str = ""
    allow_http: PlainHTTP = PlainHTTP.NOWHERE

    @classmethod
    def configured(cls, issuer: str, jwks_url: str = "", *, allow_http: bool = False) -> "KeySource":
        """Return the source that configuration names; plain http may lead to loopback if the source is there."""
        return cls(issuer, jwks_url, plain_http_from(jwks_url or issuer, allow_http=allow_http))


class Published(NamedTuple):
    """What was fetched: the discovery document (empty where there was none to fetch), and the JWK set.

    ``max_age`` is for how many seconds the JWK set is fresh, or None where the issuer does not say.
    """

    metadata: Mapping[str, Any]
    jwks: bytes
    max_age: float | None


async def fetch_published(client: httpx.AsyncClient, source: KeySource, timeout: float) -> Published:  # noqa: ASYNC109 - of each of two calls
    """Fetch an issuer's discovery document, where needed, and its keys.

    ``timeout`` is in seconds. Raises FetchError, TimeoutError or httpx.HTTPError where they cannot be had.
    """
    metadata: Mapping[str, Any] = {}
    url = source.jwks_url
    if not url:
        discovery_url = f"{source.issuer.rstrip('/')}/.well-known/openid-configuration"
        document, _ = await _get(client, discovery_url, source.allow_http, timeout)
        metadata = parse_discovery(document, source.issuer)
        url = metadata["jwks_uri"]
    jwks, max_age = await _get(client, url, source.allow_http, timeout)
    return Published(metadata, jwks, max_age)


async def _get(
    client: httpx.AsyncClient,
    url: str,
    allow_http: PlainHTTP,
    timeout: float,  # noqa: ASYNC109 - httpx's own bound is for each read
) -> tuple[bytes, float | None]:
    """Return a bounded body and its max-age; no redirect is followed, no other scheme is opened."""
    answer = await call(client, "GET", url, allow_http=allow_http, timeout=timeout)
    if answer.status != httpx.codes.OK:
        raise FetchError(f"{url} answered {answer.status}, expected 200 (redirects are not followed)")
    return answer.body, parse_max_age(answer.headers)


def parse_discovery(document: bytes, issuer: str) -> dict[str, Any]:
    """Return a discovery document that speaks for this very issuer and names its keys (OIDC Discovery §4.3)."""
    try:
        metadata = json.loads(document)
    except (ValueError, RecursionError):
        raise FetchError("the discovery document is not JSON") from None
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        named = metadata.get("issuer") if isinstance(metadata, dict) else None
        raise FetchError(f"the discovery document is of issuer {named!r:.200}, expected exactly {issuer!r}")
    if not isinstance(metadata.get("jwks_uri"), str):
        raise FetchError("the discovery document has no jwks_uri")
    return metadata


def parse_max_age(headers: httpx.Headers) -> float | None:
    """Return for how many seconds a response is fresh (RFC 9111 §4.2), 0 if it may not be cached, or None."""
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    match = _MAX_AGE.search(control)
    if match is None:
        return None
    age = headers.get("age", "0")
    return max(0.0, float(match[1]) - (float(age) if age.isdecimal() and len(age) < MAX_DIGITS else 0.0))
