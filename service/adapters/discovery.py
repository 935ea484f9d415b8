"""What an issuer publishes: its discovery document and its keys (OIDC Discovery 1.0 §4, RFC 7517 §5)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from service.adapters.outbound import (
    TRY_LATER,
    FetchError,
    MisconfiguredError,
    PlainHTTP,
    call,
    open_client,
    plain_http_from,
)

MAX_DIGITS: Final = 10
MAX_TOKEN: Final = 16_384  # bytes
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=\"?(\d{1,9})")


class KeySource(NamedTuple):
    """Where the keys of an issuer are: at ``jwks_url`` or, if that is empty, where its discovery document says.

    ``internal_url`` is where this service reaches the issuer, if that is not the issuer's own URL. ``token_file`` holds
    a bearer token for ``jwks_url``, ``ca_file`` the authorities that vouch for its server.
    """

    issuer: str
    jwks_url: str = ""
    internal_url: str = ""
    allow_http: PlainHTTP = PlainHTTP.NOWHERE
    token_file: str = ""
    ca_file: str = ""

    @classmethod
    def configured(
        cls,
        issuer: str,
        *,
        jwks_url: str = "",
        internal_url: str = "",
        allow_http: bool = False,
        token_file: str = "",
        ca_file: str = "",
    ) -> "KeySource":
        """Return the configured source. Plain http may lead to loopback if the source itself is there."""
        asked = internal_url or jwks_url or issuer
        plain_http = plain_http_from(asked, allow_http=allow_http)
        return cls(issuer, jwks_url, internal_url, plain_http, token_file, ca_file)

    def internal(self, url: str) -> str:
        """Return the URL under which this service reaches an endpoint of the issuer."""
        return _moved(url, self.issuer, self.internal_url) if self.internal_url else url

    def public(self, url: str) -> str:
        """Return the URL under which a browser reaches an endpoint of the issuer."""
        return _moved(url, self.internal_url, self.issuer) if self.internal_url else url


def _moved(url: str, source: str, target: str) -> str:
    """Return a URL below ``source``, or at its origin, as the same one below ``target``; any other as it is."""
    source, target = source.rstrip("/"), target.rstrip("/")
    if url == source or url.startswith((f"{source}/", f"{source}?")):
        return target + url.removeprefix(source)
    origin = _origin(source)
    return _origin(target) + url.removeprefix(origin) if url.startswith(f"{origin}/") else url


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class Published(NamedTuple):
    """What was fetched: the discovery document (empty where there was none to fetch), and the JWK set.

    ``max_age`` is for how many seconds the JWK set is fresh, or None where the issuer does not say.
    """

    metadata: Mapping[str, Any]
    jwks: bytes
    max_age: float | None


async def fetch_published(client: httpx.AsyncClient, source: KeySource, timeout: float) -> Published:  # noqa: ASYNC109 - of each of two calls
    """Fetch an issuer's discovery document, where needed, and its keys.

    ``timeout`` is in seconds. Raises FetchError, TimeoutError, OSError or httpx.HTTPError where they cannot be had.
    """
    if source.ca_file:
        async with open_client(client.headers["user-agent"], authorities=source.ca_file) as own:
            return await fetch_published(own, source._replace(ca_file=""), timeout)
    metadata: Mapping[str, Any] = {}
    url = source.jwks_url
    if not url:
        discovery_url = source.internal(f"{source.issuer.rstrip('/')}/.well-known/openid-configuration")
        document, _ = await _get(client, discovery_url, source.allow_http, timeout)
        metadata = parse_discovery(document, source.issuer)
        url = source.internal(metadata["jwks_uri"])
    headers = {"authorization": f"Bearer {_token_in(source.token_file)}"} if source.token_file else None
    jwks, max_age = await _get(client, url, source.allow_http, timeout, headers)
    return Published(metadata, jwks, max_age)


def _token_in(path: str) -> str:
    """Return the token of a file, which others replace while the service runs."""
    token = Path(path).read_bytes()[:MAX_TOKEN].decode("ascii", "replace").strip()
    if not token or not token.isprintable() or not token.isascii():
        raise FetchError(f"{path} holds no token")
    return token


async def _get(
    client: httpx.AsyncClient,
    url: str,
    allow_http: PlainHTTP,
    timeout: float,  # noqa: ASYNC109 - httpx's own bound is for each read
    headers: Mapping[str, str] | None = None,
) -> tuple[bytes, float | None]:
    """Return a bounded body and its max-age; no redirect is followed, no other scheme is opened."""
    answer = await call(client, "GET", url, allow_http=allow_http, timeout=timeout, headers=headers)
    if answer.status != httpx.codes.OK:
        message = f"{url} answered {answer.status}, expected 200 (redirects are not followed)"
        if httpx.codes.is_server_error(answer.status) or answer.status in TRY_LATER:
            raise FetchError(message)
        raise MisconfiguredError(f"{message}: check the configured URL, its path and its last slash included")
    return answer.body, parse_max_age(answer.headers)


def parse_discovery(document: bytes, issuer: str) -> dict[str, Any]:
    """Return a discovery document that speaks for this very issuer and names its keys (OIDC Discovery §4.3)."""
    try:
        metadata = json.loads(document)
    except (ValueError, RecursionError):
        raise MisconfiguredError(f"what {issuer} answers is no discovery document: check the configured URL") from None
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        named = metadata.get("issuer") if isinstance(metadata, dict) else None
        raise MisconfiguredError(
            f"the discovery document is of issuer {named!r:.200}, expected exactly {issuer!r}: configure the issuer as "
            "it names itself"
        )
    if not isinstance(metadata.get("jwks_uri"), str):
        raise FetchError("the discovery document has no jwks_uri")
    return metadata


def parse_max_age(headers: httpx.Headers) -> float | None:
    """Return for how many seconds a response is fresh (RFC 9111 §4.2), or None where it does not say.

    ``no-cache`` and ``no-store`` name no time: they are about copies that others would serve, not about these keys.
    """
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return None
    match = _MAX_AGE.search(control)
    if match is None:
        return None
    age = headers.get("age", "0")
    return max(0.0, float(match[1]) - (float(age) if age.isdecimal() and len(age) < MAX_DIGITS else 0.0))
