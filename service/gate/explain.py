"""What the gate would answer to a call, and why, for an operator: by the same ``decide()`` that the gate uses."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from service import __version__
from service.adapters.environment import VariableError
from service.adapters.outbound import open_client
from service.adapters.users_file import read_users
from service.authn.passwords import LOCAL_ISSUER
from service.core.errors import Refusal, UnusableError
from service.core.identity.claims import (
    named_by,
    principal_from,
    principal_if_signed,
    validate_audience,
    validate_times,
    values_at,
    with_verified_email,
)
from service.core.identity.grant_index import GrantIndex
from service.core.identity.grants import NO_CLAIMS
from service.core.mistakes import MistakeError
from service.core.model import Allow, Bearer, ForwardedRequest, Gate, IssuerTrust, Principal
from service.core.policy import decide
from service.core.prefect.roles import Access
from service.core.prefect.routes import Route, websocket_endpoint
from service.core.prefect.versions import Changes, changes
from service.core.request.headers import parse_credential, parse_method, parse_target
from service.gate import vouching
from service.gate.generation import Generation
from service.gate.wiring import new_state, wire
from service.rendering.explanations import Explanation, GrantOutcome, Way, Ways
from service.rendering.sentences import sentence
from service.settings import Settings

_TIMEOUT: Final = 10.0  # seconds
_WEBSOCKET: Final = "WS"  # how the table writes it; a proxy shows a GET
_OF_PEOPLE: Final = "oidc.role"
_OWN: Final = "the token"  # says the role itself


class CannotExplainError(MistakeError):
    """A question that cannot be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a call: the principal with the roles that do not come from grants, or why there is none.

    ``source`` is the key of the configuration that those roles come from. ``unchecked`` are claims that the gate would
    check, and that are not known.
    """

    who: Principal | Refusal
    source: str = "as asked"
    claims: Mapping[str, Any] = field(default_factory=lambda: NO_CLAIMS)
    unchecked: tuple[str, ...] = ()


def caller_with_roles(access: Access, names: tuple[str, ...]) -> Caller:
    """Return a made-up caller with these roles."""
    _check_roles(access, names)
    return Caller(Principal("nobody", "somebody", roles=names))


def caller_from_users(settings: Settings, name: str) -> Caller:
    """Return a user of the users file; the password does not decide about roles and is not asked for."""
    if settings.users is None:
        raise CannotExplainError("there is no users file (users.file)")
    if name not in read_users(settings.users.file, settings.users.max_cost, settings.users.max_size).hashes:
        raise CannotExplainError(f"{settings.users.file} has no user {name!r}")
    role = settings.users.role
    return Caller(Principal(LOCAL_ISSUER, name, roles=(role,) if role else (), subject=name), "users.role")


def caller_from_claims(settings: Settings, claims: Mapping[str, Any], issuer: str) -> Caller:
    """Return the principal that claims name, judged by the gate's own checks as if the issuer had signed them.

    A claim that is not there, but in every token of the issuer, counts as right and as unchecked.
    """
    trusts = _trusts(settings)
    known = ", ".join(trusts) or "none"
    issuer = issuer or str(claims.get("iss", ""))
    if issuer not in trusts:
        raise CannotExplainError(f"name the issuer of the claims (--issuer): configured are {known}")
    source, trust = trusts[issuer]
    assumed = _assumed(claims, trust)
    complete, now, unchecked = {**assumed, **claims}, time.time(), tuple(assumed)
    try:
        if source == _OF_PEOPLE:  # an ID token, which is for one client, and no access token
            validate_audience(complete, trust)
            who = named_by(complete, trust, validate_times(complete, trust, now))
        else:
            who = principal_if_signed(complete, trust, now)
        return Caller(who, source, with_verified_email(claims, trust), unchecked)
    except Refusal as refusal:
        return Caller(refusal, unchecked=unchecked)


def _assumed(claims: Mapping[str, Any], trust: IssuerTrust) -> dict[str, Any]:
    """Return claims that are missing and have nothing to do with who somebody is, each with a value that is right."""
    right: dict[str, Any] = {"iss": trust.issuer, "aud": sorted(trust.audiences), "exp": time.time() + 60}
    if trust.client_id_as_audience and "client_id" in claims:
        del right["aud"]
    if trust.authorized_parties and "client_id" not in claims:
        right["azp"] = min(trust.authorized_parties)
    return {name: value for name, value in right.items() if name not in claims}


async def caller_from_token(settings: Settings, token: str) -> Caller:
    """Return the principal of a token, verified as the gate does with the issuer's keys, or why it is refused."""
    state = new_state()
    generation = Generation(wire(settings, state))
    tokens = generation.wiring.tokens
    await generation.start()
    try:
        credential = parse_credential(b"Bearer " + token.strip().encode())
        assert isinstance(credential, Bearer)  # noqa: S101 - that is what was written
        principal = (await tokens.authenticate(credential)).principal
        verified = await tokens.verify(credential.token)
        if settings.tokens is not None and verified.issuer == settings.tokens.issuer:
            own = principal._replace(roles=tuple(values_at(verified.claims, "roles")))
            return Caller(own, _OWN, verified.claims)
        source, trust = _trusts(settings)[verified.issuer]
        claims = with_verified_email(verified.claims, trust)
        return Caller(principal_from(verified, trust, time.time()), source, claims)
    except Refusal as refusal:
        return Caller(refusal)
    finally:
        await generation.stop()
        await state.close()


