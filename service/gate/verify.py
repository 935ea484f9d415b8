"""THE HOT PATH: a plain ASGI application in front of everything else.

A verify call goes parse → authenticate → decide → render, and whatever happens on the way, an exception of our
own included, ends in ``decide()``. Calls that are no verify calls go to the web application behind, which loads
while the first verify calls are already being answered.
"""

import asyncio
import gc
import logging
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, NoReturn

from service.core.errors import Broken, Code, Refusal, Rejected, UntrustedPeer
from service.core.model import (
    NO_CREDENTIAL,
    Allow,
    Basic,
    Bearer,
    Browser,
    Decision,
    Deny,
    Face,
    ForwardedRequest,
    Gate,
    NoCredential,
    Principal,
    Proof,
)
from service.core.policy import decide
from service.core.prefect.secret_flags import MAX_BODY
from service.core.problems import Cause, Problem
from service.core.request.cookies import HOST_PREFIX, own_cookies, session_cookie, set_session, strip_own_cookies
from service.core.request.faces import browser_of, parse_browser, parse_call
from service.core.request.headers import parse_credential
from service.gate.asgi import ASGIApp, Message, Receive, Scope, Send, body_of, send_json
from service.gate.refusals import RefusalPages
from service.gate.reload import Read, Reloads
from service.gate.wiring import Wiring
from service.rendering.answers import allow_headers, reaches_a_person, refusal_content, render
from service.rendering.wire import WireHeaders
from service.settings import Settings

log = logging.getLogger(__name__)

LoadWeb = Callable[[Callable[[], Wiring]], ASGIApp]

_EMPTY_BODY: Final[Message] = {"type": "http.response.body", "body": b""}
_ENDPOINTS: Final = {
    f"/{face}/{gate}": (face, gate, b"") for face in (Face.FORWARD_AUTH, Face.AUTH_REQUEST) for gate in Gate
}
_EXT_AUTHZ: Final = f"/{Face.EXT_AUTHZ}/".encode()
_NOTHING_MORE: Final[WireHeaders] = []
_GATES: Final = {gate.encode(): gate for gate in Gate}


