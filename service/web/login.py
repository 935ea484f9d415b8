"""Signing in: at the provider (authorization code and PKCE), or with the form for users of the users file."""

import secrets
import time
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import RedirectResponse, Response

from service.authn.passwords import Passwords
from service.authn.sessions import new_session_id
from service.core.errors import Problem, Refusal, Rejected, SignInFailed, Throttled
from service.core.identity.sign_in import SignedIn, pkce_challenge, provider_error
from service.core.model import Basic, Principal, Session
from service.core.request.cookies import keeps_secure
from service.core.request.headers import MAX_USERNAME
from service.core.request.redirects import HOME, PAGES, parse_return_to, with_fragment
from service.gate.wiring import Wiring
from service.rendering.sentences import sentence
from service.web.attempts import Attempt, Attempts
from service.web.visits import Desk, Visit, seconds_left

_LONG: Final = 4096
_CIRCLES: Final = (
    "Cookies are allowed for this site, third-party rules and extensions included.",
    "The address begins with https:// (or is this machine's own).",
    "The clocks of this computer and of the server are right.",
)
_NOT_BEGUN: Final = "This sign-in was not begun in this browser, was used already, or took too long: sign in again."


class Login:
    """The routes that lead in."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.router = router = APIRouter(include_in_schema=False)
        visit = Depends(desk.visit)

        @router.get("/login")
        async def login(visit: Annotated[Visit, visit], return_to: str = HOME) -> Response:
            return self._entrance(visit, parse_return_to(return_to))

        @router.get("/start")
        async def start(
            visit: Annotated[Visit, visit], return_to: str = HOME, fragment: str = "", switch: str = ""
        ) -> Response:
            return await self._start(visit, with_fragment(parse_return_to(return_to), fragment), bool(switch))

        @router.get("/callback")
        async def callback(request: Request, visit: Annotated[Visit, visit]) -> Response:
            return await self._callback(visit, dict(request.query_params))

        @router.post("/login")
        async def local(
            visit: Annotated[Visit, visit],
            username: Annotated[str, Form(max_length=_LONG)] = "",
            password: Annotated[str, Form(max_length=_LONG)] = "",
            csrf: Annotated[str, Form(max_length=_LONG)] = "",
            return_to: Annotated[str, Form(max_length=_LONG)] = HOME,
            fragment: Annotated[str, Form(max_length=_LONG)] = "",
        ) -> Response:
            return_to = parse_return_to(return_to)
            return await self._local(visit, Basic(username, password), csrf, return_to, fragment)

    @property
    def _wiring(self) -> Wiring:
        return self._desk.wiring

    @property
    def _attempts(self) -> Attempts:
        return Attempts(self._wiring.seal)

    # the entrance -----------------------------------------------------------------------------------------

    def _entrance(self, visit: Visit, return_to: str) -> Response:
        """Show the form, the way to the provider, or both; stop where signing in has led nowhere twice."""
        if not self._desk.settings.people_sign_in:
            raise SignInFailed("Sign-in is not set up here. Use the API host with a credential.", reason="not set up")
        if not self._may_keep_cookies(visit):
            raise SignInFailed(
                "This address is plain http, over which a session would not be safe: open it with https://, or permit "
                "it with session.allow_http.",
                reason=f"{visit.request.origin} is not https",
            )
        if self._attempts.go_in_circles(visit, return_to):
            return self._stopped(visit, return_to)
        if not self._desk.settings.local_sign_in:
            return self._desk.pages.redirecting(href=self._start_href(return_to), provider=self._desk.provider_name)
        return self._form(visit, return_to)

    def _may_keep_cookies(self, visit: Visit) -> bool:
        return not visit.secure or keeps_secure(visit.request)

    def _form(self, visit: Visit, return_to: str, status: int = 200, retry_after: int = 0, **shown: str) -> Response:
        attempt = self._attempts.begin(return_to)
        by_provider = self._desk.settings.oidc is not None
        response = self._desk.pages.sign_in(
            local=True,
            provider=self._desk.provider_name if by_provider else None,
            provider_href=self._start_href(return_to) if by_provider else "",
            action=f"{PAGES}login",
            csrf=attempt.state,
            return_to=return_to,
            status=status,
            retry_after=retry_after,
            **shown,
        )
        self._attempts.keep(attempt, visit, response)
        return response

    def _stopped(self, visit: Visit, return_to: str) -> Response:
        response = self._desk.pages.error(
            status=400,
            heading="Signing in does not hold",
            detail="You signed in twice, but this browser did not keep the session. Check these, then try again.",
            request_id=secrets.token_hex(8),
            retry_href=_again(return_to),
            code="sign_in_failed",
            checks=_CIRCLES,
        )
        self._attempts.forget_rounds(visit, response)
        return response

    @staticmethod
    def _start_href(return_to: str) -> str:
        return f"{PAGES}start?{urlencode({'return_to': return_to})}"

    # at the provider --------------------------------------------------------------------------------------

    async def _start(self, visit: Visit, return_to: str, switch: bool) -> Response:  # noqa: FBT001 - from a query
        """Send the browser to the provider, with an attempt of its own."""
        provider = self._wiring.provider
        if provider is None:
            return RedirectResponse(f"{PAGES}login", 303)
        if self._attempts.go_in_circles(visit, return_to) and not switch:
            return self._stopped(visit, return_to)
        attempt = self._attempts.begin(return_to)
        try:
            url = await provider.authorization_url(
                state=attempt.state,
                nonce=attempt.nonce,
                code_challenge=pkce_challenge(attempt.verifier),
                redirect_uri=visit.callback,
                prompt="select_account" if switch else "",
            )
        except Refusal as refusal:
            return self._desk.refused(refusal, _again(return_to))
        response = RedirectResponse(url, 302, {"Cache-Control": "no-store"})
        self._attempts.keep(attempt, visit, response)
        return response

    async def _callback(self, visit: Visit, query: dict[str, str]) -> Response:
        """End an attempt that this browser began: redeem the code, begin a session, go where it was begun for."""
        attempt = self._attempts.find(query.get("state", ""), visit)
        if attempt is None:
            raise SignInFailed(_NOT_BEGUN, reason="no attempt of this state in this browser")
        try:
            session = await self._redeem(visit, query, attempt)
        except Refusal as refusal:
            response = self._desk.refused(refusal, _again(attempt.return_to))
            self._attempts.end(attempt, visit, response)
            return response
        return self._signed_in(visit, attempt, session, attempt.return_to)

    async def _redeem(self, visit: Visit, query: dict[str, str], attempt: Attempt) -> Session:
        provider, settings = self._wiring.provider, self._desk.settings.oidc
        if provider is None or settings is None:
            raise SignInFailed(_NOT_BEGUN, reason="no provider is configured")
        if "error" in query or not query.get("code"):
            raise provider_error(query.get("error", ""), query.get("error_description", ""))
        who = await provider.redeem(
            query["code"],
            code_verifier=attempt.verifier,
            nonce=attempt.nonce,
            redirect_uri=visit.callback,
            response_issuer=query.get("iss", ""),
        )
        return _begun(
            who,
            claims=who.claims,
            check_at=time.time() + settings.check,
            provider_sid=who.provider_sid,
            refresh_token=who.refresh_token,
            id_token=who.id_token,
        )

    # with a password --------------------------------------------------------------------------------------

    async def _local(self, visit: Visit, pair: Basic, csrf: str, return_to: str, fragment: str) -> Response:
        """Check a password; a form that this browser was not given is shown again, and checks nothing."""
        if self._wiring.passwords is None or not self._desk.settings.local_sign_in:
            raise SignInFailed(Problem.SIGN_IN_NOT_SET_UP_LOCALLY)
        username = pair.username[:MAX_USERNAME]
        attempt = self._attempts.find(csrf, visit) if visit.browser.same_origin else None
        if attempt is None:
            return self._form(visit, return_to, 400, username=username, notice=_NOT_BEGUN)
        try:
            session = await self._prove(self._wiring.passwords, pair, visit.request.client)
        except (Rejected, Throttled) as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            status, retry_after = (429, refusal.retry_after) if isinstance(refusal, Throttled) else (403, 0)
            problem = sentence(refusal.cause, for_person=True)
            return self._form(visit, return_to, status, retry_after, username=username, problem=problem)
        return self._signed_in(visit, attempt, session, with_fragment(return_to, fragment))

    async def _prove(self, passwords: Passwords, pair: Basic, client: str) -> Session:
        mark = passwords.password_mark(pair.username)
        proof = await self._wiring.guard.authenticate_user(pair.username, pair.password, client)
        if mark != passwords.password_mark(pair.username):
            raise Rejected(Problem.PASSWORD_CHANGED)
        return _begun(proof.principal, claims={}, check_at=float("inf"), password_mark=mark)

    def _signed_in(self, visit: Visit, attempt: Attempt, session: Session, return_to: str) -> Response:
        sessions = self._wiring.sessions
        if sessions is None:
            raise SignInFailed(_NOT_BEGUN, reason="nobody can sign in")
        response = RedirectResponse(return_to, 303, {"Cache-Control": "no-store"})
        until = session.began + self._wiring.session_policy.lifetime
        visit.set_session(response, sessions.seal(session), seconds_left(until))
        self._attempts.end(attempt, visit, response)
        self._attempts.count_round(visit, return_to, response)
        self._wiring.telemetry.signed_in(session, visit.request.client)
        return response


def _begun(who: SignedIn | Principal, **more: Any) -> Session:
    """Return a session that begins now, for whom a provider or a password has proved."""
    now = time.time()
    return Session(
        id=new_session_id(),
        issuer=who.issuer,
        subject=who.subject,
        name=who.name,
        email=who.email,
        groups=who.groups,
        began=now,
        seen=now,
        **more,
    )


def _again(return_to: str) -> str:
    """Return where to try again, to come back to the same address, fragment included."""
    address, mark, fragment = return_to.partition("#")
    return f"{PAGES}login?return_to={quote(address, safe='')}{mark}{fragment}"
