"""Where tokens come from: an OAuth client, a file, a command."""

import asyncio
import base64
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote_plus

from service.agent.tokens import SourceError, Token, expiry_in, token_of

if TYPE_CHECKING:
    import httpx

TIMEOUT: Final = 20.0  # seconds, of one call or one run of a command
POLL: Final = 1.0  # seconds between two looks at a file
MAX_ANSWER: Final = 64 * 1024
_MAX_ERROR: Final = 60
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """An OAuth client with an id and a secret (RFC 6749 §4.4).

    Without ``token_url``, the discovery document of ``issuer`` names the token endpoint. ``tls`` verifies both.
    """

    client_id: str
    client_secret: str = field(repr=False)
    tls: ssl.SSLContext
    token_url: str = ""
    issuer: str = ""
    scope: str = ""
    audience: str = ""
    auth: Literal["basic", "post"] = "basic"
    poll: float | None = None

    def __str__(self) -> str:
        return self.token_url or self.issuer

    async def fetch(self) -> Token:
        """Return a new token, or raise SourceError."""
        import httpx  # noqa: PLC0415 - a tenth of a second that other sources do not need

        try:
            async with asyncio.timeout(TIMEOUT), httpx.AsyncClient(verify=self.tls, timeout=TIMEOUT) as client:
                url = self.token_url or await self._discover(client)
                form = {"grant_type": "client_credentials", "scope": self.scope, "audience": self.audience}
                headers = {}
                if self.auth == "post":
                    form |= {"client_id": self.client_id, "client_secret": self.client_secret}
                else:  # RFC 6749 §2.3.1: encoded as a form first, and only then by RFC 7617
                    pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
                    headers = {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
                data = {name: value for name, value in form.items() if value}
                status, answer = await _json(client, "POST", url, headers, data)
        except TimeoutError:
            raise SourceError(f"no answer within {TIMEOUT:g} s") from None
        except httpx.HTTPError as problem:
            raise SourceError(f"{type(problem).__name__}: {problem}".rstrip(": ")) from None
        if status != _OK:
            raise SourceError(f"it answered {status}{_error_in(answer)}")
        return token_of(answer.get("access_token"), expiry_in(answer))

    async def _discover(self, client: "httpx.AsyncClient") -> str:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, document = await _json(client, "GET", url)
        endpoint = document.get("token_endpoint")
        if status != _OK or not isinstance(endpoint, str):
            raise SourceError(f"{url} answered {status}, and names no token endpoint")
        if document.get("issuer") != self.issuer:
            raise SourceError(f"{url} is the document of another issuer")
        if endpoint.split(":")[0] != "https" and self.issuer.startswith("https:"):
            raise SourceError(f"{url} names a token endpoint without TLS")
        return endpoint


async def _json(
    client: "httpx.AsyncClient",
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    data: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON object of an answer; an empty one if it has none. No redirect is followed."""
    body = bytearray()
    accept = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
    async with client.stream(method, url, headers=accept, data=data) as response:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER:
                raise SourceError(f"it answered more than {MAX_ANSWER} bytes")
    return response.status_code, _object(bytes(body)) or {}


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _error_in(answer: dict[str, Any]) -> str:
    """Return the error code of an answer (RFC 6749 §5.2): a word of a closed set, and no secret."""
    error = answer.get("error")
    return f" ({error})" if isinstance(error, str) and error.isprintable() and len(error) <= _MAX_ERROR else ""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file that something else rotates, such as a projected service-account token of Kubernetes."""

    path: Path
    poll: float | None = POLL

    def __str__(self) -> str:
        return str(self.path)

    async def fetch(self) -> Token:
        """Return the token that the file has now, or raise SourceError."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_ANSWER).decode("ascii", "replace")
        except OSError as problem:
            raise SourceError(str(problem.strerror)) from None
        return token_of(text)


@dataclass(frozen=True, slots=True)
class TokenCommand:
    """A command that prints a token, or JSON with ``token`` and ``expires_in`` or ``expires_at``.

    What the credential plugins of kubectl print (``ExecCredential``) is understood, too.
    """

    argv: tuple[str, ...]
    poll: float | None = None

    def __str__(self) -> str:
        return f"the command {self.argv[0]}"

    async def fetch(self) -> Token:
        """Run the command and return the token that it prints, or raise SourceError."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
            )
        except OSError as problem:
            raise SourceError(str(problem.strerror)) from None
        try:
            async with asyncio.timeout(TIMEOUT):
                output, _ = await process.communicate()
        except TimeoutError:
            raise SourceError(f"it did not end within {TIMEOUT:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise SourceError(f"it ended with {process.returncode}")
        answer = _object(output)
        if answer is None:
            return token_of(output.decode("ascii", "replace"))
        status = answer.get("status")
        answer = status if isinstance(status, dict) else answer
        return token_of(answer.get("token", answer.get("access_token")), expiry_in(answer))
