"""Signing out: here, on all devices, and where the provider says so (OIDC RP-Initiated and Back-Channel Logout 1.0)."""

import time
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.core.errors import OutOfReach, Refusal, Rejected
from service.core.identity.sign_in import LogoutNotice
from service.core.model import Session
from service.core.problems import Problem
from service.core.request.redirects import HOME, PAGES
from service.gate.wiring import Wiring
from service.state.revocations import Revocation, of_provider_session, of_subject, of_subject_without_sid
from service.web.attempts import Attempts
from service.web.page_context import PageContext, PageRequest, as_response

_NO_STORE: Final = {"Cache-Control": "no-store"}


class LogoutRoutes:
    """The routes of signing out."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.router = router = APIRouter(include_in_schema=False)
        parsed = Depends(context.parse)

        @router.get("/logout")
        async def ask(page_request: Annotated[PageRequest, parsed]) -> Response:
            return self._ask(page_request)

        @router.post("/logout")
        async def sign_out(
            page_request: Annotated[PageRequest, parsed],
            csrf: Annotated[str, Form()] = "",
            everywhere: Annotated[str, Form()] = "",
        ) -> Response:
            return await self._sign_out(page_request, csrf, everywhere=bool(everywhere))

        @router.get("/signed-out")
        async def signed_out(everywhere: str = "", still: str = "", state: str = "") -> Response:
            return_to = self._attempts.open_return(state)
            if return_to is not None:  # somebody else is to sign in now
                return RedirectResponse(f"{PAGES}start?{urlencode({'return_to': return_to})}", 303, _NO_STORE)
            page = context.pages.signed_out(
                sign_in_href=f"{PAGES}login",
                everywhere=bool(everywhere),
                provider_still=context.provider_name if still and context.settings.oidc else None,
            )
            response = as_response(page)
            response.headers["clear-site-data"] = '"cache"'
            return response

        @router.post("/backchannel-logout")
        async def back_channel(logout_token: Annotated[str, Form()] = "") -> Response:
            return await self._back_channel(logout_token)

    @property
    def _wiring(self) -> Wiring:
        return self._context.wiring

    @property
    def _attempts(self) -> Attempts:
        return Attempts(self._wiring.seal)

    def _ask(self, page_request: PageRequest) -> Response:
        session = self._context.session(page_request)
        if session is None:
            return self._signed_out(still=self._wiring.provider is not None)
        page = self._context.pages.confirm_sign_out(
            action=f"{PAGES}logout",
            csrf=self._wiring.seal.seal("sign-out", session.id.encode()),
            who=session.name,
            back_href=HOME,
        )
        return as_response(page)

    async def _sign_out(self, page_request: PageRequest, csrf: str, *, everywhere: bool) -> Response:
        """End the session of this browser, or all sessions of this person. The form of another session asks again."""
        session = self._context.session(page_request)
        if session is None:
            response = self._signed_out(still=self._wiring.provider is not None)
            # a form of another site comes without the cookie, and must not delete it
            if page_request.browser.same_origin:
                page_request.clear_session(response)
            return response
        if not page_request.browser.same_origin or self._wiring.seal.open("sign-out", csrf) != session.id.encode():
            return self._ask(page_request)
        if everywhere:
            await self._wiring.revocation_log.revoke(of_subject(session.issuer, session.subject, time.time()))
        await self._context.end(session)
        provider = self._wiring.provider
        leads_to = await self._provider_href(page_request, session)
        if leads_to:  # by a page: our form-action would forbid a redirect of our form, at each hop
            page = self._context.pages.redirecting(href=leads_to, provider=self._context.provider_name)
            response = as_response(page)
        else:
            still = provider is not None and session.issuer == provider.trust.issuer
            response = self._signed_out(still=still, everywhere=everywhere)
        page_request.clear_session(response)
        self._attempts.forget_sign_ins(page_request, response)
        return response

    @staticmethod
    def _signed_out(*, still: bool, everywhere: bool = False) -> Response:
        marks = "&".join(name for name, is_so in (("everywhere=1", everywhere), ("still=1", still)) if is_so)
        return RedirectResponse(f"{PAGES}signed-out" + (f"?{marks}" if marks else ""), 303, _NO_STORE)

    async def _provider_href(self, page_request: PageRequest, session: Session) -> str:
        """Return where the provider ends its own session, or an empty text if it cannot or is out of reach."""
        provider, settings = self._wiring.provider, self._context.settings.oidc
        if provider is None or settings is None or not settings.logout or session.issuer != provider.trust.issuer:
            return ""
        try:
            back = f"{page_request.request.origin}{PAGES}signed-out"
            return await provider.logout_url(id_token=session.id_token, return_to=back) or ""
        except Refusal:
            return ""

    async def _back_channel(self, logout_token: str) -> Response:
        """End the sessions that a provider names in a logout token (OIDC Back-Channel Logout §2.5 to §2.8)."""
        provider, revocation_log = self._wiring.provider, self._wiring.revocation_log
        try:
            if provider is None:
                raise Rejected(Problem.PROVIDER_NOT_CONFIGURED)
            notice = await provider.verify_logout_token(logout_token.encode("ascii", "replace"), time.time())
            issuer, now = provider.trust.issuer, time.time()
            if not await revocation_log.first_use(f"logout token of {issuer}", notice.token_id, notice.until - now):
                raise Rejected(Problem.LOGOUT_TOKEN_USED)
            await revocation_log.revoke(*_ended_by(notice, issuer, now))
            self._wiring.telemetry.signed_out_by_provider(issuer, notice.subject, notice.sid)
        except OutOfReach as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            return JSONResponse({"error": "temporarily_unavailable"}, 503, _NO_STORE)
        except Refusal as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            return JSONResponse({"error": "invalid_request"}, 400, _NO_STORE)
        return Response(status_code=200, headers=_NO_STORE)


def _ended_by(notice: LogoutNotice, issuer: str, now: float) -> list[Revocation]:
    """Return what a logout token revokes (OIDC Back-Channel Logout §2.7).

    With ``sub`` and ``sid``, the person's sessions that are known to be of another provider session stay.
    """
    if not notice.sid:
        return [of_subject(issuer, notice.subject, now)]
    ended = [of_provider_session(issuer, notice.sid, now)]
    return [*ended, of_subject_without_sid(issuer, notice.subject, now)] if notice.subject else ended