def _trusts(settings: Settings) -> dict[str, tuple[str, IssuerTrust]]:
    found = {one.url: (f"issuers.{number}.role", one.trust()) for number, one in enumerate(settings.issuers)}
    if settings.issuer is not None:
        found[settings.issuer.url] = "issuer.role", settings.issuer.trust()
    if settings.oidc is not None:
        found.setdefault(settings.oidc.issuer, (_OF_PEOPLE, settings.oidc.trust()))
    return found


# the answer -----------------------------------------------------------------------------------------------


def explain(
    settings: Settings | None, access: Access, caller: Caller, call: tuple[str, str], body: bytes | None
) -> Explanation:
    """Return the decision about a call (method and request target), and what led to it."""
    if not call[1].startswith("/"):
        path = urlsplit(call[1])._replace(scheme="", netloc="").geturl()
        raise CannotExplainError(f"a path begins with /: /{path.lstrip('/')}")
    grants = settings.all_grants if settings is not None else ()
    request: ForwardedRequest | None = None
    who = caller.who
    if isinstance(who, Principal):
        who = GrantIndex(grants).with_roles(who, caller.claims)
    try:
        request = _request(*call)
    except Refusal as refusal:
        who = refusal
    decision = decide(request, who, Gate.API, access, body=body)
    route = access.routes.find(request.method, request.path) if request is not None else None
    if not isinstance(who, Principal) or not isinstance(caller.who, Principal) or request is None:
        return Explanation(decision, request is not None, route, None, None, unchecked=caller.unchecked)
    outcomes = [GrantOutcome(one.name, one.roles, one.unmet(caller.who, caller.claims)) for one in grants]
    verdict = access.judge(request, who.roles, body)
    found = Explanation(decision, is_request=True, route=route, verdict=verdict, principal=who)
    ways = None
    if settings is not None and route is not None and route.method == _WEBSOCKET:
        ways = _ways(settings, access, request, who, passes=isinstance(decision, Allow))
    return found._replace(
        first_roles=caller.who.roles,
        source=caller.source,
        grants=tuple(outcomes),
        unchecked=caller.unchecked,
        websocket=ways,
    )


def _ways(settings: Settings, access: Access, request: ForwardedRequest, who: Principal, *, passes: bool) -> Ways:
    """Return what becomes of a WebSocket, by where its credential is."""
    relay = settings.websockets.relay
    relayed = Way.RELAYED
    if relay == "off":
        relayed = Way.RELAY_OFF
    elif settings.prefect.url is None:
        relayed = Way.NO_PREFECT_URL
    if websocket_endpoint(request.path) not in vouching.ENDPOINTS:
        vouched = Way.NEVER_VOUCHED
    elif not settings.websockets.vouched:
        vouched = Way.VOUCHED_OFF
    elif passes and access.may(who.roles, *vouching.CAPABILITIES):
        vouched = Way.VOUCHED
    else:
        vouched = Way.NOT_VOUCHED
    direct = Way.DIRECT
    if relay == "always":
        direct = Way.ONLY_RELAYED if relayed is Way.RELAYED else relayed
    return Ways(
        direct if passes else Way.REFUSED,
        relayed if passes or relayed is not Way.RELAYED else Way.REFUSED,
        vouched if relayed is Way.RELAYED else relayed,
    )


def _request(method: str, target: str) -> ForwardedRequest:
    websocket = method.upper() == _WEBSOCKET
    path, query = parse_target(target.encode())
    name = "GET" if websocket else parse_method(method.upper().encode())
    return ForwardedRequest(name, "wss" if websocket else "https", "prefect.example.com", path, query, "", target)


# the table ------------------------------------------------------------------------------------------------


def routes_of(access: Access, role: str = "", capability: str = "") -> Iterator[Route]:
    """Yield the routes that a role or a capability opens; all routes without either."""
    if role:
        _check_roles(access, (role,))
    for route in access.routes.all.values():
        if (not role or access.opens(role, route)) and (not capability or capability in route.capabilities):
            yield route


def _check_roles(access: Access, names: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(access.roles))
    if unknown:
        raise CannotExplainError(f"there is no role {', '.join(unknown)}: there are {', '.join(sorted(access.roles))}")


def compare(access: Access, where: str, api_base: str) -> Changes:
    """Return how an OpenAPI document, in a file or of a running server, differs from the table."""
    try:
        document = json.loads(
            asyncio.run(_fetched(where)) if where.startswith(("http://", "https://")) else Path(where).read_bytes()
        )
        return changes(document, access.routes, api_base)
    except VariableError as error:
        raise CannotExplainError(str(error)) from None
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise CannotExplainError(f"the server could not be asked: {type(problem).__name__}") from None
    except UnusableError as problem:
        raise CannotExplainError(sentence(problem.cause)) from None
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise CannotExplainError(f"this cannot be read as an OpenAPI document: {problem}") from None


async def _fetched(url: str) -> bytes:
    """Return the document of a running server; the URL may be that of the server, of its API, or of the document."""
    address = url if url.endswith(".json") else f"{url.rstrip('/').removesuffix('/api')}/openapi.json"
    async with open_client(f"prefect-forward-auth/{__version__}") as client:
        answer = await client.get(address, timeout=_TIMEOUT)
    answer.raise_for_status()
    return answer.content
