"""Signing out: here, on all devices, and where the provider says so (OIDC RP-Initiated and Back-Channel Logout 1.0)."""

import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.core.errors import OutOfReach, Problem, Refusal, Rejected
from service.core.model import Session
from service.core.request.redirects import HOME, PAGES
from service.gate.wiring import Wiring
from service.state.revocations import of_provider_session, of_subject
from service.web.attempts import Attempts
from service.web.visits import Desk, Visit

_NO_STORE: Final = {"Cache-Control": "no-store"}


class Logout:
    """The routes that lead out."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.router = router = APIRouter(include_in_schema=False)
        visit = Depends(desk.visit)

        @router.get("/logout")
        async def ask(visit: Annotated[Visit, visit]) -> Response:
            return self._ask(visit)

        @router.post("/logout")
        async def sign_out(
            visit: Annotated[Visit, visit],
            csrf: Annotated[str, Form()] = "",
            everywhere: Annotated[str, Form()] = "",
        ) -> Response:
            return await self._sign_out(visit, csrf, everywhere=bool(everywhere))

        @router.get("/signed-out")
        async def signed_out(everywhere: str = "", still: str = "") -> Response:
            response = desk.pages.signed_out(
                sign_in_href=f"{PAGES}login",
                everywhere=bool(everywhere),
                provider_still=desk.provider_name if still and desk.settings.oidc else None,
            )
            response.headers["clear-site-data"] = '"cache"'
            return response

        @router.post("/backchannel-logout")
        async def back_channel(logout_token: Annotated[str, Form()] = "") -> Response:
            return await self._back_channel(logout_token)

    @property
    def _wiring(self) -> Wiring:
        return self._desk.wiring

    @property
    def _attempts(self) -> Attempts:
        return Attempts(self._wiring.seal)

    def _ask(self, visit: Visit) -> Response:
        session = self._desk.session(visit)
        if session is None:
            return self._signed_out(still=self._wiring.provider is not None)
        return self._desk.pages.confirm_sign_out(
            action=f"{PAGES}logout",
            csrf=self._wiring.seal.seal("sign-out", session.id.encode()),
            who=session.name,
            back_href=HOME,
        )

    async def _sign_out(self, visit: Visit, csrf: str, *, everywhere: bool) -> Response:
        """End the session of this browser, or all of this person's; another session's form asks again."""
        session = self._desk.session(visit)
        if session is None:
            response = self._signed_out(still=self._wiring.provider is not None)
            if visit.browser.same_origin:  # another site's form comes without the cookie, and must not drop it
                visit.clear_session(response)
            return response
        if not visit.browser.same_origin or self._wiring.seal.open("sign-out", csrf) != session.id.encode():
            return self._ask(visit)
        log = self._wiring.revocation_log  # it holds here at once, and on other replicas once the store knows
        await log.end(session)
        if everywhere:
            await log.revoke(of_subject(session.issuer, session.subject, time.time()))
        provider = self._wiring.provider
        leads_to = await self._provider_href(visit, session)
        if provider is not None and session.refresh_token:
            await provider.revoke(session.refresh_token)
        if leads_to:  # by a page: a redirect from our form would be held to our form-action at each hop of theirs
            response = self._desk.pages.redirecting(href=leads_to, provider=self._desk.provider_name)
        else:
            still = provider is not None and session.issuer == provider.trust.issuer
            response = self._signed_out(still=still, everywhere=everywhere)
        visit.clear_session(response)
        self._attempts.forget_rounds(visit, response)
        self._wiring.telemetry.signed_out(session)
        return response

    @staticmethod
    def _signed_out(*, still: bool, everywhere: bool = False) -> Response:
        marks = "&".join(name for name, is_so in (("everywhere=1", everywhere), ("still=1", still)) if is_so)
        return RedirectResponse(f"{PAGES}signed-out" + (f"?{marks}" if marks else ""), 303, _NO_STORE)

    async def _provider_href(self, visit: Visit, session: Session) -> str:
        """Return where the provider ends its own session too, or nothing where it cannot, or is out of reach."""
        provider, settings = self._wiring.provider, self._desk.settings.oidc
        if provider is None or settings is None or not settings.logout or session.issuer != provider.trust.issuer:
            return ""
        try:
            back = f"{visit.request.origin}{PAGES}signed-out"
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
            remembered = notice.until - time.time()
            issuer = provider.trust.issuer
            if not await revocation_log.first_use(f"logout token of {issuer}", notice.token_id, remembered):
                raise Rejected(Problem.LOGOUT_TOKEN_USED)
            if notice.sid:
                await revocation_log.revoke(of_provider_session(issuer, notice.sid, time.time()))
            else:
                await revocation_log.revoke(of_subject(issuer, notice.subject, time.time()))
        except OutOfReach as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            return JSONResponse({"error": "temporarily_unavailable"}, 503, _NO_STORE)
        except Refusal as refusal:
            self._wiring.telemetry.sign_in_refused(refusal, "")
            return JSONResponse({"error": "invalid_request"}, 400, _NO_STORE)
        return Response(status_code=200, headers=_NO_STORE)
