"""What the gate would answer to a call, and why, for an operator who asks: the same ``decide()``, with its reasons."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from service import __version__
from service.adapters.environment import VariableError
from service.adapters.outbound import open_client
from service.adapters.users_file import read_users
from service.authn.passwords import LOCAL_ISSUER
from service.core.errors import Refusal
from service.core.identity.claims import named_by, principal_from, with_verified_email
from service.core.identity.grants import NO_CLAIMS, with_roles
from service.core.model import Allow, Bearer, Decision, ForwardedRequest, Gate, IssuerTrust, Principal
from service.core.policy import decide
from service.core.prefect.roles import Access, Granted
from service.core.prefect.versions import Changes, changes
from service.core.request.headers import parse_credential, parse_method, parse_target
from service.gate.wiring import Wiring
from service.settings import Settings

_TIMEOUT: Final = 10.0  # seconds
_WEBSOCKET: Final = "WS"  # how the table writes it; a proxy shows a GET


class CannotExplainError(Exception):
    """What was asked makes no sense; the message says why."""


@dataclass(frozen=True, slots=True)
class Someone:
    """Whose call it is: the principal with the roles that come before grants, or why there is none.

    ``source`` is the key of the configuration that those roles come from.
    """

    who: Principal | Refusal
    source: str = "as asked"
    claims: Mapping[str, Any] = field(default_factory=lambda: NO_CLAIMS)


def with_these_roles(access: Access, names: tuple[str, ...]) -> Someone:
    """Return somebody who has these roles, however they came by them."""
    unknown = sorted(set(names) - set(access.roles))
    if unknown:
        raise CannotExplainError(f"there is no role {', '.join(unknown)}: there are {', '.join(sorted(access.roles))}")
    return Someone(Principal("nobody", "somebody", roles=names))


def user(settings: Settings, name: str) -> Someone:
    """Return a user of the file, as if the password had been given: it does not decide about roles."""
    if settings.users is None:
        raise CannotExplainError("there is no users file (users.file)")
    if name not in read_users(settings.users.file, settings.users.max_cost, settings.users.max_size).hashes:
        raise CannotExplainError(f"{settings.users.file} has no user {name!r}")
    role = settings.users.role
    return Someone(Principal(LOCAL_ISSUER, name, roles=(role,) if role else (), subject=name), "users.role")


def holder_of(settings: Settings, claims: Mapping[str, Any], issuer: str) -> Someone:
    """Return whom claims speak of, as if the issuer had signed them a moment ago."""
    trusts = _trusts(settings)
    known = ", ".join(trusts) or "none"
    issuer = issuer or str(claims.get("iss", ""))
    if issuer not in trusts:
        raise CannotExplainError(f"name the issuer of the claims (--issuer): configured are {known}")
    source, trust = trusts[issuer]
    try:
        return Someone(named_by(claims, trust), source, with_verified_email(claims, trust))
    except Refusal as refusal:
        return Someone(refusal)


async def sender_of(settings: Settings, token: str) -> Someone:
    """Return whom a token proves, verified as the gate does it, with the issuer's keys; or why it proves nobody."""
    wiring = Wiring(settings)
    await wiring.start()
    try:
        credential = parse_credential(b"Bearer " + token.strip().encode())
        assert isinstance(credential, Bearer)  # noqa: S101 - that is what was written
        await wiring.tokens.authenticate(credential)
        verified = await wiring.tokens.verify(credential.token)
        source, trust = _trusts(settings)[verified.issuer]
        claims = with_verified_email(verified.claims, trust)
        return Someone(principal_from(verified, trust, time.time()), source, claims)
    except Refusal as refusal:
        return Someone(refusal)
    finally:
        await wiring.stop()


def _trusts(settings: Settings) -> dict[str, tuple[str, IssuerTrust]]:
    found = {one.url: (f"issuers.{number}.role", one.trust()) for number, one in enumerate(settings.issuers)}
    if settings.issuer is not None:
        found[settings.issuer.url] = "issuer.role", settings.issuer.trust()
    if settings.oidc is not None:
        found.setdefault(settings.oidc.issuer, ("oidc.role", settings.oidc.trust()))
    return found


