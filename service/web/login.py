"""Signing in: at the provider (authorization code and PKCE), or with the form for users of the users file."""

import time
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import RedirectResponse, Response

from service.authn.oidc import RelyingParty
from service.authn.passwords import Passwords
from service.authn.sessions import new_session_id
from service.core.errors import NotPermitted, Refusal, Rejected, SignInFailed, Throttled
from service.core.identity.sign_in import SignedIn, pkce_challenge, provider_error
from service.core.model import Basic, Principal, Session
from service.core.problems import Cause, Problem
from service.core.request.cookies import keeps_secure
from service.core.request.headers import MAX_USERNAME
from service.core.request.redirects import HOME, PAGES, parse_return_to, with_fragment
from service.gate.wiring import Wiring
from service.rendering.sentences import sentence_for_person
from service.web.attempts import Attempt, Attempts
from service.web.page_context import PageContext, PageRequest, as_response, seconds_left

MAX_FIELD: Final = 4096  # characters of a form's field
_NO_STORE: Final = {"Cache-Control": "no-store"}


class LoginRoutes:
    """The routes of signing in."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.router = router = APIRouter(include_in_schema=False)
        parsed = Depends(context.parse)

        @router.get("/login")
        async def login(
            page_request: Annotated[PageRequest, parsed], return_to: str = HOME, switch: str = ""
        ) -> Response:
            return self._sign_in_page(page_request, parse_return_to(return_to), bool(switch))

        @router.get("/start")
        async def start(
            page_request: Annotated[PageRequest, parsed], return_to: str = HOME, fragment: str = "", switch: str = ""
        ) -> Response:
            return await self._start(page_request, with_fragment(parse_return_to(return_to), fragment), bool(switch))

        @router.get("/callback")
        async def callback(request: Request, page_request: Annotated[PageRequest, parsed]) -> Response:
            return await self._callback(page_request, dict(request.query_params))

        @router.post("/login")
        async def local(
            page_request: Annotated[PageRequest, parsed],
            username: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            password: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            csrf: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            return_to: Annotated[str, Form(max_length=MAX_FIELD)] = HOME,
            fragment: Annotated[str, Form(max_length=MAX_FIELD)] = "",
        ) -> Response:
            return_to = parse_return_to(return_to)
            return await self._local(page_request, Basic(username, password), csrf, return_to, fragment)

    @property
    def _wiring(self) -> Wiring:
        return self._context.wiring

    @property
    def _attempts(self) -> Attempts:
        return Attempts(self._wiring.seal)

    # the sign-in page -------------------------------------------------------------------------------------

    def _sign_in_page(self, page_request: PageRequest, return_to: str, switch: bool) -> Response:  # noqa: FBT001 - from a query
        """Show the form, the link to the provider, or both; stop if this browser does not keep its session."""
        if not self._context.settings.people_sign_in:
            raise SignInFailed(Problem.SIGN_IN_NOT_SET_UP)
        if not self._may_keep_cookies(page_request):
            raise SignInFailed(Problem.SIGN_IN_OVER_HTTP, origin=page_request.request.origin)
        if self._attempts.is_looping(page_request, return_to):
            return self._loop_stopped(page_request, return_to)
        if not self._context.settings.local_sign_in:
            return as_response(
                self._context.pages.redirecting(href=self._start_href(return_to), provider=self._context.provider_name)
            )
        return self._form(page_request, return_to, switch=switch)

    def _may_keep_cookies(self, page_request: PageRequest) -> bool:
        return not page_request.secure or keeps_secure(page_request.request)

    def _form(
        self,
        page_request: PageRequest,
        return_to: str,
        status: int = 200,
        retry_after: int = 0,
        *,
        switch: bool = False,
        **shown: str,
    ) -> Response:
        attempt = self._attempts.begin(return_to)
        by_provider = self._context.settings.oidc is not None
        page = self._context.pages.sign_in(
            local=True,
            provider=self._context.provider_name if by_provider else None,
            provider_href=self._start_href(return_to, switch=switch) if by_provider else "",
            action=f"{PAGES}login",
            csrf=attempt.state,
            return_to=return_to,
            status=status,
            retry_after=retry_after,
            **shown,
        )
        response = as_response(page)
        self._attempts.keep(attempt, page_request, response)
        return response

    def _loop_stopped(self, page_request: PageRequest, return_to: str) -> Response:
        response = self._context.refused(SignInFailed(Problem.SIGN_IN_LOOPS), return_to)
        self._attempts.forget_sign_ins(page_request, response)
        return response

    @staticmethod
    def _start_href(return_to: str, *, switch: bool = False) -> str:
        return f"{PAGES}start?{urlencode({'return_to': return_to, **({'switch': '1'} if switch else {})})}"

    # at the provider --------------------------------------------------------------------------------------

    async def _start(self, page_request: PageRequest, return_to: str, switch: bool) -> Response:  # noqa: FBT001 - from a query
        """Send the browser to the provider, with an attempt of its own."""
        provider = self._wiring.provider
        if provider is None:
            return RedirectResponse(f"{PAGES}login", 303)
        if self._attempts.is_looping(page_request, return_to) and not switch:
            return self._loop_stopped(page_request, return_to)
        attempt = self._attempts.begin(return_to)
        try:
            way = ""
            if switch:
                hint = self._hint(page_request)
                way = await provider.way_to_another_account(has_hint=bool(hint))
                if way == "sign_out":
                    return await self._sign_out_first(provider, page_request, return_to, hint)
            url = await provider.authorization_url(
                state=attempt.state,
                nonce=attempt.nonce,
                code_challenge=pkce_challenge(attempt.verifier),
                redirect_uri=page_request.callback,
                prompt=way,
            )
        except Refusal as refusal:
            return self._context.refused(refusal, return_to)
        response = RedirectResponse(url, 302, _NO_STORE)
        self._attempts.keep(attempt, page_request, response)
        return response

    def _hint(self, page_request: PageRequest) -> str:
        """Return the ID token of whoever is signed in at the provider, as far as it is known and may be used.

        Another site must not sign anybody out: only a link of one of our own pages gets the hint.
        """
        if not page_request.browser.same_origin:
            return ""
        session = self._context.session(page_request)
        return (session.id_token if session is not None else "") or self._attempts.hint(page_request)

    async def _sign_out_first(
        self, provider: RelyingParty, page_request: PageRequest, return_to: str, hint: str
    ) -> Response:
        """End the session here and at the provider, which sends the browser on to sign in."""
        session = self._context.session(page_request)
        if session is not None and not page_request.browser.same_origin:
            return RedirectResponse(f"{PAGES}logout", 303, _NO_STORE)
        back = f"{page_request.request.origin}{PAGES}signed-out"
        url = await provider.logout_url(id_token=hint, return_to=back, state=self._attempts.seal_return(return_to))
        response = RedirectResponse(url or f"{PAGES}logout", 302, _NO_STORE)
        if session is not None and url:
            await self._context.end(session)
            page_request.clear_session(response)
        self._attempts.forget_sign_ins(page_request, response)
        self._attempts.forget_hint(page_request, response)
        return response

    async def _callback(self, page_request: PageRequest, query: dict[str, str]) -> Response:
        """End an attempt of this browser: redeem the code, begin a session, and go where the person wanted to."""
        attempt = self._attempts.find(query.get("state", ""), page_request)
        if attempt is None:
            raise SignInFailed(Problem.SIGN_IN_NOT_BEGUN)
        try:
            session = await self._redeem(page_request, query, attempt)
        except Refusal as refusal:
            response = self._context.refused(refusal, attempt.return_to)
            self._attempts.end(attempt, page_request, response)
            if isinstance(refusal, NotPermitted):
                self._attempts.keep_hint(refusal.id_token, page_request, response)
            return response
        return self._signed_in(page_request, attempt, session, attempt.return_to)

    async def _redeem(self, page_request: PageRequest, query: dict[str, str], attempt: Attempt) -> Session:
        provider, settings = self._wiring.provider, self._context.settings.oidc
        if provider is None or settings is None:
            raise SignInFailed(Problem.PROVIDER_NOT_CONFIGURED)
        if "error" in query or not query.get("code"):
            raise provider_error(query.get("error", ""), query.get("error_description", ""))
        who = await provider.redeem(
            query["code"],
            code_verifier=attempt.verifier,
            nonce=attempt.nonce,
            redirect_uri=page_request.callback,
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

    async def _local(
        self, page_request: PageRequest, pair: Basic, csrf: str, return_to: str, fragment: str
    ) -> Response:
        """Check a password. A form that this browser did not get from here is shown again, and nothing is checked."""
        passwords, username = self._wiring.passwords, pair.username[:MAX_USERNAME]
        if passwords is None or not self._context.settings.local_sign_in:
            raise SignInFailed(Problem.SIGN_IN_NOT_SET_UP_LOCALLY)
        attempt = self._attempts.find(csrf, page_request) if page_request.browser.same_origin else None
        if attempt is None:
            notice = sentence_for_person(Cause(Problem.SIGN_IN_NOT_BEGUN))
            return self._form(page_request, return_to, 400, username=username, notice=notice)
        try:
            session = await self._verify(passwords, pair, page_request.request.client)
        except (Rejected, Throttled) as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            status, retry_after = (429, refusal.retry_after) if isinstance(refusal, Throttled) else (403, 0)
            problem = sentence_for_person(refusal.cause)
            return self._form(page_request, return_to, status, retry_after, username=username, problem=problem)
        return self._signed_in(page_request, attempt, session, with_fragment(return_to, fragment))

    async def _verify(self, passwords: Passwords, pair: Basic, client: str) -> Session:
        mark = passwords.password_mark(pair.username)
        proof = await self._wiring.guard.authenticate_user(pair.username, pair.password, client)
        if mark != passwords.password_mark(pair.username):
            raise Rejected(Problem.PASSWORD_CHANGED)
        return _begun(proof.principal, claims={}, check_at=float("inf"), password_mark=mark)

    def _signed_in(self, page_request: PageRequest, attempt: Attempt, session: Session, return_to: str) -> Response:
        sessions = self._wiring.sessions
        if sessions is None:
            raise SignInFailed(Problem.SIGN_IN_NOT_SET_UP)
        response = RedirectResponse(return_to, 303, _NO_STORE)
        until = session.began + self._wiring.session_policy.lifetime
        page_request.set_session(response, sessions.seal(session), seconds_left(until))
        self._attempts.end(attempt, page_request, response)
        self._attempts.forget_hint(page_request, response)
        self._attempts.count_sign_in(page_request, return_to, response)
        self._wiring.telemetry.signed_in(session, page_request.request.client)
        return response


def _begun(who: SignedIn | Principal, **more: Any) -> Session:
    """Return a session that begins now, of a person whom a provider or a password has proved."""
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
