"""What the routes under /_auth/ share: the request for a page, and how its answer is made."""

import secrets
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.authn.sessions import Opened
from service.core.errors import Later, NotPermitted, Refusal, SessionEnded
from service.core.model import Browser, ForwardedRequest, Session, SessionCookie
from service.core.problems import Cause, Problem
from service.core.request.cookies import (
    HOST_PREFIX,
    clear_session,
    own_cookies,
    session_cookie,
    set_cookie,
    set_session,
)
from service.core.request.faces import parse_browser, parse_routed, shows_answer
from service.core.request.redirects import HOME, PAGES, sign_in_href
from service.gate.refusals import switch_href
from service.gate.wiring import Wiring
from service.rendering.answers import refusal_content
from service.rendering.devices import device_in
from service.rendering.pages import UNNAMED_PROVIDER, Pages, pages_of
from service.rendering.wire import Answer
from service.settings import Settings


class PageRequest(NamedTuple):
    """One request for a page."""

    request: ForwardedRequest
    browser: Browser
    device: str
    cookies: dict[bytes, bytes]  # of this service only, without the prefix of their names
    secure: bool

    @property
    def callback(self) -> str:
        """Return where the provider sends the browser back to (RFC 6749 §3.1.2)."""
        return f"{self.request.origin}{PAGES}callback"

    def set_cookie(self, response: Response, name: str, value: str, max_age: int) -> None:
        """Let the response set a cookie of this service; a ``max_age`` of 0 seconds deletes it."""
        response.headers.append("set-cookie", set_cookie(name, value, max_age, secure=self.secure))

    def set_session(self, response: Response, sealed: str, max_age: int) -> None:
        """Let the response set the session cookies."""
        _append(response, set_session(sealed, max_age, secure=self.secure))

    def clear_session(self, response: Response) -> None:
        """Let the response delete the session cookies, and the browser's cache of this site."""
        _append(response, clear_session(secure=self.secure))
        response.headers["clear-site-data"] = '"cache"'


def _append(response: Response, cookies: Iterable[str]) -> None:
    for one in cookies:
        response.headers.append("set-cookie", one)


class PageContext:
    """What the pages' routes share: the wiring, the pages, and how a request is parsed.

    ``in_force`` returns the wiring that the call under way began with; a reload replaces it.
    """

    def __init__(self, in_force: Callable[[], Wiring]) -> None:
        self._in_force = in_force
        _ = self.pages  # made now: it takes too long for a call

    @property
    def wiring(self) -> Wiring:
        """Return the wiring of the call under way."""
        return self._in_force()

    @property
    def settings(self) -> Settings:
        """Return the settings of the call under way."""
        return self.wiring.settings

    @property
    def provider_name(self) -> str:
        """Return what the pages call the provider, or an empty text if there is none."""
        return (self.settings.oidc.name or UNNAMED_PROVIDER) if self.settings.oidc else ""

    @property
    def pages(self) -> Pages:
        """Return the pages of the settings."""
        oidc, sign_in = self.settings.oidc, self.settings.sign_in
        return pages_of(sign_in.title, sign_in.help, allow_http=oidc is not None and oidc.allow_http)

    def parse(self, request: Request) -> PageRequest:
        """Return the request for a page, or raise a Refusal."""
        scope = request.scope
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        routed, _ = parse_routed(scope["method"], target, scope["headers"], self.wiring.proxies)
        found = dict(scope["headers"])
        secure = self.wiring.secure_cookies(routed)
        try:
            cookies = own_cookies(found.get(b"cookie", b""), HOST_PREFIX if secure else b"")
        except SessionEnded:
            cookies = {}  # none of them can be believed
        return PageRequest(routed, parse_browser(found, routed), device_in(scope["headers"]), cookies, secure)

    def session(self, page_request: PageRequest) -> Session | None:
        """Return the session as it was sealed, or None if there is none or it has ended."""
        try:
            cookie = session_cookie(page_request.cookies)
            if isinstance(cookie, SessionCookie) and self.wiring.sessions is not None:
                return self.wiring.sessions.look_at(cookie)
        except SessionEnded:
            pass
        return None

    @property
    def has_own_tokens(self) -> bool:
        """Tell whether there are people who may issue tokens for themselves."""
        settings = self.settings
        return settings.people_sign_in and settings.tokens is not None and bool(settings.tokens.people)

    async def open(self, page_request: PageRequest) -> Opened:
        """Return the session, renewed if it is due: pass it to ``renewed()`` with the answer.

        Raises SessionEnded if there is none, and otherwise as ``Sessions.open()`` does.
        """
        cookie = session_cookie(page_request.cookies)
        if not isinstance(cookie, SessionCookie) or self.wiring.sessions is None:
            raise SessionEnded(Problem.NOT_SIGNED_IN)
        opened = await self.wiring.sessions.open(cookie)
        client = page_request.request.client
        self.wiring.state.sightings.note(opened.session, page_request.device, client, time.time())
        return opened

    async def end(self, session: Session) -> None:
        """End a session here, in force at once, and have the provider forget its refresh token."""
        await self.wiring.revocation_log.end(session)
        if self.wiring.provider is not None and session.refresh_token:
            await self.wiring.provider.revoke(session.refresh_token)
        self.wiring.telemetry.signed_out(session)

    def no_groups(self, session: Session) -> Cause | None:
        """Return what to say to a person who has no groups although groups give roles, or None."""
        provider = self.wiring.provider
        if provider is None or not provider.misses_groups(session):
            return None
        return Cause(Problem.NO_GROUPS, {"claim": provider.trust.groups_claim, "preset": provider.policy.preset})

    def refused(self, refusal: Refusal, return_to: str = HOME) -> Response:
        """Log a refusal, and return its page; ``return_to`` is where the person wants to get to."""
        request_id, switch = secrets.token_hex(8), switch_href(self.settings, return_to)
        again = sign_in_href(return_to)
        self.wiring.telemetry.sign_in_refused(refusal, request_id)
        if isinstance(refusal, NotPermitted):
            who = {"name": refusal.name, "subject": refusal.subject}
            page = self.pages.denied(who, refusal.cause, again_href=again, switch_href=switch, request_id=request_id)
            return as_response(page)
        return as_response(self.pages.refused(refusal, request_id=request_id, again_href=again, switch_href=switch))

    def answered(self, request: Request, refusal: Refusal, status: int = 0) -> Response:
        """Return a refusal that is not about signing in: a page for a person, JSON for everybody else.

        ``status`` replaces that of the refusal.
        """
        request_id = secrets.token_hex(8)
        if shows_answer(dict(request.scope["headers"])):
            page = self.pages.refused(refusal, request_id=request_id, again_href="", switch_href="", status=status)
            return as_response(page)
        headers = {"Cache-Control": "no-store"}
        if isinstance(refusal, Later):
            headers["Retry-After"] = str(refusal.retry_after)
        content = refusal_content(refusal.code, refusal.cause, request_id)
        return JSONResponse(content, status or refusal.status, headers)


def renewed(response: Response, opened: Opened, page_request: PageRequest) -> Response:
    """Return the response, with the session if it was sealed anew: a refresh token may have been used up for that."""
    if opened.sealed is not None:
        page_request.set_session(response, opened.sealed, seconds_left(opened.proof.principal.expires))
    return response


def as_response(answer: Answer) -> Response:
    """Return a rendered page as a response, to which cookies can be added."""
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response


def seconds_left(until: float) -> int:
    """Return how many whole seconds are left until a time, 0 if it is past."""
    return max(0, int(until - time.time()))
