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
from contextlib import suppress
from functools import partial
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from service.adapters.prefect_socket import open_socket
from service.core.errors import Broken, MalformedCredential, NotFound, OutOfReach, Refusal, Throttled, UntrustedPeer
from service.core.model import (
    NO_CREDENTIAL,
    Allow,
    Browser,
    Decision,
    Face,
    ForwardedRequest,
    Gate,
    NoCredential,
    Principal,
    Unavailable,
)
from service.core.policy import decide
from service.core.prefect.roles import Access
from service.core.prefect.routes import websocket_endpoint
from service.core.problems import Problem
from service.core.request.faces import browser_of, parse_call
from service.core.request.first_message import SUBPROTOCOL, authorization_of, first_message, parse_first_message
from service.gate import vouching
from service.gate.asgi import Message, Receive, Scope, Send
from service.gate.held_events import LOOK_SECONDS
from service.gate.protocol import CONNECTION, PING, RELAY_PREFIX, RelayProtocol
from service.gate.verify import VerifyEndpoints, behind_prefix
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
_PREFIX: Final = RELAY_PREFIX.encode()
_GONE: Final = (OSError, RuntimeError)  # what uvicorn raises where the client has gone, or has been sent a close frame


class _ClientGoneError(Exception):
    """The client has closed the socket before it was let in."""


