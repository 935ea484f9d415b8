"""The relay: WebSockets whose credential comes in their first message.

A proxy that asks about a request does not see what follows an upgrade, and Prefect's clients send their credential
there. So a proxy hands such a WebSocket over. The relay accepts it, reads the first message, proves its token by the
code of the verify endpoints, decides with ``decide()``, opens Prefect's own WebSocket, and passes messages both ways.
It keeps the credential while the socket is open, and closes the socket when the credential is not valid any more.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from service.adapters.prefect_socket import open_socket
from service.core.errors import Broken, MalformedCredential, NotFound, OutOfReach, Refusal, Throttled
from service.core.model import (
    NO_CREDENTIAL,
    Allow,
    Decision,
    Face,
    ForwardedRequest,
    NoCredential,
    Principal,
    Proof,
    Unavailable,
)
from service.core.prefect.client_events import run_handed_out
from service.core.prefect.routes import websocket_endpoint
from service.core.problems import Problem
from service.core.request.first_message import SUBPROTOCOL, authorization_of, first_message, parse_first_message
from service.gate import vouching
from service.gate.asgi import Receive, Scope, Send
from service.gate.held_events import LOOK_SECONDS
from service.gate.passage import Passage
from service.gate.passage import Send as SendMessage
from service.gate.protocol import PING
from service.gate.relay_client import GONE, Client, ClientGoneError, content_of
from service.gate.verify import VerifyEndpoints
from service.gate.vouching import VouchedSocket, Vouching
from service.rendering.answers import allow_headers, render
from service.rendering.close import ABNORMAL, INTERNAL_ERROR, NO_STATUS, SERVICE_RESTART, Close, close_of, sendable
from service.state.throttle import sender_of
from service.state.unproved import Unproved

log = logging.getLogger(__name__)

VOUCHED_CHECK_SECONDS: Final = 5.0  # between two looks at who vouches for a socket
NOTE_SECONDS: Final = 15.0  # between two notes of one caller as seen
CHECK_SECONDS: Final = 1.0  # between two looks at which credentials have ended
_CHECKED_AT_ONCE: Final = 50
_HANDS_OUT: Final = "task_runs/subscriptions/scheduled"

_AS_THEY_ARE: Final = Passage()


class Relay:
    """Relays the WebSockets that proxies hand over at ``/relay/{gate}{path}``."""

    def __init__(self, endpoints: VerifyEndpoints) -> None:
        self._endpoints = endpoints
        self._verdicts = endpoints.wiring.state.verdicts
        self._telemetry = endpoints.wiring.telemetry
        self._unproved = Unproved()
        self._vouching = Vouching(endpoints)
        self._open: dict[Client, asyncio.Future[Close]] = {}  # and what ends it; from before Prefect's side is open

    def __len__(self) -> int:
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one WebSocket (ASGI 3.0), from its upgrade to its end."""
        await receive()  # websocket.connect
        client = Client(scope, receive, send)
        try:
            decision: Decision | None = await self._admit(client)
            if isinstance(decision, Allow):
                decision = await self._relay(client, decision)
            if decision is not None:
                await self._refuse(client, decision)
        except ClientGoneError:
            pass

    # letting a client in --------------------------------------------------------------------------------------

    async def _admit(self, client: Client) -> Decision:
        """Return the decision about a WebSocket, by the credential of its header or of its first message."""
        who: Principal | NoCredential | Refusal
        try:
            client.parse(self._endpoints.wiring.proxies)
            self._refuse_if_impossible(client)
            who = await self._principal_of(client)
        except ClientGoneError:
            raise
        except Refusal as refusal:
            who = refusal
        except Exception:
            log.exception("a WebSocket could not be relayed; it is refused")
            who = Broken(Problem.INTERNAL)
        return client.decide(who, self._endpoints.wiring.access)

    def _refuse_if_impossible(self, client: Client) -> None:
        wiring, request = self._endpoints.wiring, client.request
        route = request and wiring.access.routes.find("GET", request.path)
        if route is None or route.method != "WS":
            raise NotFound(Problem.NOT_FOUND)
        if wiring.settings.prefect.url is None:
            raise Broken(Problem.RELAY_WITHOUT_PREFECT)
        if len(self._open) >= wiring.settings.websockets.max_open:
            raise Throttled(Problem.RELAY_FULL)

    async def _principal_of(self, client: Client) -> Principal | NoCredential:
        """Return who sends a WebSocket. Its header is proved before it is accepted, its first message afterwards."""
        wiring = self._endpoints.wiring
        if client.presented is not None:
            principal = await self._prove(client, client.presented)
            if not isinstance(client.decide(principal, wiring.access), Allow):
                return principal
            await client.accept(proved=True)
            await self._token_of(client)
            return principal
        if wiring.settings.websockets.relay == "off":
            return NO_CREDENTIAL
        await client.accept()
        token = await self._token_of(client)
        if token is None:
            return await self._vouched(client)
        client.presented = authorization_of(token)
        return await self._prove(client, client.presented)

    async def _vouched(self, client: Client) -> Principal | NoCredential:
        """Return who vouches for a WebSocket without a credential, if somebody does within a few seconds.

        After a restart of this service, clients may open their WebSockets again before they send a request.
        """
        request = client.request
        if request is None or websocket_endpoint(request.path) not in vouching.ENDPOINTS:
            return NO_CREDENTIAL
        with suppress(TimeoutError):
            async with self._unproved.waiting(sender_of(client.address)):
                while True:
                    era = self._verdicts.era  # before the look: what changes meanwhile is looked at again
                    principal = await self._vouching.principal_at(request)
                    if principal is not None:
                        client.vouched, client.principal = True, principal
                        client.era, client.until = era, time.time() + VOUCHED_CHECK_SECONDS
                        client.proved()
                        return principal
                    if not self._endpoints.wiring.notes_reporters or not request.client:
                        break
                    await asyncio.sleep(LOOK_SECONDS)
        return NO_CREDENTIAL

    async def _prove(self, client: Client, presented: bytes) -> Principal:
        """Return the principal of a credential, and remember on the client until when that holds."""
        client.era = self._verdicts.era
        proof = await self._endpoints.proof_of(client.gate, presented, client.address)
        client.principal, client.until = proof.principal, proof.until
        return proof.principal

    async def _token_of(self, client: Client) -> str | None:
        """Return the token of the first message, or None if there is none; Prefect's sub-protocol begins with one."""
        if client.subprotocol is None:
            return None
        try:
            async with self._unproved.waiting(sender_of(client.address)):
                message = await client.first_message()
        except TimeoutError:
            raise MalformedCredential(Problem.FIRST_MESSAGE_LATE) from None
        return parse_first_message(message)

    async def _still_vouched(self, client: Client) -> Principal | NoCredential:
        client.era, client.until = self._verdicts.era, time.time() + VOUCHED_CHECK_SECONDS
        callers = await self._vouching.callers_at(client.request) if client.request is not None else []
        return callers[0].proof.principal if callers else NO_CREDENTIAL

    async def _refuse(self, client: Client, decision: Decision) -> None:
        """Count, log and send a refusal: as HTTP before the upgrade is accepted, else as a close frame."""
        request_id = secrets.token_hex(8)
        self._telemetry.decided(
            decision, client.request, face=Face.RELAY, gate=client.gate, request_id=request_id, peer=client.peer
        )
        if client.accepted:
            await client.close(close_of(decision))
            return
        answer = render(decision, Face.RELAY, client.gate, request_id, client.browser)
        await client.send({"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers})
        await client.send({"type": "websocket.http.response.body", "body": answer.body})

    # passing messages on --------------------------------------------------------------------------------------

    async def _relay(self, client: Client, allowed: Allow) -> Decision | None:
        """Pass messages between the client and Prefect until one of them, or the credential, ends the socket.

        Returns a decision if Prefect cannot be reached, else None.
        """
        request, access = client.request, self._endpoints.wiring.access
        if request is None:
            return client.decide(Broken(Problem.INTERNAL), access)
        if len(self._open) >= self._endpoints.wiring.settings.websockets.max_open:
            return client.decide(Throttled(Problem.RELAY_FULL), access)
        ended = self._open[client] = asyncio.get_running_loop().create_future()
        try:
            with self._passage(client, request) as passage:
                prefect = await self._connect(client, request, allowed.principal)
                await self._relay_to(prefect, client, request, allowed, ended, passage)
        except OutOfReach as problem:
            return client.decide(problem, access)
        finally:
            del self._open[client]
        return None

    async def _relay_to(
        self,
        prefect: ClientConnection,
        client: Client,
        request: ForwardedRequest,
        allowed: Allow,
        ended: "asyncio.Future[Close]",
        passage: Passage,
    ) -> None:
        """Count an open WebSocket, and pass its messages on."""
        endpoint = websocket_endpoint(request.path) or ""
        self._telemetry.allowed[client.gate] += 1
        self._telemetry.websockets[endpoint, "vouched" if client.vouched else "relayed"] += 1
        if self._telemetry.log_allowed:
            self._telemetry.decided(
                allowed, request, face=Face.RELAY, gate=client.gate, request_id="", peer=client.peer
            )
        client.proved()
        client.opened()
        self._telemetry.websockets_open += 1
        try:
            await self._pass_on(client, prefect, ended, passage)
        finally:
            self._telemetry.websockets_open -= 1

    def _passage(self, client: Client, request: ForwardedRequest) -> AbstractContextManager[Passage]:
        """Return how the messages of a WebSocket pass."""
        if client.vouched:
            return self._vouching.socket(request)
        if websocket_endpoint(request.path) == _HANDS_OUT and self._endpoints.wiring.notes_reporters and request.client:
            return nullcontext(_HandsOutRuns(client, self._endpoints))
        return nullcontext(_AS_THEY_ARE)

    async def _connect(self, client: Client, request: ForwardedRequest, principal: Principal) -> ClientConnection:
        """Return Prefect's side, with the first message sent; raises OutOfReach."""
        settings = self._endpoints.wiring.settings.prefect
        auth_string = settings.auth_string.get_secret_value() if settings.auth_string is not None else None
        headers = [
            *((name.decode(), value.decode()) for name, value in allow_headers(principal.identity)[:-1]),
            ("x-forwarded-for", request.client),
            ("x-forwarded-host", request.host),
            ("x-forwarded-proto", request.scheme),
            ("user-agent", client.user_agent.decode("latin-1")),
        ]
        subprotocol = client.subprotocol or (SUBPROTOCOL if auth_string is not None else None)
        return await open_socket(
            settings.url or "",
            request.target,
            subprotocol,
            headers,
            first=None if subprotocol is None else first_message(auth_string),
            take_answer=client.subprotocol is None,  # a client of an earlier version has not asked and does not read it
        )

    @staticmethod
    async def _pass_on(
        client: Client, prefect: ClientConnection, ended: "asyncio.Future[Close]", passage: Passage
    ) -> None:
        """Pass messages on until one side closes, or ``ended`` is set; then close the other side, or both, alike."""
        upwards = asyncio.create_task(_to_prefect(client, prefect, passage))
        downwards = asyncio.create_task(_to_client(client, prefect, passage))
        tasks: set[asyncio.Task[Any]] = {upwards, downwards}
        if isinstance(passage, VouchedSocket):
            tasks.add(asyncio.create_task(_release_held(passage, prefect)))
        try:
            await asyncio.wait({upwards, downwards, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        close = next((one.result() for one in (ended, upwards, downwards) if _has_result(one)), Close(INTERNAL_ERROR))
        await prefect.close(*sendable(close))
        await client.close(sendable(close))

    # the end of credentials -----------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Close WebSockets when their credential is not valid any more, until cancelled."""
        reporters, noted_at = self._endpoints.wiring.state.reporters, 0.0
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if time.monotonic() >= noted_at + NOTE_SECONDS:
                noted_at = time.monotonic()
                reporters.look_again()
            now, era = time.time(), self._verdicts.era
            due = [client for client in self._open if client.era != era or now >= client.until]
            for start in range(0, len(due), _CHECKED_AT_ONCE):
                await asyncio.gather(*map(self._check, due[start : start + _CHECKED_AT_ONCE]))
                await asyncio.sleep(0)

    async def _check(self, client: Client) -> None:
        """Verify a credential again, and end its socket if it is not valid or not permitted any more.

        While nothing can be decided, the socket stays open, but never past the expiry of its credential.
        """
        before, ended = client.principal, self._open.get(client)
        if ended is None or before is None:
            return
        who: Principal | NoCredential | Refusal
        try:
            if client.presented is not None:
                who = await self._prove(client, client.presented)
            else:
                who = await self._still_vouched(client)
        except Refusal as refusal:
            who = refusal
        except Exception:
            log.exception("a credential of a WebSocket could not be verified again")
            who = Broken(Problem.INTERNAL)
        decision = client.decide(who, self._endpoints.wiring.access)
        undecided = isinstance(decision, Unavailable) and time.time() < before.expires
        if isinstance(decision, Allow) or undecided or ended.done() or client.request is None:
            return
        close = close_of(decision)
        ended.set_result(Close(SERVICE_RESTART, close.reason))
        self._telemetry.websocket_ended(client.request, before, close.reason)


class _HandsOutRuns(Passage):
    """Takes each task run that Prefect hands to ``task.serve`` as one that this caller reports on from its address.

    No request names such a run before its events.
    """

    def __init__(self, client: Client, endpoints: VerifyEndpoints) -> None:
        self._client = client
        self._verdicts, self._reporters = endpoints.wiring.state.verdicts, endpoints.wiring.state.reporters

    async def to_client(self, message: str | bytes, send: SendMessage) -> None:
        """Pass a message of Prefect on, and note the run in it."""
        client, run = self._client, run_handed_out(message)
        if run is not None and client.presented is not None and client.principal is not None:
            key = self._verdicts.key_of(client.gate, client.presented, client.address)
            proof = Proof(client.principal, client.until)
            reporter = self._reporters.note(client.address, key, client.gate, client.presented, proof, client.era)
            reporter.reports(run)
        await send(message)


async def _to_prefect(client: Client, prefect: ClientConnection, passage: Passage) -> Close:
    """Pass the client's messages on until one side closes the socket; return how."""
    try:
        while True:
            message = await client.receive()
            if message["type"] == "websocket.receive":
                await passage.to_prefect(content_of(message), prefect.send)
            elif message["type"] == PING:
                asyncio.ensure_future(await prefect.ping()).add_done_callback(partial(_answer, message["answer"]))
            else:
                await passage.finish(prefect.send)
                return Close(message.get("code", NO_STATUS), message.get("reason") or "")
    except ConnectionClosed as closed:
        return _close_by_prefect(closed)


async def _to_client(client: Client, prefect: ClientConnection, passage: Passage) -> Close:
    """Pass Prefect's messages on until one side closes the socket; return how."""

    async def send(content: str | bytes) -> None:
        await client.send({"type": "websocket.send", "text" if isinstance(content, str) else "bytes": content})

    try:
        while True:
            await passage.to_client(await prefect.recv(), send)
    except ConnectionClosed as closed:
        return _close_by_prefect(closed)
    except GONE:
        return Close(ABNORMAL)


async def _release_held(vouched: VouchedSocket, prefect: ClientConnection) -> None:
    """Pass held events on, until cancelled or Prefect closes the socket."""
    with suppress(ConnectionClosed):
        await vouched.release_held(prefect.send)


def _answer(answer: Callable[[], None], pong: "asyncio.Future[float]") -> None:
    if not pong.cancelled() and pong.exception() is None:
        answer()


def _close_by_prefect(closed: ConnectionClosed) -> Close:
    return Close(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else Close(ABNORMAL)


def _has_result(task: "asyncio.Future[Close]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
