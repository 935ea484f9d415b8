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

from service.adapters.oauth_client_auth import ClientAuth, ClientPolicy
from service.adapters.outbound import Answer, FetchError, PlainHTTP, call, check_url
from service.core.errors import OutOfReach, Rejected
from service.core.identity.compact import parse_json_object
from service.core.problems import Problem

MAX_TOKEN: Final = 64 * 1024
MIN_MASKED: Final = 8  # shorter values are words, and no secrets
_TOKEN: Final = re.compile(rf"[\x20-\x7e]{{0,{MAX_TOKEN}}}")  # RFC 6749, appendix A.12
_LATER: Final = frozenset({408, 425, 429})


class TokenError(Exception):
    """An error response of the token endpoint (RFC 6749 §5.2)."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


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

    ``discover`` returns its discovery document, or raises OutOfReach. ``allow_http`` says where plain http may lead.
    ``configured`` holds endpoints that need no discovery, by their names in the discovery document.
    """

    issuer: str
    discover: Callable[[], Awaitable[Mapping[str, Any]]]
    allow_http: PlainHTTP
    configured: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Endpoints:
    """The endpoints of one provider, called as one client; a ValueError says what is wrong with the client's key."""

    def __init__(self, provider: Provider, policy: ClientPolicy, client: httpx.AsyncClient) -> None:
        self._provider = provider
        self._timeout = policy.timeout
        self._client = client
        self._auth = ClientAuth(policy, provider.issuer)

    async def discover(self) -> Mapping[str, Any]:
        """Return the discovery document, or raise OutOfReach."""
        return await self._provider.discover()

    async def url(self, name: str, query: Mapping[str, str] | None = None) -> str:
        """Return an endpoint's URL with more in its query: what stands there already stays (RFC 6749 §3.1)."""
        url = self._provider.configured.get(name) or (await self.discover()).get(name)
        if not isinstance(url, str) or "#" in url:
            raise FetchError(f"the discovery document has no usable {name}")
        check_url(url, allow_http=self._provider.allow_http)
        return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}" if query else url

    async def ask_for_tokens(self, form: dict[str, str]) -> TokenResponse:
        """Return what a grant brings, or raise TokenError, FetchError or OutOfReach."""
        answer = await self._post("token_endpoint", form)
        parsed = _parse(answer, "token_endpoint")
        if answer.status != httpx.codes.OK:
            error, description = parsed.get("error"), parsed.get("error_description", "")
            if not isinstance(error, str) or not httpx.codes.is_client_error(answer.status):
                raise FetchError(f"token_endpoint answered {answer.status} without an error")
            raise TokenError(error, _masked(description if isinstance(description, str) else "", form))
        if str(parsed.get("token_type")).lower() != "bearer":
            raise FetchError("token_endpoint sent a token_type that is not Bearer")
        values = [parsed.get(name, "") for name in TokenResponse._fields]
        if not all(isinstance(value, str) and _TOKEN.fullmatch(value) for value in values):
            raise FetchError("token_endpoint sent a token that is no short, printable string")
        if not values[0]:
            raise FetchError("token_endpoint sent no access token")
        return TokenResponse(*values)

    async def userinfo(self, access_token: str) -> Mapping[str, Any]:
        """Return more claims (OIDC Core §5.3); a signed answer is refused, since nobody asks for one unknowingly."""
        bearer = {"authorization": f"Bearer {access_token}"}
        answer = await self._call("GET", await self.url("userinfo_endpoint"), headers=bearer)
        if answer.status != httpx.codes.OK:
            raise Rejected(Problem.USERINFO_REFUSED, status=answer.status)
        return _parse(answer, "userinfo_endpoint")

    async def revoke(self, refresh_token: str) -> None:
        """Have a refresh token forgotten (RFC 7009 §2.1), where the provider can do that."""
        if "revocation_endpoint" not in await self.discover():
            return
        answer = await self._post("revocation_endpoint", {"token": refresh_token, "token_type_hint": "refresh_token"})
        if answer.status != httpx.codes.OK:
            raise FetchError(f"revocation_endpoint answered {answer.status}")

    async def _post(self, endpoint: str, form: dict[str, str]) -> Answer:
        url = await self.url(endpoint)
        headers, proven = self._auth.prove(form, time.time())
        return await self._call("POST", url, headers=headers, form=proven)

    async def _call(
        self, method: str, url: str, *, headers: dict[str, str], form: dict[str, str] | None = None
    ) -> Answer:
        allow_http, timeout = self._provider.allow_http, self._timeout
        try:
            answer = await call(
                self._client, method, url, allow_http=allow_http, timeout=timeout, headers=headers, form=form
            )
        except (httpx.HTTPError, TimeoutError) as problem:
            raise out_of_reach(f"{url}: {type(problem).__name__}: {problem!s:.200}") from None
        if httpx.codes.is_server_error(answer.status) or answer.status in _LATER:
            raise out_of_reach(f"{url} answered {answer.status}")
        return answer


def out_of_reach(because: str) -> OutOfReach:
    """Return the refusal for a provider that did not answer; ``because`` is for the log."""
    return OutOfReach(Problem.ISSUER_OUT_OF_REACH, because=because)


def _parse(answer: Answer, endpoint: str) -> dict[str, Any]:
    content = answer.headers.get("content-type", "")
    if content.split(";")[0].strip().lower() != "application/json":
        raise FetchError(f"{endpoint} answered {answer.status} with {content!r:.60}, expected JSON")
    try:
        return parse_json_object(answer.body)
    except (Rejected, ValueError, RecursionError):
        raise FetchError(f"{endpoint} answered {answer.status} with what is no JSON object") from None


def _masked(description: str, form: Mapping[str, str]) -> str:
    """Leave out what a provider says if it repeats what it was sent."""
    return "" if any(len(sent) >= MIN_MASKED and sent in description for sent in form.values()) else description
