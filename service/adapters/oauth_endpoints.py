"""The provider's endpoints, as discovered: what is sent there, and what may be believed of the form of an answer.

Whether the answer is true is for ``oidc`` to say. An answer is JSON with members of the right types, or a FetchError;
no answer, or one that says "later", is OutOfReach.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import httpx

from service.adapters.discovery import KeySource
from service.adapters.oauth_client_auth import ClientAuth, ClientPolicy
from service.adapters.outbound import MAX_DOCUMENT, TRY_LATER, Answer, FetchError, call, check_url
from service.core.errors import OutOfReach, Rejected, Unclear
from service.core.identity.compact import parse_json_object
from service.core.problems import Problem

MAX_TOKEN: Final = 64 * 1024
MAX_INTROSPECTION: Final = 32 * 1024  # bytes; thousands of answers are remembered
MIN_MASKED: Final = 8  # shorter values are words, and no secrets
_TOKEN: Final = re.compile(rf"[\x20-\x7e]{{0,{MAX_TOKEN}}}")  # RFC 6749, appendix A.12
_ABOUT_CLIENT: Final = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})
_ABOUT_PERSON: Final = frozenset({"invalid_grant", "access_denied", "interaction_required", "login_required"})
_ENCODED: Final = (
    "its id or secret has characters that RFC 6749 §2.3.1 has encoded, and some providers do not decode: if both are "
    'right, set client_auth = "client_secret_post"'
)


class TokenError(Exception):
    """An error response of the token endpoint (RFC 6749 §5.2)."""

    def __init__(self, error: str, description: str, status: int) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status

    @property
    def about_client(self) -> bool:
        """Tell whether the error is about this service as a client, and says nothing of the grant it presented.

        Keycloak answers a wrong secret with 401 and ``unauthorized_client``. ``invalid_request`` may be about the
        grant: Canaille writes it where the person is disabled.
        """
        unauthenticated = self.status == httpx.codes.UNAUTHORIZED and self.error not in _ABOUT_PERSON
        return unauthenticated or self.error in _ABOUT_CLIENT


class NoTokenError(FetchError):
    """An answer of the token endpoint that has neither a token nor an error response; ``status`` is its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TokenResponse(NamedTuple):
    """A successful response of the token endpoint (RFC 6749 §5.1, OIDC Core §3.1.3.3): unproven, and never shown."""

    access_token: str
    id_token: str
    refresh_token: str

    def __repr__(self) -> str:
        return "TokenResponse(…)"


