"""What only calls can tell: whether the gate is there and lets this credential in, over HTTP and on a WebSocket."""

import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from service import __version__
from service.core.errors import Code
from service.core.request.first_message import SUBPROTOCOL, first_message
from service.core.request.proxies import is_loopback
from service.doctor.client import Presented
from service.doctor.findings import Finding, change, note, ok

CALL_SECONDS: Final = 30.0  # a proxy may hold a call for 20 while the service restarts
SOCKET_SECONDS: Final = 20.0
VOUCHING_SECONDS: Final = 12.0  # the relay looks for 10 for somebody who vouches
UPGRADE_SECONDS: Final = 2.0  # an upgrade with a credential is refused as such
VERSION: Final = "/admin/version"
EVENTS: Final = "/events/in"
_AGENT: Final = f"prefect-forward-auth/{__version__}"
_MAX_SHOWN: Final = 300


def call_gate(url: str, sent: Presented, tls: ssl.SSLContext) -> Iterator[Finding]:
    """Yield what the gate at ``url`` (Prefect's API, without user name and password) answers to this credential."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"
    with httpx.Client(verify=tls, timeout=CALL_SECONDS, headers={"user-agent": _AGENT}) as client:
        try:
            bare = client.get(f"{url}{VERSION}")
            answer = client.get(f"{url}{VERSION}", headers={"authorization": sent.http}) if sent.http else bare
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as problem:
            yield change(f"{where} cannot be called: {_of_failure(problem)}")
            return
    yield from _of_bare_call(bare, sent, where, parts.hostname or "")
    if _is_for_people(bare) or (not sent.http and bare.status_code != httpx.codes.OK):
        return
    if sent.http:
        yield _of_call(answer)
    if answer.status_code == httpx.codes.OK:
        yield _of_socket(url, sent, tls)


def _of_bare_call(bare: httpx.Response, sent: Presented, where: str, host: str) -> Iterator[Finding]:
    """Yield what a call without a credential tells: whether this is the gate."""
    if _is_for_people(bare):
        yield change(f"{where} takes sessions of browsers: it is the host for people. Use the one for machines.")
    elif bare.status_code == httpx.codes.UNAUTHORIZED:
        if _body_of(bare).get("code") != Code.CREDENTIAL_REQUIRED:
            yield note(f"{where} asks for a credential, and it is not this gate that answers.")
        else:
            yield ok(f"{where} is a gate.")
        if not sent.http:
            yield change("There is no credential: set PREFECT_API_KEY, or PREFECT_API_AUTH_STRING (docs/workers.md).")
    elif bare.status_code == httpx.codes.OK and is_loopback(host):
        yield note(
            f"{where} asks for no credential. That is right if it is the agent (docs/agent.md), or Prefect itself."
        )
    elif bare.status_code == httpx.codes.OK:
        yield change(f"{where} lets anybody in without a credential: this is Prefect itself, or a gate that is open.")
    elif not sent.http:
        yield _of_call(bare)


def _is_for_people(bare: httpx.Response) -> bool:
    """Tell whether a call without a credential reached the host for people, where no answer asks for one."""
    asks = bare.status_code == httpx.codes.UNAUTHORIZED and _body_of(bare).get("code") == Code.CREDENTIAL_REQUIRED
    return bare.has_redirect_location or (asks and "www-authenticate" not in bare.headers)


def _of_call(answer: httpx.Response) -> Finding:
    """Return what a call with the credential tells."""
    if answer.status_code == httpx.codes.OK and "json" in answer.headers.get("content-type", ""):
        return ok("The gate lets this credential in over HTTP.")
    if answer.status_code == httpx.codes.OK:
        return change("What answers is a page and not Prefect's API: PREFECT_API_URL ends with /api.")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return change(
            f"There is no Prefect API at this address (404): PREFECT_API_URL ends with /api.{_detail(answer)}"
        )
    if httpx.codes.is_server_error(answer.status_code) or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return change(f"Nothing could be decided ({answer.status_code}): try again.{_detail(answer)}")
    return change(f"The gate refuses this credential over HTTP ({answer.status_code}).{_detail(answer)}")


def _of_socket(url: str, sent: Presented, tls: ssl.SSLContext) -> Finding:
    """Return what becomes of a WebSocket for events as this version of Prefect opens it."""
    address = f"ws{url.removeprefix('http')}{EVENTS}"
    try:
        with connect(
            address,
            subprotocols=[Subprotocol(SUBPROTOCOL)] if sent.handshake else None,
            additional_headers={"authorization": sent.upgrade} if sent.upgrade else None,
            user_agent_header=_AGENT,
            ssl=tls if address.startswith("wss:") else None,
            open_timeout=CALL_SECONDS,
            ping_interval=None,
            close_timeout=5,
        ) as socket:
            return _of_open_socket(socket, sent)
    except InvalidStatus as refused:
        detail = _detail_of(bytes(refused.response.body or b""))
        return change(f"A WebSocket for events is refused ({refused.response.status_code}).{detail}")
    except (OSError, TimeoutError, InvalidHandshake, EOFError) as problem:
        return change(f"A WebSocket for events cannot be opened: {_of_failure(problem)}")


def _of_open_socket(socket: ClientConnection, sent: Presented) -> Finding:
    try:
        if sent.handshake:
            socket.send(first_message(sent.first))
            socket.recv(timeout=SOCKET_SECONDS)
        else:
            _wait_for_close(socket, UPGRADE_SECONDS if sent.upgrade else VOUCHING_SECONDS)
    except ConnectionClosed as closed:
        code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
        return change(
            f"A WebSocket for events is closed ({code}), so task runs are lost. {reason[:_MAX_SHOWN]}".rstrip()
        )
    except TimeoutError:
        return change("A WebSocket for events is accepted and then silent: Prefect does not answer behind the gate.")
    return ok("A WebSocket for events reaches Prefect: task runs and logs arrive.")


def _wait_for_close(socket: ClientConnection, seconds: float) -> None:
    """Return when nothing has closed the socket for so long: a client without a first message is sent none."""
    with suppress(TimeoutError):
        socket.recv(timeout=seconds)


def _detail(answer: httpx.Response) -> str:
    return _detail_of(answer.content)


def _detail_of(body: bytes) -> str:
    """Return the sentence of a refusal, which says what to do, behind a blank."""
    detail = _parsed(body).get("detail")
    return f" {detail[:_MAX_SHOWN]}" if isinstance(detail, str) and detail.isprintable() else ""


def _body_of(answer: httpx.Response) -> dict[str, Any]:
    return _parsed(answer.content)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_failure(problem: Exception) -> str:
    text = str(problem)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted here: name the authority in PREFECT_API_SSL_CERT_FILE."
    if isinstance(problem, UnicodeEncodeError):
        return "the credential has characters that no header can carry."
    return f"{text or type(problem).__name__}"[:_MAX_SHOWN]
