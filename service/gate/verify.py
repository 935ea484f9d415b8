"""THE HOT PATH: verify calls, in steps of which most need not wait.

A verify call goes parse → authenticate → decide → render, and whatever happens on the way, an exception of our
own included, ends in ``decide()``. The server's protocol takes the first step (``verify_protocol.py``). Where that is
not enough, the ASGI application takes all of them.
"""

import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import partial
from typing import Final, NamedTuple, NoReturn

from service.authn.steps import Steps, at_once, in_time
from service.core.errors import Broken, Refusal, Rejected, UntrustedPeer
from service.core.model import (
    NO_CREDENTIAL,
    Allow,
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
from service.core.prefect.client_events import run_in_path
from service.core.prefect.secret_flags import MAX_BODY
from service.core.problems import Problem
from service.core.request.cookies import HOST_PREFIX, own_cookies, session_cookie, set_session, strip_own_cookies
from service.core.request.faces import MAX_REMEMBERED, browser_of, parse_browser, parse_call
from service.core.request.headers import Headers, parse_client_version, parse_credential
from service.gate.asgi import Message, Receive, Scope, Send, body_of
from service.gate.generation import Generation
from service.gate.refusals import RefusalPages
from service.rendering.answers import Refused, allowed, reaches_a_person, render
from service.rendering.devices import device_in
from service.rendering.forms import ANY_VERSION, Form, form_for
from service.rendering.refusal_page import RefusalPage
from service.rendering.wire import Answer, WireHeaders
from service.state.bounded import keep
from service.state.fingerprints import Fingerprints
from service.state.reporters import Reporter

log = logging.getLogger(__name__)

MAX_ASKED: Final = 4_096  # calls that are remembered as they were understood
MAX_BYTES: Final = 8_192  # of such a call as it came: nothing of them is kept
Chunk = tuple[bytes, bytes]  # bytes that arrived together, and their fingerprint
Endpoint = tuple[Face, Gate, bytes]  # which proxy, which gate, and the original target where the path ends in it

_ASKS_FOR_RUNS: Final = "/get_scheduled_flow_runs"
_ENDPOINTS: Final[dict[str, Endpoint]] = {
    f"/{face}/{gate}": (face, gate, b"") for face in (Face.FORWARD_AUTH, Face.AUTH_REQUEST) for gate in Gate
}
_UI: Final = Gate.UI  # Python 3.11 takes long to find a member of an enumeration
ENDPOINTS: Final = {path.encode(): endpoint for path, endpoint in _ENDPOINTS.items()}  # as proxies write them
EXT_AUTHZ_PREFIX: Final = f"/{Face.EXT_AUTHZ}/"
EXT_AUTHZ: Final = EXT_AUTHZ_PREFIX.encode()
_NOTHING_MORE: Final[WireHeaders] = []
_GATES: Final = {gate.encode(): gate for gate in Gate}


class Asked(NamedTuple):
    """What the bytes of a call say, without its credential, so that the same bytes need not be parsed again."""

    endpoint: Endpoint
    request: ForwardedRequest
    browser: Browser | None
    key: bytes | None  # of the verdict about its credential, or None where it has none
    cookies: slice  # where in the bytes the value of its Cookie header is
    form: Form


class VerifyEndpoints(ABC):
    """Answers verify calls by the generation in force, and leaves every other call to ``_answer_other``."""

    def __init__(self, generation: Generation) -> None:
        state = generation.wiring.state
        self._verdicts, self._telemetry, self._reporters = state.verdicts, state.telemetry, state.reporters
        self._refusal_pages = RefusalPages()
        self._asked: OrderedDict[bytes, Asked] = OrderedDict()  # by a fingerprint of all bytes, the oldest first
        self._fingerprints = Fingerprints()
        self.use(generation)

    def use(self, generation: Generation) -> None:
        """Decide by another generation from the next call on."""
        wiring = generation.wiring
        self.generation, self.wiring = generation, wiring
        self._trusts, self._access = wiring.proxies.trusts, wiring.access_past_relay
        self._notes_reporters = wiring.notes_reporters
        self._asked.clear()  # who a client is depends on which proxies are trusted
        generation.take_effect()

    @abstractmethod
    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is no verify call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call (ASGI 3.0)."""
        endpoint = _ENDPOINTS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None and scope["type"] == "http":
            endpoint = ext_authz(scope["raw_path"], scope["query_string"])
        if endpoint is None:
            await self._answer_other(scope, receive, send)
            return
        client = scope.get("client")
        peer = client[0] if client else ""
        answer = await in_time(self._answering(endpoint, scope["method"], scope["headers"], peer, receive))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    def answer_at_once(
        self, endpoint: Endpoint, method: str, headers: Headers, peer: str, chunk: Chunk | None = None
    ) -> Answer | None:
        """Return the answer to a verify call without a body, or None if something has to be waited for.

        Then nothing was counted or logged, and the call is to be made by ASGI. ``chunk`` is the call as it came,
        for ``answer_again()``.
        """
        return at_once(self._answering(endpoint, method, headers, peer, _no_body, chunk))

    def answer_again(self, chunk: Chunk, peer: str) -> Answer | None:
        """Return the answer to a call with the very bytes of an earlier one, or None if they have to be parsed.

        What the bytes say is remembered, and nothing else: who sends them, and whether that one may, is decided now.
        """
        asked = self._asked.get(chunk[1])
        if asked is None or not self._trusts(peer):
            return None
        endpoint, request, browser, key, cookies, form = asked
        gate = endpoint[1]
        who: Principal | NoCredential = NO_CREDENTIAL
        headers = _NOTHING_MORE
        reporter: Reporter | None = None
        if key is not None:
            proof = self._verdicts.recall(key)
            if proof is None:
                return None
            who = proof.principal
            if gate is _UI:
                headers = [(b"cookie", strip_own_cookies(chunk[0][cookies]))]
            elif self._notes_reporters:
                reporter = self._reporters.fresh.get((request.client, key))
                if reporter is None:
                    return None
        decision = decide(request, who, gate, self._access, browser=browser)
        if isinstance(decision, Allow):
            return self._allow(decision, request, endpoint, headers, reporter, peer)
        if reaches_a_person(decision, gate, browser):
            return None
        return self._refuse(decision, request, endpoint, form, browser=browser, peer=peer, page=None)

    def chunk_of(self, data: bytes) -> Chunk | None:
        """Return bytes as those of a call that may come again, or None if they are too many to be remembered."""
        return (data, self._fingerprints.of(data)) if len(data) <= MAX_BYTES else None

    def _answering(  # noqa: C901, PLR0912, PLR0915 - a frame costs
        self,
        endpoint: Endpoint,
        method: str,
        all_headers: Headers,
        peer: str,
        receive: Receive,
        chunk: Chunk | None = None,
    ) -> Steps[Answer]:
        face, gate, target = endpoint
        request: ForwardedRequest | None = None
        who: Principal | NoCredential | Refusal = NO_CREDENTIAL
        browser: Browser | None = None
        headers = _NOTHING_MORE
        body: bytes | None = None
        decision: Decision | None = None
        key: bytes | None = None
        noted: tuple[bytes, bytes, Proof] | None = None
        try:
            if not self._trusts(peer):
                self._refuse_peer(peer)
            request, found = parse_call(face, method, target, all_headers, self.wiring.proxies)
            if gate is _UI:
                browser = parse_browser(found, request)
                who, headers, key = yield from self._opening_session(found.get(b"cookie"), request, all_headers)
            else:
                browser = browser_of(found, request)
                presented = found.get(b"authorization")
                if presented is not None:
                    key = self._verdicts.key_of(gate, presented, request.client)
                    proof = self._verdicts.recall(key)
                    if proof is None:
                        chunk = None  # a token that is seen once need not be remembered twice
                        proof = yield from self._proving(gate, presented, request.client, key)
                    who = proof.principal
                    if self._notes_reporters:
                        noted = presented, key, proof
            if b"content-length" in found or b"transfer-encoding" in found:
                if self._access.reads_body(request):
                    body = yield partial(body_of, receive, MAX_BODY)
            elif chunk is not None and len(request.target) <= MAX_REMEMBERED:
                cookies = _place_in(chunk[0], found.get(b"cookie", b""))
                if cookies is not None:
                    asked = Asked(endpoint, request, browser, key, cookies, _form_of(all_headers))
                    keep(self._asked, chunk[1], asked, MAX_ASKED)
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
            reporter = None
            if noted is not None and request is not None:
                reporter = self._reporter(request.client, gate, *noted)
            return self._allow(decision, request, endpoint, headers, reporter, peer)
        page = None
        if reaches_a_person(decision, gate, browser):
            page = yield partial(self._refusal_pages.page, self.wiring.settings)
        return self._refuse(decision, request, endpoint, _form_of(all_headers), browser=browser, peer=peer, page=page)

    def _allow(
        self,
        decision: Allow,
        request: ForwardedRequest | None,
        endpoint: Endpoint,
        headers: WireHeaders,
        reporter: Reporter | None,
        peer: str,
    ) -> Answer:
        """Count an Allow, note and log what is to be, and return the answer."""
        face, gate, _ = endpoint
        telemetry = self._telemetry
        telemetry.allowed[gate] += 1
        if reporter is not None and request is not None:
            _note_runs(reporter, request.path)
        if not decision.known:
            telemetry.unknown_route(request)
        if telemetry.log_allowed:
            telemetry.decided(decision, request, face=face, gate=gate, request_id="", peer=peer)
        return allowed(decision.principal.identity, headers)

    def _refuse(
        self,
        decision: Refused,
        request: ForwardedRequest | None,
        endpoint: Endpoint,
        form: Form,
        *,
        browser: Browser | None,
        peer: str,
        page: RefusalPage | None,
    ) -> Answer:
        """Count and log what is not an Allow, and return the answer."""
        face, gate, _ = endpoint
        if isinstance(decision, Deny) and not decision.known:
            self._telemetry.unknown_route(request)
        request_id = secrets.token_hex(8)
        self._telemetry.decided(decision, request, face=face, gate=gate, request_id=request_id, peer=peer)
        return render(decision, face, gate, request_id, browser, page, form=form)

    def _opening_session(
        self, header: bytes | None, request: ForwardedRequest, all_headers: Headers
    ) -> Steps[tuple[Principal | NoCredential, WireHeaders, bytes | None]]:
        """Return whose session a Cookie header carries, what the answer adds, and the key of the verdict.

        Added is the Cookie header for the upstream, and the session's own cookies where it was sealed anew.
        """
        sessions = self.wiring.sessions
        if header is None or sessions is None:
            return NO_CREDENTIAL, _NOTHING_MORE, None
        secure = self.wiring.secure_cookies(request)
        key = self._verdicts.key_of(_UI, header if secure else b"\n" + header)  # other names count there
        proof = self._verdicts.recall(key)
        if proof is not None:
            return proof.principal, [(b"cookie", strip_own_cookies(header))], key
        cookie = session_cookie(own_cookies(header, HOST_PREFIX if secure else b""))
        if isinstance(cookie, NoCredential):
            return cookie, _NOTHING_MORE, None
        passed_on: WireHeaders = [(b"cookie", strip_own_cookies(header))]
        era = self._verdicts.era
        with self.generation:
            opened = yield from sessions.opening(cookie)
        self.wiring.state.sightings.note(opened.session, device_in(all_headers), request.client, time.time())
        if opened.sealed is None:
            self._verdicts.remember(key, opened.proof, era)
            return opened.proof.principal, passed_on, key
        age = int(opened.proof.principal.expires - time.time())
        renewed = [(b"set-cookie", one.encode()) for one in set_session(opened.sealed, age, secure=secure)]
        return opened.proof.principal, passed_on + renewed, key

    @staticmethod
    def _refuse_peer(peer: str) -> NoReturn:
        """Refuse a caller that is not a trusted proxy."""
        raise UntrustedPeer(Problem.PEER_NOT_TRUSTED, peer=peer)

    def _reporter(self, client: str, gate: Gate, presented: bytes, key: bytes, proof: Proof) -> Reporter:
        """Return the caller at an address, remembered from now on."""
        reporter = self._reporters.fresh.get((client, key))
        if reporter is None:
            reporter = self._reporters.note(client, key, gate, presented, proof, self._verdicts.era)
        return reporter

    async def proof_of(self, gate: Gate, presented: bytes, client: str) -> Proof:
        """Return the proof of an Authorization header's value, remembered or new, as for a verify call.

        Raises Refusal.
        """
        key = self._verdicts.key_of(gate, presented, client)
        proof = self._verdicts.recall(key)
        return await in_time(self._proving(gate, presented, client, key)) if proof is None else proof

    def _proving(self, gate: Gate, presented: bytes, client: str, key: bytes) -> Steps[Proof]:
        """Parse a credential, prove it as the one kind that it is, and remember that; or raise a Refusal."""
        era = self._verdicts.era
        with self.generation as generation:
            wiring, credential = generation.wiring, parse_credential(presented)
            if isinstance(credential, Bearer):
                if gate is Gate.BASIC or not wiring.takes_tokens:
                    raise Rejected(Problem.JWT_NOT_ACCEPTED)
                proof = yield from wiring.tokens.authenticating(credential)
            elif gate is Gate.JWT:
                raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
            else:
                proof = yield partial(wiring.guard.authenticate, credential, client)
        self._verdicts.remember(key, proof, era)
        return proof


def ext_authz(raw_path: bytes, query: bytes) -> Endpoint | None:
    """Return Envoy's endpoint of a path and query, if it is one."""
    call = behind_prefix(raw_path, query, EXT_AUTHZ)
    return None if call is None else (Face.EXT_AUTHZ, *call)


def behind_prefix(raw_path: bytes, query: bytes, prefix: bytes) -> tuple[Gate, bytes] | None:
    """Return the gate and the original target, as it was sent, of a path ``{prefix}{gate}{target}``; else None."""
    if not raw_path.startswith(prefix):
        return None
    name, slash, rest = raw_path.removeprefix(prefix).partition(b"/")
    gate = _GATES.get(name)
    return None if gate is None else (gate, slash + rest + (b"?" + query if query else b""))


def _note_runs(reporter: Reporter, path: str) -> None:
    """Remember the run or the work pool that a caller names."""
    if "_runs/" in path:
        run = run_in_path(path)
        if run is not None:
            reporter.reports(run)
    elif path.endswith(_ASKS_FOR_RUNS):
        *_, kind, work_pool, _ = path.split("/")
        if kind == "work_pools":
            reporter.asks_for(work_pool)


def _place_in(data: bytes, value: bytes) -> slice | None:
    """Return where a value is, or None if it is not there as it is."""
    start = data.find(value)
    return None if start < 0 else slice(start, start + len(value))


def _form_of(headers: Headers) -> Form:
    """Return how the version of Prefect that asks sends a credential."""
    for name, value in headers:
        if name == b"user-agent":
            return form_for(parse_client_version(value))
    return ANY_VERSION


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
