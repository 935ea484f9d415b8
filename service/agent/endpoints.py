"""One call of an endpoint that gives tokens."""

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlencode, urlsplit

import certifi

from service.agent.tokens import SourceError
from service.core.mistakes import MistakeError

if TYPE_CHECKING:
    import httpcore

CALL_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 * 1024
_MAX_ERROR: Final = 60


def tls_trusting(file: str | None) -> ssl.SSLContext:
    """Return TLS that trusts the authorities of a file, or those of certifi; raise MistakeError if it is unusable."""
    try:
        return ssl.create_default_context(cafile=file or certifi.where())
    except OSError as problem:
        raise MistakeError(f"the authorities of {file} cannot be read: {problem.strerror}") from None


async def ask(
    url: str,
    tls: ssl.SSLContext,
    *,
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    direct: bool = False,
) -> tuple[int, bytes]:
    """Return the status and the body of an answer to GET, or to POST of a form; raise SourceError if there is none.

    No redirect is followed. The proxy of the environment (``HTTPS_PROXY``, ``NO_PROXY``) is used unless ``direct``.
    """
    import httpcore  # noqa: PLC0415 - other sources need none; httpx takes five times as long to load

    body = bytearray()
    sent = [("accept", "application/json"), ("accept-encoding", "identity"), *(headers or {}).items()]
    content = None
    if form is not None:
        sent.append(("content-type", "application/x-www-form-urlencoded"))
        content = urlencode(form).encode()
    failures = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpcore.TimeoutException)
    try:
        async with (
            asyncio.timeout(CALL_SECONDS),
            httpcore.AsyncConnectionPool(ssl_context=tls, proxy=None if direct else _proxy_to(url)) as pool,
            pool.stream("GET" if content is None else "POST", url, headers=sent, content=content) as response,
        ):
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise SourceError(f"it answered more than {MAX_ANSWER} bytes")
    except TimeoutError:
        raise SourceError(f"no answer within {CALL_SECONDS:g} s") from None
    except failures as problem:
        raise SourceError(f"{type(problem).__name__}: {problem}".rstrip(": ")) from None
    return response.status, bytes(body)


def object_in(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a body, or None if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def error_in(answer: Mapping[str, Any]) -> str:
    """Return the error code of an answer (RFC 6749 §5.2) for a message: a word of a closed set, and no secret."""
    error = answer.get("error")
    return f" ({error})" if isinstance(error, str) and error.isprintable() and len(error) <= _MAX_ERROR else ""


def _proxy_to(url: str) -> "httpcore.Proxy | None":
    """Return the proxy that the environment names for a URL."""
    if not any(name.lower() in {"https_proxy", "http_proxy", "all_proxy"} for name in os.environ):
        return None
    import urllib.request  # noqa: PLC0415 - it loads much

    import httpcore  # noqa: PLC0415 - as above

    target, proxies = urlsplit(url), urllib.request.getproxies()
    named = proxies.get(target.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(target.netloc):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme not in {"http", "https"} or not proxy.hostname:
        raise SourceError("the proxy that the environment names is no URL of HTTP")
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    host = f"[{proxy.hostname}]" if ":" in proxy.hostname else proxy.hostname
    port = proxy.port or (443 if proxy.scheme == "https" else 80)
    return httpcore.Proxy(f"{proxy.scheme}://{host}:{port}", auth=auth)
