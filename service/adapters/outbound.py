"""Calls to providers: limited in time and size, to http and https only, without following redirects."""

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from service.adapters.environment import OutboundEnvironment, read_environment
from service.core.request.proxies import is_loopback

MAX_DOCUMENT: Final = 512 * 1024


class PlainHTTP(Enum):
    """Where plain http may be used. Anybody on the way could answer such a call."""

    NOWHERE = "nowhere"
    LOOPBACK = "loopback"
    ANYWHERE = "anywhere"


TRY_LATER: Final = frozenset({408, 425, 429})  # statuses beside 5xx that say nothing of what was asked for


class FetchError(Exception):
    """An answer that cannot be used. The message is for the log."""


class MisconfiguredError(FetchError):
    """An answer that says that something else is there than the configuration expects: waiting does not help."""


class Answer(NamedTuple):
    """An answer. Its body may contain tokens and is not part of its repr."""

    status: int
    headers: httpx.Headers
    body: bytes

    def __repr__(self) -> str:
        return f"Answer(status={self.status})"


class _Transport(httpx.AsyncBaseTransport):
    """Calls each server through the proxy that the environment has for it, or directly."""

    def __init__(self, environment: OutboundEnvironment) -> None:
        tls = environment.tls()
        self._environment = environment
        self._direct = httpx.AsyncHTTPTransport(verify=tls, trust_env=False)
        self._through = {
            url: httpx.AsyncHTTPTransport(verify=tls, trust_env=False, proxy=_proxy(url, tls))
            for url in set(environment.proxies.values())
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._environment.proxy_for(request.url)
        transport = self._direct if proxy is None else self._through[proxy]
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        for transport in (self._direct, *self._through.values()):
            await transport.aclose()


def _proxy(url: str, tls: ssl.SSLContext) -> httpx.Proxy:
    return httpx.Proxy(url, ssl_context=tls if url.startswith("https:") else None)


def open_client(
    user_agent: str, environ: Mapping[str, str] = os.environ, *, authorities: str = ""
) -> httpx.AsyncClient:
    """Return a client for everybody's calls: it follows no redirect, and keeps no cookie of one for another.

    Proxies and authorities are those of the environment; what else HTTP clients find there, as the passwords of a
    .netrc, is not looked at. ``authorities`` is a PEM file with others. Raises VariableError where the environment
    cannot be used, and OSError where that file cannot.
    """
    environment = read_environment(environ)
    if authorities:
        environment = replace(environment, authorities=authorities)
    return httpx.AsyncClient(
        headers={"user-agent": user_agent},
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        transport=_Transport(environment),
        trust_env=False,
    )


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    allow_http: PlainHTTP,
    timeout: float,  # noqa: ASYNC109 - of the whole call, which httpx has no bound for
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    max_size: int = MAX_DOCUMENT,
) -> Answer:
    """Return the answer, with any status; raise FetchError, TimeoutError or httpx.HTTPError if there is none.

    A body of more than ``max_size`` bytes is no answer.
    """
    check_url(url, allow_http=allow_http)
    sent = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
    async with (
        asyncio.timeout(timeout),
        client.stream(method, url, headers=sent, data=form, timeout=timeout, follow_redirects=False) as response,
    ):
        coding = response.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":  # a kilobyte may stand for a megabyte, which would have to be made first
            raise FetchError(f"{url} sent what nobody asked for: content-encoding {coding!r:.40}")
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > max_size:
                raise FetchError(f"{url} sent more than {max_size} bytes")
        return Answer(response.status_code, response.headers, bytes(body))


def plain_http_from(url: str, *, allow_http: bool) -> PlainHTTP:
    """Return where plain http may lead, for a configured URL and for URLs that its documents name.

    A document from elsewhere may not send this service to its own machine, where other things listen.
    """
    if allow_http:
        return PlainHTTP.ANYWHERE
    return PlainHTTP.LOOPBACK if is_loopback(urlsplit(url).hostname or "") else PlainHTTP.NOWHERE


def check_url(url: str, *, allow_http: PlainHTTP) -> None:
    """Raise FetchError unless the URL is https, or plain http where that is allowed."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise FetchError(f"{url!r:.200} is no URL") from None
    over_http = allow_http is PlainHTTP.ANYWHERE or (allow_http is PlainHTTP.LOOPBACK and is_loopback(host or ""))
    if host and (parts.scheme == "https" or (parts.scheme == "http" and over_http)):
        return
    raise FetchError(f"{url!r:.200} is not an https URL (allow_http permits plain http)")
