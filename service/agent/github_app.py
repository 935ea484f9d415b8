"""A GitHub App's tokens: an hour for one installation, to read the contents of repositories.

GitHub's documentation: "Authenticating as a GitHub App installation".
"""

import base64
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from service.agent.tokens import SourceError, Token, expiry_in

TIMEOUT: Final = 20.0  # seconds, of one call
MAX_ANSWER: Final = 256 * 1024  # bytes; it lists repositories
PROOF_SECONDS: Final = 9 * 60  # GitHub takes ten at most
CLOCK_SECONDS: Final = 60  # by which GitHub's clock may be behind
_USER: Final = "x-access-token"
_CREATED: Final = 201
_MAX_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class GitHubApp:
    """An app, one of its installations, and the API that is asked.

    ``repository`` is the name of the one repository that tokens are for, or empty for all of the installation. ``tls``
    verifies the API.
    """

    app: str
    installation: str
    api: str
    tls: ssl.SSLContext
    key: str = field(repr=False)
    repository: str = ""

    def fetch(self, now: float) -> Token:
        """Return a new token, or raise SourceError. ``now`` is in seconds since the epoch."""
        asked: dict[str, Any] = {"permissions": {"contents": "read"}}
        if self.repository:
            asked["repositories"] = [self.repository]
        request = urllib.request.Request(  # noqa: S310 - the operator names the address, and its scheme was checked
            f"{self.api}/app/installations/{self.installation}/access_tokens",
            data=json.dumps(asked).encode(),
            headers={
                "Authorization": f"Bearer {self._proof(now)}",
                "Accept": "application/vnd.github+json",
                "Content-Type": "application/json",
                "User-Agent": "prefect-forward-auth",
                "X-GitHub-Api-Version": "2022-11-28",
            },
            method="POST",
        )
        opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=self.tls))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                status, body = answer.status, answer.read(MAX_ANSWER + 1)
        except urllib.error.HTTPError as refused:
            raise SourceError(f"{self.api} answered {refused.code}{_message_in(refused.read(MAX_ANSWER))}") from None
        except (OSError, ValueError) as problem:  # urllib.error.URLError, too
            raise SourceError(f"{self.api} cannot be called: {getattr(problem, 'reason', problem)}") from None
        found = _object(body) if status == _CREATED and len(body) <= MAX_ANSWER else {}
        token = found.get("token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
            raise SourceError(f"{self.api} answered {status}, and gave no token")
        return Token(token, expiry_in({"expires_at": found.get("expires_at")}))

    def _proof(self, now: float) -> str:
        """Return the JWT by which the app proves itself (RS256)."""
        claims = {"iss": self.app, "iat": int(now) - CLOCK_SECONDS, "exp": int(now) + PROOF_SECONDS}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        return f"{signed}.{_encoded(self._private_key().sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def _private_key(self) -> rsa.RSAPrivateKey:
        try:
            key = serialization.load_pem_private_key(self.key.encode(), password=None)
        except Exception as problem:  # noqa: BLE001 - its own words might quote the key
            raise SourceError(f"the app's key cannot be read ({type(problem).__name__}): PEM is needed") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise SourceError("the app's key is no RSA key")
        return key


def credential(token: Token) -> dict[str, str]:
    """Return the lines by which Git is told a token; newer versions do not use it after its end."""
    lines = {"username": _USER, "password": token.value}
    return lines if token.expires is None else lines | {"password_expiry_utc": str(int(token.expires))}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the proof is for one host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Leave the redirect as the answer that it is."""


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _message_in(body: bytes) -> str:
    """Return GitHub's own words for a refusal."""
    message = _object(body).get("message")
    return f" ({message[:_MAX_SHOWN]})" if isinstance(message, str) and message.isprintable() else ""


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()  # RFC 7515 §2
