"""What is wrong around the service: whom it cannot reach, and what the proxy in front of it does not do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from service.adapters.store import StoreUnavailable
from service.adapters.users_file import UsersFileError
from service.authn.issuers import Issuer
from service.core.errors import Code, Refusal, Rejected
from service.core.identity.compact import parse_json_object
from service.core.model import Bearer
from service.core.request.first_message import SUBPROTOCOL, first_message
from service.doctor.findings import Finding, change, note, ok
from service.gate.generation import Generation
from service.gate.wiring import Wiring, new_state, wire
from service.issuing.database import LedgerError
from service.rendering.sentences import sentence
from service.settings import Settings

CALL_SECONDS: Final = 30.0
SOCKET_SECONDS: Final = 20.0
# what nobody sent and nobody may send: an opaque token, and a first message that is refused at once and not counted
_NO_TOKEN: Final = Bearer(b"prefect-forward-auth-doctor")
_NO_JWT: Final = "prefect.forward-auth.doctor"
# a caller's own headers, each with a value that the service refuses as unreadable if the proxy passes it on
_FORGED: Final = {
    "X-Forwarded-Uri": "//",
    "X-Forwarded-Method": "DOCTOR",
    "X-Original-URL": "//",
    "X-Original-Method": "DOCTOR",
}
_IDENTITY: Final = {"X-Auth-Request-User": "doctor", "X-Auth-Request-Roles": "admin"}
_INTERNAL: Final = ("/readyz", "/metrics", "/forward-auth/api", "/relay/api")


async def examine_server(settings: Settings, api_url: str) -> AsyncIterator[Finding]:
    """Yield what is found with these settings. ``api_url`` is Prefect's API as machines reach it, through the proxy."""
    state = new_state()
    try:
        generation = Generation(wire(settings, state))
        wiring = generation.wiring
        try:
            for look in (_files(generation), _issuers(wiring), _store(wiring), _prefect(wiring)):
                async for finding in look:
                    yield finding
            if api_url:
                async for finding in _proxy(wiring, api_url.rstrip("/")):
                    yield finding
            else:
                yield note("Name the API as machines reach it with --url: then the proxy is looked at, too.")
        finally:
            await generation.stop()
    finally:
        await state.close()


async def _files(generation: Generation) -> AsyncIterator[Finding]:
    """Yield the state of the users file and of the list of tokens."""
    wiring, settings = generation.wiring, generation.wiring.settings
    if wiring.users is not None and settings.users is not None:
        try:
            await asyncio.to_thread(wiring.users.load)
            count = len(wiring.users.users.hashes)
            where = f"The users file {settings.users.file}"
            yield ok(f"{where} has {count} users.") if count else change(f"{where} has no user: 'users add' adds one.")
        except (UsersFileError, OSError) as problem:
            yield change(f"The users file {settings.users.file} cannot be used: {problem}.")
    if wiring.own_issuer is not None:
        issued = wiring.own_issuer.issued
        try:
            await issued.start()
            yield ok(f"The list of tokens in {issued.place} can be read.")
        except (LedgerError, OSError) as problem:
            yield change(f"The list of tokens in {issued.place} cannot be used: {problem}.")


async def _issuers(wiring: Wiring) -> AsyncIterator[Finding]:
    """Yield whether the keys of each issuer can be had, and whether one answers about opaque tokens."""
    for issuer in wiring.all_issuers:
        yield await _of_issuer(issuer)
    for one in wiring.settings.all_issuers:
        if one.introspection is None:
            continue
        try:
            await wiring.tokens.authenticate(_NO_TOKEN)
            yield change(f"{one.url} says of a token that nobody has that it is active.")
        except Rejected:
            yield ok(f"{one.url} answers about opaque tokens.")
        except Refusal as refusal:
            because = refusal.cause.facts.get("because") or sentence(refusal.cause)
            yield change(f"{one.url} does not answer about opaque tokens: {because}. Check issuer.introspection.")


async def _of_issuer(issuer: Issuer) -> Finding:
    url = issuer.trust.issuer
    await issuer.keys.refresh(issuer.policy)
    if issuer.key_count and not issuer.keys.last_problem:
        return ok(f"{url} has {issuer.key_count} keys that can be used.")
    return change(f"{url}: {issuer.problem}.")


async def _store(wiring: Wiring) -> AsyncIterator[Finding]:
    if wiring.store is None:
        return
    try:
        await wiring.store.recall("doctor")
        yield ok("The store answers.")
    except StoreUnavailable as problem:
        yield change(f"The store does not answer: {problem}. Check store.url.")


