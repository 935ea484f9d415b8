"""Who one is here, why one was refused, and what pages and the UI fetch from under /_auth/."""

import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.authn.sessions import Opened
from service.core.errors import SessionEnded
from service.core.model import Session
from service.core.prefect.roles import Granted
from service.core.request.redirects import HOME, PAGES
from service.gate.refusals import switch_href
from service.rendering.answers import refusal_content
from service.web.page_context import PageContext, PageRequest, as_response, renewed

_NO_STORE: Final = {"Cache-Control": "no-store"}
# Prefect's own /ui-settings by default: enough for the UI to start, and to show its first refusal
_UI_SETTINGS: Final = {
    "api_url": "/api",
    "csrf_enabled": False,
    "auth": None,
    "flags": [],
    "default_ui": "v2",
    "available_uis": ["v1", "v2"],
    "v1_base_url": "/",
    "v2_base_url": "/v2",
}


class AccountRoutes:
    """The routes for a person who is signed in."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.router = router = APIRouter(include_in_schema=False)
        parsed = Depends(context.parse)

        @router.get("")
        @router.get("/")
        async def home() -> Response:
            return RedirectResponse(f"{PAGES}me", 303, _NO_STORE)

        @router.get("/me")
        async def me(request: Request, page_request: Annotated[PageRequest, parsed]) -> Response:
            return await self._me(page_request, as_json=not request.headers.get("accept", "").startswith("text/html"))

        @router.get("/denied")
        async def denied(page_request: Annotated[PageRequest, parsed]) -> Response:
            return await self._denied(page_request)

        @router.get("/ui-settings")
        async def ui_settings() -> Response:
            return JSONResponse(_UI_SETTINGS, headers=_NO_STORE)

        @router.get("/static/{name}")
        async def static(name: str, v: str = "") -> Response:
            return as_response(context.pages.static(name, v))

    async def _me(self, page_request: PageRequest, *, as_json: bool) -> Response:
        try:
            opened = await self._context.open(page_request)
        except SessionEnded as refusal:
            if as_json:
                return JSONResponse(refusal_content(refusal.code, refusal.cause, ""), 401, _NO_STORE)
            return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
        session, policy = opened.session, self._context.wiring.session_policy
        if as_json:
            response: Response = JSONResponse(
                {
                    "user": session.name,
                    "subject": session.subject,
                    "email": session.email,
                    "groups": list(session.groups),
                    "roles": list(opened.proof.principal.roles),
                    "issuer": session.issuer,
                    "claims": self._claims(session),
                    "began": session.began,
                    "ends": session.began + policy.lifetime,
                    "ends_when_idle": session.seen + policy.idle,
                },
                headers=_NO_STORE,
            )
        else:
            page = self._context.pages.me(
                session,
                opened.proof.principal.roles,
                provider=self._context.provider_name if self._is_of_provider(session) else "",
                claims=self._claims(session),
                ends=session.began + policy.lifetime,
                ends_when_idle=session.seen + policy.idle,
                now=time.time(),
                home_is_open=self._home_is_open(page_request, opened),
                tokens_href=f"{PAGES}tokens" if self._context.has_own_tokens else "",
                no_groups=None if opened.proof.principal.roles else self._context.no_groups(session),
            )
            response = as_response(page)
        return renewed(response, opened, page_request)

    async def _denied(self, page_request: PageRequest) -> Response:
        """Tell people who were refused who they are here, and which roles they have."""
        try:
            opened = await self._context.open(page_request)
        except SessionEnded:
            return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
        page = self._context.pages.no_access(
            opened.session,
            opened.proof.principal.roles,
            switch_href=switch_href(self._context.settings),
            home_is_open=self._home_is_open(page_request, opened),
            no_groups=self._context.no_groups(opened.session),
        )
        response = as_response(page)
        return renewed(response, opened, page_request)

    def _home_is_open(self, page_request: PageRequest, opened: Opened) -> bool:
        """Tell whether this person's roles open the home page, or it would only refuse them again."""
        home = page_request.request._replace(method="GET", path=HOME, query="")
        return isinstance(self._context.wiring.access.judge(home, opened.proof.principal.roles), Granted)

    def _claims(self, session: Session) -> dict[str, str]:
        """Return which claim each part of an identity was taken from."""
        oidc = self._context.settings.oidc
        if oidc is None or not self._is_of_provider(session):
            return {"user": "name in the users file"}
        return {"user": oidc.principal_claim, "email": oidc.email_claim, "groups": oidc.groups_claim}

    def _is_of_provider(self, session: Session) -> bool:
        oidc = self._context.settings.oidc
        return oidc is not None and session.issuer == oidc.issuer
