"""A visit to the pages under /_auth/: what the request says, and what every answer has in common."""

import secrets
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from fastapi import Request
from starlette.responses import Response

from service.core.errors import Later, Malformed, NotPermitted, Refusal, SessionEnded
from service.core.model import Browser, ForwardedRequest, Session, SessionCookie
from service.core.request.cookies import HOST_PREFIX, clear_session, ours, session_of, set_cookie, set_session
from service.core.request.faces import parse_browser, parse_routed
from service.core.request.redirects import HOME, PAGES
from service.gate.wiring import Wiring
from service.rendering.pages import Pages
from service.settings import Settings

HEADINGS: Final = {
    429: "Too many attempts",
    503: "Just now this cannot be decided",
}


class Visit(NamedTuple):
    """One request for a page."""

    request: ForwardedRequest
    browser: Browser
    cookies: dict[bytes, bytes]  # of this service alone
    secure: bool

    @property
    def callback(self) -> str:
        """Return where the provider sends the browser back to (RFC 6749 §3.1.2)."""
        return f"{self.request.origin}{PAGES}callback"

    def set_cookie(self, response: Response, name: str, value: str, max_age: int) -> None:
        """Let the response set a cookie of ours, or with a ``max_age`` of nought delete it."""
        response.headers.append("set-cookie", set_cookie(name, value, max_age, secure=self.secure))

    def set_session(self, response: Response, sealed: str, max_age: int) -> None:
        """Let the response carry a session."""
        _append(response, set_session(sealed, max_age, secure=self.secure))

    def clear_session(self, response: Response) -> None:
        """Let the response end the session in this browser, and drop what the browser kept of its pages."""
        _append(response, clear_session(secure=self.secure))
        response.headers["clear-site-data"] = '"cache"'


def _append(response: Response, cookies: Iterable[str]) -> None:
    for one in cookies:
        response.headers.append("set-cookie", one)


class Desk:
    """What the pages' routes share: the wiring, the pages, and how a request becomes a visit.

    ``in_force`` returns the wiring that the call under way began with; after a change of the settings that is another.
    """

    def __init__(self, in_force: Callable[[], Wiring]) -> None:
        self._in_force = in_force
        _ = self.pages  # made now: it takes longer than a call may

    @property
    def wiring(self) -> Wiring:
        """Return what the call under way is decided by."""
        return self._in_force()

    @property
    def settings(self) -> Settings:
        """Return the settings of that."""
        return self.wiring.settings

    @property
    def provider_name(self) -> str:
        """Return what the pages call the provider."""
        return (self.settings.oidc.name or "single sign-on") if self.settings.oidc else ""

    @property
    def pages(self) -> Pages:
        """Return the pages, made anew only where what they all say has changed."""
        oidc, sign_in = self.settings.oidc, self.settings.sign_in
        return _pages(sign_in.title, sign_in.help, oidc is not None and oidc.allow_http)

    @property
    def switch_href(self) -> str:
        """Return where one signs in as somebody else: at the form, where there is one."""
        return f"{PAGES}login" if self.settings.local_sign_in else f"{PAGES}start?switch=1"

    def visit(self, request: Request) -> Visit:
        """Return the visit that a request is, or raise a Refusal."""
        scope = request.scope
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        routed = parse_routed(scope["method"], target, scope["headers"], self.wiring.proxies)
        found = dict(scope["headers"])
        secure = self.wiring.secure_cookies(routed)
        try:
            cookies = ours(found.get(b"cookie", b""), HOST_PREFIX if secure else b"")
        except SessionEnded:
            cookies = {}  # nothing that could be believed: as if there were none
        return Visit(routed, parse_browser(found, routed), cookies, secure)

    def session(self, visit: Visit) -> Session | None:
        """Return the session as it was sealed, or None; one that has ended may end no others."""
        try:
            cookie = session_of(visit.cookies)
            if isinstance(cookie, SessionCookie) and self.wiring.sessions is not None:
                return self.wiring.sessions.look_at(cookie)
        except SessionEnded:
            pass
        return None

    def refused(self, refusal: Refusal, retry_href: str | None = None) -> Response:
        """Return the page that tells a person of a refusal, and the way on."""
        request_id = secrets.token_hex(8)
        self.wiring.telemetry.sign_in_refused(refusal, request_id)
        status, retry_after = refusal.status, refusal.retry_after if isinstance(refusal, Later) else 0
        if isinstance(refusal, NotPermitted):
            return self.pages.denied(
                who={"name": refusal.name, "subject": refusal.subject},
                needed=refusal.detail,
                have="",
                request_id=request_id,
                switch_href=self.switch_href,
                back_href=HOME,
            )
        if isinstance(refusal, Malformed):
            heading = "This request cannot be understood"
        else:
            heading = HEADINGS.get(status, "Signing in did not work")
        return self.pages.error(
            status=status,
            heading=heading,
            detail=refusal.detail,
            request_id=request_id,
            retry_href=retry_href or f"{PAGES}login",
            code=refusal.code,
            retry_after=retry_after,
        )


@lru_cache(maxsize=2)
def _pages(title: str, sentence: str, allow_http: bool) -> Pages:  # noqa: FBT001 - a cache takes no names
    return Pages(title, sentence, allow_http=allow_http)


def seconds_left(until: float) -> int:
    """Return how many whole seconds are left, none if it is past."""
    return max(0, int(until - time.time()))