async def _prefect(wiring: Wiring) -> AsyncIterator[Finding]:
    """Yield whether Prefect is where the settings say, and takes the service's auth string."""
    settings = wiring.settings.prefect
    if settings.url is None:
        yield change("prefect.url is not set: no WebSocket is relayed, and most clients lose task runs.")
        return
    where = f"{settings.url}{settings.api_base_path}"
    pair = settings.auth_string.get_secret_value() if settings.auth_string is not None else None
    auth = httpx.BasicAuth(*pair.split(":", 1)) if pair and ":" in pair else None
    try:
        answer = await wiring.state.client.get(f"{where}/admin/version", auth=auth, timeout=CALL_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        yield change(
            f"Prefect cannot be reached at {where}: {str(problem) or type(problem).__name__}. Check prefect.url."
        )
        return
    if answer.status_code == httpx.codes.OK:
        yield ok(f"Prefect answers at {where}. Nobody but the proxy and this service may reach it there.")
    elif answer.status_code == httpx.codes.UNAUTHORIZED:
        what = "refuses prefect.auth_string" if pair else "asks for an auth string: set prefect.auth_string"
        yield change(f"Prefect at {where} {what}.")
    else:
        yield change(
            f"What answers at {where} ({answer.status_code}) is not Prefect's API: check prefect.api_base_path."
        )


# the proxy ------------------------------------------------------------------------------------------------


async def _proxy(wiring: Wiring, api_url: str) -> AsyncIterator[Finding]:
    """Yield what the proxy does with calls that it must not let through or must not believe."""
    client = wiring.state.client
    parts = urlsplit(api_url)
    origin = f"{parts.scheme}://{parts.netloc}"
    target = f"{api_url}/admin/version"
    try:
        bare = await client.get(target, timeout=CALL_SECONDS)
        if bare.is_success:
            yield change(
                f"{origin} lets anybody in: the proxy does not ask this service, or Prefect is reached past it."
            )
            return
        if _code_of(bare) != Code.CREDENTIAL_REQUIRED:
            yield change(f"{origin} answers {bare.status_code}, and not with this service's refusal: check the proxy.")
            return
        yield ok(f"{origin} asks this service, which refuses a call without a credential.")
        believed = []
        for name, value in _FORGED.items():
            answer = await client.get(target, headers={name: value}, timeout=CALL_SECONDS)
            if _code_of(answer) != Code.CREDENTIAL_REQUIRED:
                believed.append(name)
        answer = await client.get(target, headers=_IDENTITY, timeout=CALL_SECONDS)
        if _code_of(answer) != Code.CREDENTIAL_REQUIRED:
            believed += _IDENTITY
        if believed:
            yield change(f"The proxy passes on what callers send as {', '.join(believed)}: overwrite or remove it.")
        else:
            yield ok("The proxy does not believe what callers send in its own headers.")
        exposed = [path for path in _INTERNAL if await _is_exposed(client, f"{origin}{path}")]
        if exposed:
            yield change(
                f"The proxy leads the outside to {', '.join(exposed)}: these are internal (docs/reference.md)."
            )
        else:
            yield ok("The proxy leads nobody to the internal endpoints.")
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        yield change(f"{origin} cannot be called: {str(problem) or type(problem).__name__}")
        return
    yield await _of_socket(wiring, api_url)
    yield note(
        "What the proxy sends on to Prefect cannot be seen from here: it must remove Authorization (docs/reference.md)."
    )


async def _is_exposed(client: httpx.AsyncClient, url: str) -> bool:
    """Tell whether the service itself answers at one of its internal endpoints."""
    answer = await client.get(url, timeout=CALL_SECONDS)
    return answer.is_success or _code_of(answer) in {Code.UNTRUSTED_PROXY, Code.INVALID_REQUEST}


async def _of_socket(wiring: Wiring, api_url: str) -> Finding:
    """Return whether the proxy hands a WebSocket without an Authorization header over to the relay."""
    relays = wiring.settings.websockets.relay != "off" and wiring.settings.prefect.url is not None
    address = f"ws{api_url.removeprefix('http')}/events/in"
    try:
        async with (
            asyncio.timeout(SOCKET_SECONDS),
            connect(address, subprotocols=[Subprotocol(SUBPROTOCOL)], user_agent_header=None) as socket,
        ):
            await socket.send(first_message(_NO_JWT))
            await socket.recv()
        return change("A WebSocket with a wrong credential is let in: the proxy leads it past this service.")
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        return ok(f"The proxy hands WebSockets over to the relay, which closes one with a wrong credential ({code}).")
    except InvalidStatus as refused:
        if relays:
            return change(
                f"The proxy does not hand WebSockets over to the relay ({refused.response.status_code}), so clients "
                "lose task runs: take the proxy's configuration from deploy/ or traefik/."
            )
        return note("WebSockets without an Authorization header are refused, as the settings say.")
    except (OSError, TimeoutError, InvalidHandshake, EOFError) as problem:
        return change(f"A WebSocket cannot be opened through the proxy: {str(problem) or type(problem).__name__}")


def _code_of(answer: httpx.Response) -> Any:
    """Return the code of a refusal of this service, or None."""
    try:
        return parse_json_object(answer.content).get("code")
    except (Refusal, ValueError, RecursionError):
        return None