class ForwardAuth:
    """The service: an ASGI application that answers verify calls, and hands the rest on."""

    def __init__(self, settings: Settings, load_web: LoadWeb, read_settings: Read | None = None) -> None:
        """Take ``read_settings`` where the settings are to be read again on SIGHUP."""
        self.wiring = Wiring(settings)
        self._verdicts, self._telemetry = self.wiring.verdicts, self.wiring.telemetry  # the same for every wiring
        self._trusts, self._access = self.wiring.proxies.trusts, self.wiring.access
        self._load_web = load_web
        self._refusal_pages = RefusalPages()
        self._read_settings = read_settings
        self._web: asyncio.Task[ASGIApp] | None = None
        self._in_force: ContextVar[Wiring] = ContextVar("in_force")  # for the web application, by call
        self._reloads: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901 - a frame costs
        """Answer one call (ASGI 3.0)."""
        call = (_ENDPOINTS.get(scope["path"]) or _ext_authz_call(scope)) if scope["type"] == "http" else None
        if call is None:
            await self._elsewhere(scope, receive, send)
            return
        face, gate, target = call
        request: ForwardedRequest | None = None
        who: Principal | NoCredential | Refusal = NO_CREDENTIAL
        browser: Browser | None = None
        headers = _NOTHING_MORE
        body: bytes | None = None
        decision: Decision | None = None
        client = scope.get("client")
        peer = client[0] if client else ""
        try:
            if not (self._trusts(peer) if peer else self.wiring.settings.uds):
                self._refuse_peer(peer)
            request, found = parse_call(face, scope["method"], target, scope["headers"], self.wiring.proxies)
            if gate is Gate.UI:
                browser = parse_browser(found, request)
                who, headers = await self._session_of(found.get(b"cookie"), request)
            else:
                browser = browser_of(found, request)
                presented = found.get(b"authorization")
                if presented is not None:
                    key = self._verdicts.key_of(gate, presented, request.client)
                    proof = self._verdicts.recall(key) or await self._prove(gate, presented, request.client, key)
                    who = proof.principal
            if (b"content-length" in found or b"transfer-encoding" in found) and self._access.reads_body(request):
                body = await body_of(receive, MAX_BODY)
            decision = decide(request, who, gate, self._access, browser=browser, body=body)
        except Refusal as refusal:
            who = refusal.with_traceback(None)  # else this frame and the refusal keep each other: garbage a call
            who.__context__ = None
        except Exception:
            log.exception("a verify call failed; it is refused")
            who = Broken(Problem.INTERNAL)
        if decision is None:
            decision = decide(request, who, gate, self._access, browser=browser)
        if isinstance(decision, Allow):
            self._telemetry.allowed[gate] += 1
            if not decision.known:
                self._telemetry.unknown_route(request)
            if self._telemetry.log_allowed:
                self._telemetry.decided(decision, request, face=face, gate=gate, request_id="", peer=peer)
            headers = allow_headers(decision.principal.identity) + headers
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(_EMPTY_BODY)
            return
        await self._refuse(send, decision, request, face=face, gate=gate, browser=browser, peer=peer)

    async def _refuse(
        self,
        send: Send,
        decision: Decision,
        request: ForwardedRequest | None,
        *,
        face: Face,
        gate: Gate,
        browser: Browser | None,
        peer: str,
    ) -> None:
        """Log and send what is not an Allow."""
        if isinstance(decision, Deny) and not decision.known:
            self._telemetry.unknown_route(request)
        request_id = secrets.token_hex(8)
        self._telemetry.decided(decision, request, face=face, gate=gate, request_id=request_id, peer=peer)
        to_a_person = reaches_a_person(decision, gate, browser)
        page = await self._refusal_pages.page(self.wiring.settings) if to_a_person else None
        answer = render(decision, face, gate, request_id, browser, page)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _session_of(
        self, header: bytes | None, request: ForwardedRequest
    ) -> tuple[Principal | NoCredential, WireHeaders]:
        """Return whose session a Cookie header carries, and what the answer adds.

        That is the Cookie header for the upstream, and the session's own cookies where it was sealed anew.
        """
        sessions = self.wiring.sessions
        if header is None or sessions is None:
            return NO_CREDENTIAL, _NOTHING_MORE
        secure = self.wiring.secure_cookies(request)
        key = self._verdicts.key_of(Gate.UI, header if secure else b"\n" + header)  # other names count there
        proof = self._verdicts.recall(key)
        if proof is not None:
            return proof.principal, [(b"cookie", strip_own_cookies(header))]
        cookie = session_cookie(own_cookies(header, HOST_PREFIX if secure else b""))
        if isinstance(cookie, NoCredential):
            return cookie, _NOTHING_MORE
        passed_on: WireHeaders = [(b"cookie", strip_own_cookies(header))]
        era = self._verdicts.era
        with self.wiring:
            opened = await sessions.open(cookie)
        if opened.sealed is None:
            self._verdicts.remember(key, opened.proof, era)
            return opened.proof.principal, passed_on
        age = int(opened.proof.principal.expires - time.time())
        renewed = [(b"set-cookie", one.encode()) for one in set_session(opened.sealed, age, secure=secure)]
        return opened.proof.principal, passed_on + renewed

    @staticmethod
    def _refuse_peer(peer: str) -> NoReturn:
        """Let our proxies ask, and nobody else; whoever may open the Unix socket has no address."""
        raise UntrustedPeer(Problem.PEER_NOT_TRUSTED, peer=peer)

    async def _prove(self, gate: Gate, presented: bytes, client: str, key: bytes) -> Proof:
        """Parse a credential, prove it as the one kind that it is, and remember that; or raise a Refusal."""
        era = self._verdicts.era
        with self.wiring as wiring:
            proof = await self._authenticate(wiring, gate, parse_credential(presented), client)
        self._verdicts.remember(key, proof, era)
        return proof

    @staticmethod
    async def _authenticate(wiring: Wiring, gate: Gate, credential: Bearer | Basic, client: str) -> Proof:
        if isinstance(credential, Bearer):
            if gate is Gate.BASIC or not wiring.issuers:
                raise Rejected(Problem.JWT_NOT_ACCEPTED)
            return await wiring.tokens.authenticate(credential)
        if gate is Gate.JWT:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        return await wiring.guard.authenticate(credential, client)

    # everything else --------------------------------------------------------------------------------------

    async def _elsewhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the probes, which must not wait for the web application, and hand the rest on to it."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        if path == "/healthz":
            await send_json(send, 200, {"status": "alive"})
        elif path == "/readyz":
            await send_json(send, 200 if self.wiring.ready else 503, self.wiring.state())
        elif self._web is None or path.startswith(_EXT_AUTHZ.decode()):
            await self._not_found(send)
        else:
            self._in_force.set(self.wiring)
            with self.wiring:
                await self._behind(self._web, scope, receive, send)

    @staticmethod
    async def _behind(web: "asyncio.Task[ASGIApp]", scope: Scope, receive: Receive, send: Send) -> None:
        """Let the web application answer; if it fails, or never loaded, that is 503 like every fault of ours."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await (await asyncio.shield(web))(scope, receive, watched)
        except Exception:
            log.exception("the web application failed")
            if not begun:
                cause = Cause(Problem.INTERNAL)
                await send_json(send, 503, refusal_content(Code.INTERNAL_ERROR, cause, secrets.token_hex(8)))

    @staticmethod
    async def _not_found(send: Send) -> None:
        await send_json(send, 404, refusal_content(Code.NOT_FOUND, Cause(Problem.NOT_FOUND), secrets.token_hex(8)))

    # from start to stop -----------------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as problem:  # noqa: BLE001 - whatever it is, the start is refused
                    await send({"type": "lifespan.startup.failed", "message": str(problem)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def start(self) -> None:
        """Start the adapters, and begin to load the web application, without waiting for it."""
        await self.wiring.start()
        self._web = asyncio.create_task(self._loaded_web())
        if self._read_settings is not None:
            reloads = Reloads(self._read_settings, self._swap)
            self._reloads = asyncio.create_task(reloads.at_each_hangup(self.wiring))

    async def _loaded_web(self) -> ASGIApp:
        self._in_force.set(self.wiring)
        web = await asyncio.to_thread(self._load_web, self._in_force.get)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: collections on the hot path need not walk through it
        gc.set_threshold(5_000, 10, 10)  # a call leaves no cycles behind, so there is little to look for
        return web

    def _swap(self, wiring: Wiring) -> None:
        """Let another wiring decide from the next call on."""
        self.wiring, self._trusts, self._access = wiring, wiring.proxies.trusts, wiring.access

    async def stop(self) -> None:
        """Stop what start() began."""
        for work in (self._reloads, self._web):
            if work is not None:
                work.cancel()
        await self.wiring.close()


def _ext_authz_call(scope: Scope) -> tuple[Face, Gate, bytes] | None:
    """Return Envoy's face, the gate, and the original target, which stands behind the prefix, as it was sent."""
    raw_path, query = scope["raw_path"], scope["query_string"]
    if not raw_path.startswith(_EXT_AUTHZ):
        return None
    name, slash, rest = raw_path.removeprefix(_EXT_AUTHZ).partition(b"/")
    gate = _GATES.get(name)
    return None if gate is None else (Face.EXT_AUTHZ, gate, slash + rest + (b"?" + query if query else b""))