# the answer -----------------------------------------------------------------------------------------------


def explained(
    settings: Settings | None, access: Access, someone: Someone, call: tuple[str, str], body: bytes | None
) -> tuple[Decision, list[str]]:
    """Return what becomes of a call (method and request target), and the lines that say why."""
    grants = settings.all_grants if settings is not None else ()
    request: ForwardedRequest | None = None
    who = someone.who
    if isinstance(who, Principal):
        who = with_roles(who, grants, someone.claims)
    try:
        request = _request(*call)
    except Refusal as refusal:
        who = refusal
    decision = decide(request, who, Gate.API, access, body=body)
    lines = [_verdict(decision)]
    if request is not None:
        lines += _rule(access, request, who, body)
    if isinstance(who, Principal) and isinstance(someone.who, Principal):
        lines += [f"{'who':9} {who.name!r} of {who.issuer}", f"{'roles':9} {', '.join(who.roles) or 'none'}"]
        lines += [f"{'':9} {role}: {someone.source}" for role in someone.who.roles]
        for grant in grants:
            unmet = grant.unmet(someone.who, someone.claims)
            outcome = f"not given, for what it asks of {unmet!r} is not met" if unmet else "given"
            lines.append(f"{'':9} {', '.join(grant.roles)}: {grant.name}, {outcome}")
    return decision, lines


def _request(method: str, target: str) -> ForwardedRequest:
    websocket = method.upper() == _WEBSOCKET
    path, query = parse_target(target.encode())
    name = "GET" if websocket else parse_method(method.upper().encode())
    return ForwardedRequest(name, "wss" if websocket else "https", "prefect.example.com", path, query, "", target)


def _verdict(decision: Decision) -> str:
    if isinstance(decision, Allow):
        return f"{'allowed':9} as {decision.principal.name!r}"
    return f"{'refused':9} {decision.status} {decision.code}: {decision.detail}"


def _rule(access: Access, request: ForwardedRequest, who: object, body: bytes | None) -> Iterator[str]:
    route = access.routes.find(request.method, request.path)
    if route is None:
        yield f"{'route':9} none that is known: for the role admin alone"
        return
    yield f"{'route':9} {route.rule}, opened by {' or '.join(sorted(route.capabilities))}"
    verdict = access.judge(request, who.roles, body) if isinstance(who, Principal) else None
    if isinstance(verdict, Granted):
        yield f"{'opened':9} by {verdict.by} of the role {verdict.role}"


# the table ------------------------------------------------------------------------------------------------


def table(access: Access, role: str = "", capability: str = "") -> Iterator[str]:
    """Yield the routes that a role or a capability opens, or all, each with what opens it."""
    if role and role not in access.roles:
        raise CannotExplainError(f"there is no role {role}: there are {', '.join(sorted(access.roles))}")
    for route in access.routes.all.values():
        if (not role or access.opens(role, route)) and (not capability or capability in route.capabilities):
            yield f"{route.rule:68} {' '.join(sorted(route.capabilities)):24} {route.why}".rstrip()


def compared(access: Access, where: str, api_base: str) -> Changes:
    """Return what an OpenAPI document, in a file or of a running server, has that the table has not."""
    try:
        document = json.loads(
            asyncio.run(_fetched(where)) if where.startswith(("http://", "https://")) else Path(where).read_bytes()
        )
        return changes(document, access.routes, api_base)
    except VariableError as error:
        raise CannotExplainError(str(error)) from None
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise CannotExplainError(f"the server could not be asked: {type(problem).__name__}") from None
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise CannotExplainError(f"this cannot be read as an OpenAPI document: {problem}") from None


async def _fetched(url: str) -> bytes:
    """Return the document of a running server; the URL may be that of the server, of its API, or of the document."""
    address = url if url.endswith(".json") else f"{url.rstrip('/').removesuffix('/api')}/openapi.json"
    async with open_client(f"prefect-forward-auth/{__version__}") as client:
        answer = await client.get(address, timeout=_TIMEOUT)
    answer.raise_for_status()
    return answer.content
