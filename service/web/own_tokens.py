"""The tokens that people issue for themselves: list, issue, revoke.

A token is in the answer to the form that asked for it, and nowhere else: in no address and no cookie. Each form works
once, so an answer that is loaded again issues nothing.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, Form, Request
from httpx import codes
from starlette.responses import RedirectResponse, Response

from service.authn.sessions import Opened
from service.core.errors import NotFound, OutOfReach, SessionEnded
from service.core.identity.claims import MAX_TEXT
from service.core.model import Session
from service.core.names import is_visible_name
from service.core.problems import Problem
from service.core.request.redirects import PAGES
from service.issuing.configured import ledger_of
from service.issuing.database import LedgerError
from service.issuing.ledger import (
    MAX_OWNED,
    MAX_OWNED_A_DAY,
    Ledger,
    Token,
    TooManyTokensError,
    owner_of,
)
from service.rendering.pages import OwnToken
from service.settings.tokens import TokensSettings
from service.web.page_context import PageContext, PageRequest, as_response, renewed

log = logging.getLogger(__name__)

PATH: Final = f"{PAGES}tokens"
MAX_NAME: Final = 60  # characters
MAX_FIELD: Final = 1_024  # characters of a form's field
MAX_WAITING: Final = 16  # calls that wait for the ledger
DAY: Final = 86_400
_LIFETIMES: Final = tuple(days * DAY for days in (1, 7, 30, 90, 365))
_DEFAULT_LIFETIME: Final = 30 * DAY
_NO_STORE: Final = {"Cache-Control": "no-store"}
_WRONG_NAME: Final = (
    f"A name has 1 to {MAX_NAME} visible characters, no slash, and no space at its ends, such as laptop."
)
_WRONG_ROLE: Final = "Choose a role that is offered here: a token has none above your own."
_WRONG_LIFETIME: Final = "Choose one of the times that are offered here."
_FORM_NOT_VALID: Final = "This form is not valid any more. Nothing was changed: send it again."
_FORM_USED: Final = (
    "This form was sent before, so nothing more was issued. If you did not see your token, revoke it and issue another."
)
_TOO_MANY: Final = (
    f"You can have {MAX_OWNED} valid tokens, and issue {MAX_OWNED_A_DAY} a day: revoke those that you do not use."
)
Result = TypeVar("Result")


class OwnTokenRoutes:
    """The routes of the tokens that people issue for themselves."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self._one_at_a_time, self._waiting = asyncio.Lock(), 0
        self.router = router = APIRouter(include_in_schema=False)
        parsed = Depends(context.parse)

        @router.get("/tokens")
        async def show(request: Request, page_request: Annotated[PageRequest, parsed], revoked: str = "") -> Response:
            notice = "The token is revoked." if revoked else ""
            return await self._signed_in(request, page_request, lambda opened: self._page(opened, notice=notice))

        @router.post("/tokens")
        async def issue(
            request: Request,
            page_request: Annotated[PageRequest, parsed],
            name: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            role: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            lifetime: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            csrf: Annotated[str, Form(max_length=MAX_FIELD)] = "",
        ) -> Response:
            return await self._signed_in(
                request, page_request, lambda opened: self._issue(page_request, opened, name, role, lifetime, csrf)
            )

        @router.post("/tokens/revoke")
        async def revoke(
            request: Request,
            page_request: Annotated[PageRequest, parsed],
            token: Annotated[str, Form(max_length=MAX_FIELD)] = "",
            csrf: Annotated[str, Form(max_length=MAX_FIELD)] = "",
        ) -> Response:
            return await self._signed_in(
                request, page_request, lambda opened: self._revoke(page_request, opened, token, csrf)
            )

    @property
    def _settings(self) -> TokensSettings:
        settings = self._context.settings.tokens
        if settings is None or not settings.people:
            raise NotFound(Problem.NOT_FOUND)
        return settings

    async def _signed_in(
        self, request: Request, page_request: PageRequest, answer: Callable[[Opened], Awaitable[Response]]
    ) -> Response:
        """Return the answer to whoever is signed in; everybody else is to sign in first."""
        if not self._context.has_own_tokens:
            return self._context.answered(request, NotFound(Problem.NOT_FOUND))
        try:
            opened = await self._context.open(page_request)
        except SessionEnded:
            return RedirectResponse(f"{PAGES}login", 303, _NO_STORE)
        return renewed(await answer(opened), opened, page_request)

    async def _page(
        self,
        opened: Opened,
        *,
        status: int = 200,
        notice: str = "",
        problem: str = "",
        name: str = "",
        issued: tuple[str, Token] | None = None,
    ) -> Response:
        owner = _owner(opened.session)
        tokens = await self._with_ledger(lambda ledger: ledger.tokens_of(owner))
        lifetimes = self._lifetimes()
        page = self._context.pages.tokens(
            [OwnToken(one.id, _label(one), one.role, one.created, one.expires, one.used) for one in tokens],
            action=PATH,
            csrf=self._csrf(opened.session),
            roles=self._roles(opened),
            lifetimes=lifetimes,
            lifetime=max((one for one in lifetimes if one <= _DEFAULT_LIFETIME), default=lifetimes[0]),
            now=time.time(),
            name=name,
            notice=notice,
            problem=problem,
            issued=(_label(issued[1]), issued[0]) if issued is not None else None,
            status=status,
        )
        return as_response(page)

    async def _issue(
        self, page_request: PageRequest, opened: Opened, name: str, role: str, lifetime: str, csrf: str
    ) -> Response:
        session, settings = opened.session, self._settings
        form = self._form_of(page_request, session, csrf)
        full_name = f"{session.name}/{name}"
        problem = ""
        if form is None:
            problem = _FORM_NOT_VALID
        elif "/" in name or len(name) > MAX_NAME or len(full_name) > MAX_TEXT or not is_visible_name(name):
            problem = _WRONG_NAME
        elif role not in self._roles(opened):
            problem = _WRONG_ROLE
        elif lifetime not in map(str, self._lifetimes()):
            problem = _WRONG_LIFETIME
        if form is None or problem:
            return await self._page(opened, status=codes.BAD_REQUEST, problem=problem, name=name[:MAX_NAME])
        wiring = self._context.wiring
        if not await wiring.revocation_log.first_use("form for a token", form, wiring.session_policy.lifetime):
            return await self._page(opened, status=codes.CONFLICT, problem=_FORM_USED)
        try:
            issued = await self._with_ledger(
                lambda ledger: ledger.issue(
                    full_name, role, int(lifetime), settings.issuer, settings.audience, owner=_owner(session)
                )
            )
        except TooManyTokensError:
            return await self._page(opened, status=codes.TOO_MANY_REQUESTS, problem=_TOO_MANY, name=name)
        wiring.telemetry.own_token("issued", session, issued[1].id, role, page_request.request.client)
        await self._take_effect()
        return await self._page(opened, issued=issued)

    async def _revoke(self, page_request: PageRequest, opened: Opened, token_id: str, csrf: str) -> Response:
        session = opened.session
        if self._form_of(page_request, session, csrf) is None:
            return await self._page(opened, status=codes.BAD_REQUEST, problem=_FORM_NOT_VALID)
        owner = _owner(session)
        for one in await self._with_ledger(lambda ledger: ledger.revoke_owned(owner, token_id)) if token_id else ():
            self._context.wiring.telemetry.own_token("revoked", session, one.id, one.role, page_request.request.client)
        await self._take_effect()
        return RedirectResponse(f"{PATH}?revoked=1", 303, _NO_STORE)

    # what is offered --------------------------------------------------------------------------------------

    def _roles(self, opened: Opened) -> list[str]:
        """Return the roles that a person may give to a token: none above the person's own, the least first."""
        roles, access = opened.proof.principal.roles, self._context.wiring.access
        if self._settings.people.isdisjoint(roles):
            return []
        return [name for name in access.by_power if access.covers(roles, name)]

    def _lifetimes(self) -> list[int]:
        longest = self._settings.max_lifetime
        return [one for one in _LIFETIMES if one <= longest] or [longest]

    # forms ------------------------------------------------------------------------------------------------

    def _csrf(self, session: Session) -> str:
        return self._context.wiring.seal.seal("tokens", f"{session.id} {secrets.token_hex(8)}".encode())

    def _form_of(self, page_request: PageRequest, session: Session, csrf: str) -> str | None:
        """Return what names a form that this session got from here, or None for any other."""
        opened = self._context.wiring.seal.open("tokens", csrf) if page_request.browser.same_origin else None
        session_id, _, form = (opened or b"").decode().partition(" ")
        return form if form and session_id == session.id else None

    # the ledger -------------------------------------------------------------------------------------------

    async def _with_ledger(self, work: Callable[[Ledger], Result]) -> Result:
        """Return what ``work`` does with a ledger of its own, as a command has. Raises OutOfReach."""
        ledger = ledger_of(self._context.settings)
        if ledger is None or self._waiting >= MAX_WAITING:
            raise OutOfReach(Problem.TOKENS_OUT_OF_REACH, because="too many people wait for it")

        def work_done() -> Result:
            with ledger:
                return work(ledger)

        self._waiting += 1
        try:
            async with self._one_at_a_time:  # whoever holds the ledger for long holds one of our threads, not all
                return await asyncio.to_thread(work_done)
        except TooManyTokensError:
            raise
        except LedgerError as problem:
            log.warning("tokens: %s", problem)
            raise OutOfReach(Problem.TOKENS_OUT_OF_REACH, because=str(problem)) from None
        finally:
            self._waiting -= 1

    async def _take_effect(self) -> None:
        """Let this process know what has changed before it answers; the others look each second."""
        own_issuer = self._context.wiring.own_issuer
        if own_issuer is not None:
            await own_issuer.issued.look()


def _owner(session: Session) -> str:
    return owner_of(session.issuer, session.subject)


def _label(token: Token) -> str:
    """Return a token's name as its owner chose it: what stands before the slash is the owner's own."""
    return token.name.rpartition("/")[2]
