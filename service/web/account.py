"""Who am I? And the small things that pages and the UI's shell fetch from under /_auth/."""

import time
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.authn.sessions import Opened
from service.core.errors import SessionEnded
from service.core.model import Session, SessionCookie
from service.core.request.cookies import session_of
from service.core.request.redirects import HOME, PAGES
from service.rendering.pages import Moment
from service.web.visits import Desk, Visit, seconds_left

_NO_STORE: Final = {"Cache-Control": "no-store"}
# what Prefect's own /ui-settings says by default: enough for the UI's shell to stand and show its first refusal
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


_NO_ROLE: Final = "You are signed in, and have no role here: without one, nothing of Prefect is shown."
_BEYOND_ROLES: Final = "You are signed in, and what you asked for takes more than your roles."


class Account:
    """The routes that tell."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.router = router = APIRouter(include_in_schema=False)
        visit = Depends(desk.visit)

        @router.get("/me")
        async def me(request: Request, visit: Annotated[Visit, visit]) -> Response:
            return await self._me(visit, as_json=not request.headers.get("accept", "").startswith("text/html"))

        @router.get("/denied")
        async def denied(visit: Annotated[Visit, visit]) -> Response:
            return await self._denied(visit)

        @router.get("/ui-settings")
        async def ui_settings() -> Response:
            return JSONResponse(_UI_SETTINGS, headers=_NO_STORE)

        @router.get("/static/{name}")
        async def static(name: str, v: str = "") -> Response:
            return desk.pages.static(name, v)

    async def _me(self, visit: Visit, *, as_json: bool) -> Response:
        try:
            opened = await self._open(visit)
        except SessionEnded as refusal:
            if as_json:
                return JSONResponse({"detail": refusal.detail, "code": refusal.code, "request_id": ""}, 401, _NO_STORE)
            return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
        session, policy = opened.session, self._desk.wiring.session_policy
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
            response = self._desk.pages.me(
                who=self._rows(session, opened.proof.principal.roles), sign_out_href=f"{PAGES}logout", home_href=HOME
            )
        return _renewed(response, opened, visit)

    async def _denied(self, visit: Visit) -> Response:
        """Tell people who were refused who they are here, and what they have: whoever helps them asks for that."""
        try:
            opened = await self._open(visit)
        except SessionEnded:
            return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
        session, roles = opened.session, opened.proof.principal.roles
        response = self._desk.pages.denied(
            who={
                "name": session.name,
                "subject": session.subject if session.subject != session.name else "",
                "email": session.email,
                "issuer": session.issuer,
                "roles": roles,
                "groups": session.groups,
            },
            needed=_BEYOND_ROLES if roles else _NO_ROLE,
            have="" if roles else "no role",
            request_id="",
            switch_href=self._desk.switch_href,
            back_href=HOME,
        )
        return _renewed(response, opened, visit)

    async def _open(self, visit: Visit) -> Opened:
        cookie = session_of(visit.cookies)
        if not isinstance(cookie, SessionCookie) or self._desk.wiring.sessions is None:
            raise SessionEnded("You are not signed in.", reason="no session")
        return await self._desk.wiring.sessions.open(cookie)

    def _claims(self, session: Session) -> dict[str, str]:
        """Return which claim each part of an identity was taken from."""
        oidc = self._desk.settings.oidc
        if oidc is None or session.issuer != oidc.issuer:
            return {"user": "name in the users file"}
        return {"user": oidc.principal_claim, "email": oidc.email_claim, "groups": oidc.groups_claim}

    def _rows(self, session: Session, roles: Sequence[str]) -> list[tuple[str, str | Sequence[str] | Moment]]:
        claims, now = self._claims(session), time.time()
        from_claims = [f"{what}: {claim}" for what, claim in claims.items() if claim]
        rows: list[tuple[str, str | Sequence[str] | Moment]] = [
            ("Name", session.name),
            ("Subject", session.subject if session.subject != session.name else ""),
            ("E-mail", session.email),
            ("Signed in through", self._desk.provider_name if "email" in claims else "the users file"),
            ("Issuer", session.issuer if "email" in claims else ""),
            ("Groups", session.groups),
            ("Roles", roles),
            ("Taken from", from_claims if "email" in claims else ""),
            ("Signed in", Moment(session.began, now)),
            ("Ends", Moment(session.began + self._desk.wiring.session_policy.lifetime, now)),
            ("Ends when idle", Moment(session.seen + self._desk.wiring.session_policy.idle, now)),
        ]
        return [(label, value) for label, value in rows if value]


def _renewed(response: Response, opened: Opened, visit: Visit) -> Response:
    """Return the response with the session, where it was sealed anew: a refresh token may have been spent on it."""
    if opened.sealed is not None:
        visit.set_session(response, opened.sealed, seconds_left(opened.proof.principal.expires))
    return response
