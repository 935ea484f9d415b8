"""Where tokens come from: an OAuth client, a file, a command."""

import asyncio
import base64
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote_plus

from service.agent.endpoints import MAX_ANSWER, ask, error_in, object_in
from service.agent.tokens import SourceError, Token, expiry_in, token_of

TIMEOUT: Final = 20.0  # seconds of one run of a command
POLL: Final = 1.0  # seconds between two looks at a file


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
        url = self.token_url or await self._discover()
        form = {"grant_type": "client_credentials", "scope": self.scope, "audience": self.audience}
        headers = {}
        if self.auth == "post":
            form |= {"client_id": self.client_id, "client_secret": self.client_secret}
        else:  # RFC 6749 §2.3.1: encoded as a form first, and only then by RFC 7617
            pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
            headers = {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        data = {name: value for name, value in form.items() if value}
        status, body = await ask(url, self.tls, headers=headers, form=data)
        answer = object_in(body) or {}
        if status != HTTPStatus.OK:
            raise SourceError(f"it answered {status}{error_in(answer)}")
        return token_of(answer.get("access_token"), expiry_in(answer))

    async def _discover(self) -> str:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, body = await ask(url, self.tls)
        document = object_in(body) or {}
        endpoint = document.get("token_endpoint")
        if status != HTTPStatus.OK or not isinstance(endpoint, str):
            raise SourceError(f"{url} answered {status}, and names no token endpoint")
        if document.get("issuer") != self.issuer:
            raise SourceError(f"{url} is the document of another issuer")
        if endpoint.split(":")[0] != "https" and self.issuer.startswith("https:"):
            raise SourceError(f"{url} names a token endpoint without TLS")
        return endpoint


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
        answer = object_in(output)
        if answer is None:
            return token_of(output.decode("ascii", "replace"))
        status = answer.get("status")
        answer = status if isinstance(status, dict) else answer
        return token_of(answer.get("token", answer.get("access_token")), expiry_in(answer))
