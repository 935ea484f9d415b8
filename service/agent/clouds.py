"""Tokens that a machine's surroundings give it without a secret: GitHub Actions, Google Cloud, Azure."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlencode

from service.agent.endpoints import ask, error_in, object_in
from service.agent.tokens import SourceError, Token, expiry_in, token_of


class NotThereError(Exception):
    """The machine has no such endpoint; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """An endpoint that knows the machine, or the job, by where it runs.

    ``member`` names the token in its JSON; an empty one says that the body is the token. ``advice`` follows a refusal.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext = field(repr=False)
    member: str
    advice: str
    direct: bool = True
    poll: float | None = None

    def __str__(self) -> str:
        return self.name

    async def fetch(self) -> Token:
        """Return a new token, or raise SourceError."""
        status, body = await ask(self.url, self.tls, headers=self.headers, direct=self.direct)
        answer = object_in(body) or {}
        if status != HTTPStatus.OK:
            raise SourceError(f"it answered {status}{error_in(answer)}: {self.advice}")
        if not self.member:
            return token_of(body.decode("ascii", "replace"))
        return token_of(answer.get(self.member), expiry_in(answer))


def github_actions(environ: Mapping[str, str], audience: str, tls: ssl.SSLContext) -> Surroundings:
    """Return the endpoint that gives a job of GitHub Actions its ID token, or raise NotThereError."""
    url, secret = environ.get("ACTIONS_ID_TOKEN_REQUEST_URL"), environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    if not (url and secret):
        raise NotThereError("GitHub gives this job no token. Add 'permissions: id-token: write' to the job")
    return Surroundings(
        "GitHub Actions",
        f"{url}{'&' if '?' in url else '?'}{urlencode({'audience': audience})}",
        {"authorization": f"bearer {secret}"},
        tls,
        "value",
        "is 'permissions: id-token: write' in the job?",
        direct=False,
    )


def google(environ: Mapping[str, str], audience: str, tls: ssl.SSLContext) -> Surroundings:
    """Return the metadata server of Google Cloud, which gives the service account's ID token."""
    host = environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    query = urlencode({"audience": audience, "format": "full"})
    return Surroundings(
        "Google's metadata server",
        f"http://{host}/computeMetadata/v1/instance/service-accounts/default/identity?{query}",
        {"metadata-flavor": "Google"},
        tls,
        "",
        "does this machine have a service account?",
    )


def azure(environ: Mapping[str, str], audience: str, client_id: str, tls: ssl.SSLContext) -> Surroundings:
    """Return the endpoint of Azure's managed identities: that of App Service and Container Apps, or a machine's own.

    ``client_id`` chooses an identity where the machine has several.
    """
    endpoint, header = environ.get("IDENTITY_ENDPOINT"), environ.get("IDENTITY_HEADER")
    query = {"resource": audience} | ({"client_id": client_id} if client_id else {})
    if endpoint and header:
        query["api-version"], headers = "2019-08-01", {"x-identity-header": header}
    else:
        host = environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or "http://169.254.169.254"
        endpoint = f"{host.rstrip('/')}/metadata/identity/oauth2/token"
        query["api-version"], headers = "2018-02-01", {"metadata": "true"}
    return Surroundings(
        "Azure's managed identity",
        f"{endpoint}?{urlencode(query)}",
        headers,
        tls,
        "access_token",
        "does this machine have a managed identity, and is --audience an application of the tenant? "
        "--client-id chooses one of several identities",
    )