@dataclass(frozen=True, slots=True)
class Provider:
    """The issuer whose endpoints are called.

    ``source`` says who it is and where it is reached. ``discover`` returns its discovery document or raises OutOfReach.
    ``configured`` holds endpoints that need no discovery, by their names in the discovery document.
    """

    source: KeySource
    discover: Callable[[], Awaitable[Mapping[str, Any]]]
    configured: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Endpoints:
    """The endpoints of one provider, called as one client; a ValueError says what is wrong with the client's key."""

    def __init__(self, provider: Provider, policy: ClientPolicy, client: httpx.AsyncClient) -> None:
        self._provider = provider
        self._timeout = policy.timeout
        self._secret = policy.client_secret
        self._client = client
        self._auth = ClientAuth(policy, provider.source.issuer)

    @property
    def hint(self) -> Mapping[str, str]:
        """Return, as a fact for the log, what may help if the provider does not know this client."""
        return {"hint": _ENCODED} if self._auth.encodes else {}

    async def discover(self) -> Mapping[str, Any]:
        """Return the discovery document, or raise OutOfReach."""
        return await self._provider.discover()

    async def browser_url(self, name: str, query: Mapping[str, str]) -> str:
        """Return an endpoint's URL for a browser, with ``query`` added to its own (RFC 6749 §3.1)."""
        url = self._checked(name, self._provider.source.public(await self._discovered(name)))
        return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"

    async def url(self, name: str) -> str:
        """Return the URL under which this service calls an endpoint."""
        configured = self._provider.configured.get(name)
        return self._checked(name, configured or self._provider.source.internal(await self._discovered(name)))

    async def _discovered(self, name: str) -> str:
        url = (await self.discover()).get(name)
        return url if isinstance(url, str) else ""

    def _checked(self, name: str, url: str) -> str:
        if not url or "#" in url:
            raise FetchError(f"the discovery document has no usable {name}")
        check_url(url, allow_http=self._provider.source.allow_http)
        return url

    async def ask_for_tokens(self, form: dict[str, str]) -> TokenResponse:
        """Return the tokens that a grant brings.

        Raises TokenError for an error response, NoTokenError or FetchError for an unusable answer, and OutOfReach if
        there is none.
        """
        answer = await self._post("token_endpoint", form)
        try:
            parsed = _parse(answer, "token_endpoint")
        except FetchError as problem:
            raise NoTokenError(str(problem), answer.status) from None
        if answer.status != httpx.codes.OK:
            error, description = parsed.get("error"), parsed.get("error_description", "")
            if not isinstance(error, str) or not httpx.codes.is_client_error(answer.status):
                raise NoTokenError(f"token_endpoint answered {answer.status} without an error", answer.status)
            masked = self._masked(description if isinstance(description, str) else "", form)
            raise TokenError(error, masked, answer.status)
        if str(parsed.get("token_type")).lower() != "bearer":
            raise FetchError("token_endpoint sent a token_type that is not Bearer")
        values = [parsed.get(name, "") for name in TokenResponse._fields]
        if not all(isinstance(value, str) and _TOKEN.fullmatch(value) for value in values):
            raise FetchError("token_endpoint sent a token that is no short, printable string")
        if not values[0]:
            raise FetchError("token_endpoint sent no access token")
        return TokenResponse(*values)

    def _masked(self, description: str, form: Mapping[str, str]) -> str:
        """Return a provider's description, or an empty string if it repeats what it was sent."""
        repeats_secret = bool(self._secret) and self._secret in description
        repeats_form = any(len(sent) >= MIN_MASKED and sent in description for sent in form.values())
        return "" if repeats_secret or repeats_form else description

    async def userinfo(self, access_token: str) -> Mapping[str, Any] | bytes:
        """Return more claims, or a JWT of them that is still to be verified (OIDC Core §5.3.2)."""
        bearer = {"authorization": f"Bearer {access_token}", "accept": "application/json, application/jwt"}
        answer = await self._call("GET", await self.url("userinfo_endpoint"), headers=bearer)
        if answer.status != httpx.codes.OK:
            raise Rejected(Problem.USERINFO_REFUSED, status=answer.status)
        if _content_type(answer) == "application/jwt":
            return answer.body.strip()
        return _parse(answer, "userinfo_endpoint")

    async def introspect(self, token: str) -> tuple[int, Mapping[str, Any]]:
        """Return the status and the members of the answer about a token (RFC 7662 §2.2); none if it is no 200.

        Raises FetchError for an unusable answer, a signed one (RFC 9701) included, and OutOfReach if there is none.
        """
        form = {"token": token, "token_type_hint": "access_token"}
        answer = await self._post("introspection_endpoint", form, max_size=MAX_INTROSPECTION)
        if answer.status != httpx.codes.OK:
            return answer.status, {}
        return answer.status, _parse(answer, "introspection_endpoint")

    async def revoke(self, refresh_token: str) -> None:
        """Have a refresh token forgotten (RFC 7009 §2.1), where the provider can do that."""
        if "revocation_endpoint" not in await self.discover():
            return
        answer = await self._post("revocation_endpoint", {"token": refresh_token, "token_type_hint": "refresh_token"})
        if answer.status != httpx.codes.OK:
            raise FetchError(f"revocation_endpoint answered {answer.status}")

    async def _post(self, endpoint: str, form: dict[str, str], max_size: int = MAX_DOCUMENT) -> Answer:
        url = await self.url(endpoint)
        headers, proven = self._auth.prove(form, time.time())
        return await self._call("POST", url, headers=headers, form=proven, max_size=max_size)

    async def _call(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        form: dict[str, str] | None = None,
        max_size: int = MAX_DOCUMENT,
    ) -> Answer:
        allow_http, timeout = self._provider.source.allow_http, self._timeout
        try:
            answer = await call(
                self._client,
                method,
                url,
                allow_http=allow_http,
                timeout=timeout,
                headers=headers,
                form=form,
                max_size=max_size,
            )
        except (httpx.HTTPError, TimeoutError) as problem:
            raise out_of_reach(f"{url}: {type(problem).__name__}: {problem!s:.200}") from None
        if httpx.codes.is_server_error(answer.status):
            raise Unclear(Problem.ISSUER_OUT_OF_REACH, because=f"{url} answered {answer.status}")
        if answer.status in TRY_LATER:
            raise out_of_reach(f"{url} answered {answer.status}")
        return answer


def out_of_reach(because: str) -> OutOfReach:
    """Return the refusal for a provider that did not answer; ``because`` is for the log."""
    return OutOfReach(Problem.ISSUER_OUT_OF_REACH, because=because)


def _content_type(answer: Answer) -> str:
    return str(answer.headers.get("content-type", "")).split(";")[0].strip().lower()


def _parse(answer: Answer, endpoint: str) -> dict[str, Any]:
    content = _content_type(answer)
    if content != "application/json":
        raise FetchError(f"{endpoint} answered {answer.status} with {content!r:.60}, expected JSON")
    try:
        return parse_json_object(answer.body)
    except (Rejected, ValueError, RecursionError):
        raise FetchError(f"{endpoint} answered {answer.status} with what is no JSON object") from None