class _Client:
    """The client's side of a WebSocket, and what is known of it."""

    __slots__ = (
        "_receive",
        "_scope",
        "accepted",
        "browser",
        "connection",
        "era",
        "gate",
        "peer",
        "presented",
        "principal",
        "request",
        "send",
        "subprotocol",
        "until",
        "user_agent",
        "vouched",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self.send = scope, receive, send
        self.connection: RelayProtocol | None = (scope.get("extensions") or {}).get(CONNECTION)
        self.peer: str = scope["client"][0] if scope.get("client") else ""
        self.gate = Gate.API
        self.request: ForwardedRequest | None = None
        self.browser: Browser | None = None
        self.presented: bytes | None = None  # the value of an Authorization header
        self.principal: Principal | None = None
        self.until = 0.0  # seconds since the epoch: the credential is verified again then
        self.era = 0  # of the verdicts when it was verified
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        self.accepted = False
        self.vouched = False  # there is no credential, and each message is judged
        self.user_agent = b""

    def parse(self, endpoints: VerifyEndpoints) -> None:
        """Read the upgrade request; raises Refusal if it cannot be relayed."""
        proxies = endpoints.wiring.proxies
        if not proxies.trusts(self.peer):
            raise UntrustedPeer(Problem.PEER_NOT_TRUSTED, peer=self.peer)
        call = behind_prefix(self._scope, _PREFIX)
        if call is None or call[0] is Gate.UI:
            raise NotFound(Problem.NOT_FOUND)
        self.gate, target = call
        self.request, found = parse_call(Face.RELAY, "GET", target, self._scope["headers"], proxies)
        self.browser = browser_of(found, self.request)
        self.presented = found.get(b"authorization")
        self.user_agent = found.get(b"user-agent", b"")

    @property
    def address(self) -> str:
        """Return the client's address, or an empty string where no proxy has said it."""
        return self.request.client if self.request is not None else ""

    def decide(self, who: Principal | NoCredential | Refusal, access: Access) -> Decision:
        """Return the decision about this WebSocket."""
        return decide(self.request, who, self.gate, access, browser=self.browser)

    async def accept(self, *, proved: bool = False) -> None:
        """Accept the upgrade, with Prefect's sub-protocol if the client has offered it.

        ``proved`` tells that the client may send large messages at once, where no first message is due.
        """
        if proved and self.subprotocol is None:
            self.proved()
        await self.send({"type": "websocket.accept", "subprotocol": self.subprotocol})
        self.accepted = True

    def proved(self) -> None:
        """Let the client send large messages, and keep its pings in order with them."""
        if self.connection is not None:
            self.connection.proved()

    async def receive(self) -> Message:
        """Return the next message, ping or disconnect."""
        return await self._receive()

    async def first_message(self) -> str | bytes:
        """Return the first message; raises _ClientGoneError if none comes any more."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise _ClientGoneError
        return _content_of(message)

    async def close(self, close: Close) -> None:
        """Close the socket, if that has not happened yet."""
        with suppress(*_GONE):
            await self.send({"type": "websocket.close", "code": close.code, "reason": close.reason})


class Relay:
    """Relays the WebSockets that proxies hand over at ``/relay/{gate}{path}``."""

    def __init__(self, endpoints: VerifyEndpoints) -> None:
        self._endpoints = endpoints
        self._verdicts = endpoints.wiring.state.verdicts
        self._telemetry = endpoints.wiring.telemetry
        self._unproved = Unproved()
        self._vouching = Vouching(endpoints)
        self._open: dict[_Client, asyncio.Future[Close]] = {}  # and what ends it

    def __len__(self) -> int:
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one WebSocket (ASGI 3.0), from its upgrade to its end."""
        await receive()  # websocket.connect
        client = _Client(scope, receive, send)
        try:
            decision: Decision | None = await self._admit(client)
            if isinstance(decision, Allow):
                decision = await self._relay(client, decision)
            if decision is not None:
                await self._refuse(client, decision)
        except _ClientGoneError:
            pass

    # letting a client in --------------------------------------------------------------------------------------

    async def _admit(self, client: _Client) -> Decision:
        """Return the decision about a WebSocket, by the credential of its header or of its first message."""
        who: Principal | NoCredential | Refusal
        try:
            client.parse(self._endpoints)
            self._refuse_if_impossible(client)
            who = await self._principal_of(client)
        except _ClientGoneError:
            raise
        except Refusal as refusal:
            who = refusal
        except Exception:
            log.exception("a WebSocket could not be relayed; it is refused")
            who = Broken(Problem.INTERNAL)
        return client.decide(who, self._endpoints.wiring.access)

    def _refuse_if_impossible(self, client: _Client) -> None:
        wiring, request = self._endpoints.wiring, client.request
        route = request and wiring.access.routes.find("GET", request.path)
        if route is None or route.method != "WS":
            raise NotFound(Problem.NOT_FOUND)
        if wiring.settings.prefect.url is None:
            raise Broken(Problem.RELAY_WITHOUT_PREFECT)
        if len(self._open) >= wiring.settings.websockets.max_open:
            raise Throttled(Problem.RELAY_FULL)

    async def _principal_of(self, client: _Client) -> Principal | NoCredential:
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

    async def _vouched(self, client: _Client) -> Principal | NoCredential:
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

    async def _prove(self, client: _Client, presented: bytes) -> Principal:
        """Return the principal of a credential, and remember on the client until when that holds."""
        client.era = self._verdicts.era
        proof = await self._endpoints.proof_of(client.gate, presented, client.address)
        client.principal, client.until = proof.principal, proof.until
        return proof.principal

    async def _token_of(self, client: _Client) -> str | None:
        """Return the token of the first message, or None if there is none; Prefect's sub-protocol begins with one."""
        if client.subprotocol is None:
            return None
        try:
            async with self._unproved.waiting(sender_of(client.address)):
                message = await client.first_message()
        except TimeoutError:
            raise MalformedCredential(Problem.FIRST_MESSAGE_LATE) from None
        return parse_first_message(message)

    async def _still_vouched(self, client: _Client) -> Principal | NoCredential:
        client.era, client.until = self._verdicts.era, time.time() + VOUCHED_CHECK_SECONDS
        callers = await self._vouching.callers_at(client.request) if client.request is not None else []
        return callers[0].proof.principal if callers else NO_CREDENTIAL

    async def _refuse(self, client: _Client, decision: Decision) -> None:
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

    async def _relay(self, client: _Client, allowed: Allow) -> Decision | None:
        """Pass messages between the client and Prefect until one of them, or the credential, ends the socket.

        Returns a decision if Prefect cannot be reached, else None.
        """
        request, access = client.request, self._endpoints.wiring.access
        if request is None:
            return client.decide(Broken(Problem.INTERNAL), access)
        try:
            prefect = await self._connect(client, request, allowed.principal)
        except OutOfReach as problem:
            return client.decide(problem, access)
        endpoint = websocket_endpoint(request.path) or ""
        self._telemetry.allowed[client.gate] += 1
        self._telemetry.websockets[endpoint, "vouched" if client.vouched else "relayed"] += 1
        if self._telemetry.log_allowed:
            self._telemetry.decided(
                allowed, request, face=Face.RELAY, gate=client.gate, request_id="", peer=client.peer
            )
        client.proved()
        ended = self._open[client] = asyncio.get_running_loop().create_future()
        self._telemetry.websockets_open += 1
        try:
            if client.vouched:
                with self._vouching.socket(request) as vouched:
                    await self._pass_on(client, prefect, ended, vouched)
            else:
                await self._pass_on(client, prefect, ended)
        finally:
            self._telemetry.websockets_open -= 1
            del self._open[client]
        return None

    async def _connect(self, client: _Client, request: ForwardedRequest, principal: Principal) -> ClientConnection:
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
        prefect = await open_socket(settings.url or "", request.target, subprotocol, headers)
        try:
            if subprotocol is not None:
                await prefect.send(first_message(auth_string))
            if subprotocol is not None and client.subprotocol is None:
                await prefect.recv()  # the answer to what this client, of an earlier version, has not sent
        except ConnectionClosed as closed:
            raise OutOfReach(Problem.PREFECT_OUT_OF_REACH, because=str(closed), retry_after=2) from None
        return prefect

    @staticmethod
    async def _pass_on(
        client: _Client, prefect: ClientConnection, ended: "asyncio.Future[Close]", vouched: VouchedSocket | None = None
    ) -> None:
        """Pass messages on until one side closes, or ``ended`` is set; then close the other side, or both, alike.

        Without a credential of its own, a socket's messages go by way of ``vouched``.
        """
        upwards = asyncio.create_task(_to_prefect(client, prefect, vouched))
        downwards = asyncio.create_task(_to_client(client, prefect, vouched))
        tasks: set[asyncio.Task[Any]] = {upwards, downwards}
        if vouched is not None:
            tasks.add(asyncio.create_task(_release_held(vouched, prefect)))
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

    async def _check(self, client: _Client) -> None:
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


async def _to_prefect(client: _Client, prefect: ClientConnection, vouched: VouchedSocket | None) -> Close:
    """Pass the client's messages on until one side closes the socket; return how."""
    try:
        while True:
            message = await client.receive()
            if message["type"] == "websocket.receive":
                content = _content_of(message)
                await (prefect.send(content) if vouched is None else vouched.to_prefect(content, prefect.send))
            elif message["type"] == PING:
                asyncio.ensure_future(await prefect.ping()).add_done_callback(partial(_answer, message["answer"]))
            else:
                if vouched is not None:
                    await vouched.finish(prefect.send)
                return Close(message.get("code", NO_STATUS), message.get("reason") or "")
    except ConnectionClosed as closed:
        return _close_by_prefect(closed)


async def _to_client(client: _Client, prefect: ClientConnection, vouched: VouchedSocket | None) -> Close:
    """Pass Prefect's messages on until one side closes the socket; return how."""

    async def send(content: str | bytes) -> None:
        await client.send({"type": "websocket.send", "text" if isinstance(content, str) else "bytes": content})

    try:
        while True:
            content = await prefect.recv()
            await (send(content) if vouched is None else vouched.to_client(content, send))
    except ConnectionClosed as closed:
        return _close_by_prefect(closed)
    except _GONE:
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


def _content_of(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    if text is not None:
        return text
    content: bytes = message["bytes"]
    return content
