"""The sessions of a person by device, each to be ended."""

import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form
from starlette.responses import RedirectResponse, Response

from service.authn.sessions import Opened
from service.core.errors import SessionEnded
from service.core.identity.sessions import ends_at
from service.core.model import Session
from service.core.request.redirects import PAGES
from service.rendering.pages import OwnSession
from service.state.sightings import Sighting
from service.web.page_context import PageContext, PageRequest, as_response, renewed

PATH: Final = f"{PAGES}sessions"
MAX_FIELD: Final = 1_024  # characters of a form's field
_NO_STORE: Final = {"Cache-Control": "no-store"}
_FORM_NOT_VALID: Final = "This form is not valid any more. Nothing was changed: send it again."
_TOLD: Final = {"one": "That session has ended.", "others": "Your other sessions have ended."}


class OwnSessionRoutes:
    """The routes of one's own sessions."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.router = router = APIRouter(include_in_schema=False)
        parsed = Depends(context.parse)

        @router.get("/sessions")
        async def show(page_request: Annotated[PageRequest, parsed], ended: str = "") -> Response:
            try:
                opened = await context.open(page_request)
            except SessionEnded:
                return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
            return renewed(await self._page(opened, notice=_TOLD.get(ended, "")), opened, page_request)

        @router.post("/sessions")
        async def end(
            page_request: Annotated[PageRequest, parsed],
            session: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            others: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            csrf: Annotated[str, Form(max_length=MAX_FIELD)] = "",
        ) -> Response:
            try:
                opened = await context.open(page_request)
            except SessionEnded:
                return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
            answer = await self._end(page_request, opened, session, csrf, others=bool(others))
            return renewed(answer, opened, page_request)

    async def _page(self, opened: Opened, *, notice: str = "", problem: str = "", status: int = 200) -> Response:
        now, wiring = time.time(), self._context.wiring
        page = self._context.pages.sessions(
            [
                OwnSession(one.id, device, address, one.began, one.seen, is_this=one.id == opened.session.id)
                for one, device, address in await self._sessions(opened.session)
            ],
            action=PATH,
            csrf=wiring.seal.seal("sessions", opened.session.id.encode()),
            now=now,
            shared=wiring.shared_sightings is not None,
            notice=notice,
            problem=problem,
            status=status,
        )
        return as_response(page)

    async def _sessions(self, own: Session) -> list[tuple[Session, str, str]]:
        """Return this person's sessions that were seen and have not ended, the latest first, with device and address.

        Of the other sessions only what names them is known.
        """
        wiring, person, now = self._context.wiring, (own.issuer, own.subject), time.time()
        shared = wiring.shared_sightings
        seen = wiring.state.sightings.of(person) if shared is None else await shared.of(person)
        policy, revocations = wiring.session_policy, wiring.revocation_log.revocations
        found = [(_known(own, one), one.device, one.address) for one in reversed(seen)]
        return [
            one for one in found if now < ends_at(one[0], policy) + policy.touch and not revocations.revoked(one[0])
        ]

    async def _end(
        self, page_request: PageRequest, opened: Opened, session_id: str, csrf: str, *, others: bool
    ) -> Response:
        own, wiring = opened.session, self._context.wiring
        if not page_request.browser.same_origin or wiring.seal.open("sessions", csrf) != own.id.encode():
            return await self._page(opened, status=400, problem=_FORM_NOT_VALID)
        if session_id == own.id:
            return RedirectResponse(f"{PAGES}logout", 303, _NO_STORE)
        for one, _, _ in reversed(await self._sessions(own)):  # whoever names another person's session names none
            if one.id != own.id and (others or one.id == session_id):
                await wiring.revocation_log.end(one)
                wiring.telemetry.signed_out(one, by=own)
        return RedirectResponse(f"{PATH}?ended={'others' if others else 'one'}", 303, _NO_STORE)


def _known(own: Session, sighting: Sighting) -> Session:
    """Return what is known of a session of the same person: what tells whether it has ended, and how to end it."""
    return own._replace(
        id=sighting.session,
        began=sighting.began,
        seen=sighting.seen,
        provider_sid=sighting.provider_sid,
        refresh_token="",
        id_token="",
        password_mark="",
    )
