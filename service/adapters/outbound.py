"""One call to a provider: bounded in time and size, to no other scheme, with no redirect followed."""

import asyncio
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from service.core.proxies import is_loopback

MAX_DOCUMENT: Final = 512 * 1024


class FetchError(Exception):
    """An answer that is none; the message is for the log."""


class Answer(NamedTuple):
    """What came back. Its body may hold tokens, and is never shown."""

    status: int
    headers: httpx.Headers
    body: bytes

    def __repr__(self) -> str:
        return f"Answer(status={self.status})"


def open_client(user_agent: str) -> httpx.AsyncClient:
    """Return a client for everybody's calls: it follows no redirect, and keeps no cookie of one for another."""
    return httpx.AsyncClient(
        headers={"user-agent": user_agent},
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    allow_http: bool,
    timeout: float,  # noqa: ASYNC109 - of the whole call, which httpx has no bound for
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
) -> Answer:
    """Return the answer, whatever its status; FetchError, TimeoutError or httpx.HTTPError where there is none."""
    check_url(url, allow_http=allow_http)
    sent = {"accept": "application/json", **(headers or {})}
    async with (
        asyncio.timeout(timeout),
        client.stream(method, url, headers=sent, data=form, timeout=timeout, follow_redirects=False) as response,
    ):
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_DOCUMENT:
                raise FetchError(f"{url} sent more than {MAX_DOCUMENT} bytes")
        return Answer(response.status_code, response.headers, bytes(body))


def check_url(url: str, *, allow_http: bool) -> None:
    """Refuse every URL but https; plain http passes on loopback, and elsewhere only where it was allowed."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise FetchError(f"{url!r:.200} is no URL") from None
    if parts.scheme == "https" and host:
        return
    if parts.scheme == "http" and host and (allow_http or is_loopback(host)):
        return
    raise FetchError(f"{url!r:.200} is not an https URL (allow_http permits plain http)")
