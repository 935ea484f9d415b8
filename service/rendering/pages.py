"""The pages that people see: each says what happened, and what to do next.

A page works without JavaScript, loads nothing from other sites, cannot be framed and is not cached. Everything that it
shows is escaped. If a link is not a plain address of a page, an error page is shown instead.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from service.core.errors import Code, Later, Refusal
from service.core.model import Session
from service.core.problems import Cause, Problem
from service.core.request.redirects import HOME, PAGES
from service.rendering.cures import Cure, Link, Ways, checks_of, cure_of, heading_of, ways_of
from service.rendering.refusal_page import GAPS, RefusalPage, wait_sentence
from service.rendering.sentences import duration, sentence_for_person
from service.rendering.templating import Templates
from service.rendering.wire import Answer

UNNAMED_PROVIDER: Final = "single sign-on"  # what the pages call a provider without a name
_ASK: Final = frozenset({Cure.ASK_FOR_ROLE, Cure.OTHER_ACCOUNT, Cure.NOTHING})  # somebody else has to help


class Moment(NamedTuple):
    """A time as a page shows it: ``at``, seen from ``now``, both in seconds since the epoch."""

    at: float
    now: float

    @property
    def iso(self) -> str:
        """Return the value of a time element's datetime attribute."""
        return f"{datetime.fromtimestamp(self.at, UTC):%Y-%m-%dT%H:%M:%SZ}"

    @property
    def absolute(self) -> str:
        """Return date and time in UTC."""
        when = datetime.fromtimestamp(self.at, UTC)
        return f"{when.day} {when:%B %Y, %H:%M} UTC"

    @property
    def relative(self) -> str:
        """Return how far it is from now."""
        length = duration(abs(self.at - self.now))
        return f"in {length}" if self.at > self.now else f"{length} ago"


class OwnToken(NamedTuple):
    """A token as its owner sees it. Times are in seconds since the epoch."""

    id: str
    name: str
    role: str
    created: int
    expires: int
    used: int | None


class OwnSession(NamedTuple):
    """A session as its person sees it. Times are in seconds since the epoch."""

    id: str
    device: str
    address: str
    began: float
    seen: float
    is_this: bool


class Pages:
    """The pages, with one title, and the static files that they refer to.

    ``help`` says whom to ask, and is shown with each refusal. ``allow_http`` permits links to plain http beyond this
    machine, for a provider that is configured so.
    """

    def __init__(self, title: str, help: str = "", *, allow_http: bool = False) -> None:  # noqa: A002 - its setting's name
        self._title = title
        self._templates = Templates(title, help, allow_http=allow_http)
        self._page = self._templates.page
        self.static = self._templates.static

    # signing in and out -----------------------------------------------------------------------------------

    def sign_in(  # noqa: PLR0913 - all that a sign-in page can say
        self,
        *,
        local: bool,
        provider: str | None,
        provider_href: str = "",
        action: str = "",
        csrf: str = "",
        return_to: str = "/",
        username: str = "",
        problem: str = "",
        notice: str = "",
        status: int = 200,
        retry_after: int = 0,
    ) -> Answer:
        """Return the form for local users, the button that leads to the provider, or both."""
        return self._page(
            "sign_in.html",
            status,
            links={"action": action, "provider_href": provider_href},
            retry_after=retry_after,
            local=local,
            provider=provider,
            csrf=csrf,
            return_to=return_to,
            username=username,
            problem=problem,
            notice=notice,
        )

    def redirecting(self, *, href: str, provider: str) -> Answer:
        """Return a page that goes on to ``href`` at once, with the address's fragment if ``href`` is of this host.

        After a form it replaces a redirect to another origin, which the page's form-action would forbid.
        """
        return self._page("redirecting.html", 200, links={"href": href}, provider=provider)

    def signed_out(self, *, sign_in_href: str, everywhere: bool = False, provider_still: str | None = None) -> Answer:
        """Return the page after sign-out; ``provider_still`` names a provider that may still have a session."""
        return self._page(
            "signed_out.html",
            200,
            links={"sign_in_href": sign_in_href},
            everywhere=everywhere,
            provider_still=provider_still,
        )

    def confirm_sign_out(
        self,
        *,
        action: str,
        csrf: str,
        who: str,
        back_href: str = "/",
        everywhere: bool = True,
        provider_origin: str = "",
    ) -> Answer:
        """Return the question before sign-out; ``everywhere`` offers all devices.

        ``provider_origin`` is where the form may lead after this host.
        """
        return self._page(
            "confirm_sign_out.html",
            200,
            links={"action": action, "back_href": back_href},
            form_origin=provider_origin,
            csrf=csrf,
            who=who,
            everywhere=everywhere,
        )

    # signed in ----------------------------------------------------------------------------------------------

    def me(  # noqa: PLR0913 - all that one can be told
        self,
        session: Session,
        roles: Sequence[str],
        *,
        provider: str,
        claims: Mapping[str, str],
        ends: float,
        ends_when_idle: float,
        now: float,
        home_is_open: bool = True,
        tokens_href: str = "",
        no_groups: Cause | None = None,
    ) -> Answer:
        """Return who one is here.

        ``provider`` is the name of the provider of this session, empty for a user of the users file; ``claims`` tells
        from which claim each part was taken. Times are in seconds since the epoch. ``home_is_open`` tells whether the
        roles open the home page. ``tokens_href`` leads to the tokens of one's own, if there can be any. ``no_groups``
        is said to somebody who has no groups although groups give roles.
        """
        rows: list[tuple[str, str | Sequence[str] | Moment]] = [
            ("Name", session.name),
            ("Subject", _if_other(session.subject, session.name)),
            ("E-mail", session.email),
            ("Signed in through", provider or "the users file"),
            ("Issuer", session.issuer if provider else ""),
            ("Groups", session.groups),
            ("Roles", roles),
            ("Taken from", [f"{what}: {claim}" for what, claim in claims.items() if claim] if provider else ""),
            ("Signed in", Moment(session.began, now)),
            ("Ends", Moment(ends, now)),
            ("Ends when idle", Moment(ends_when_idle, now)),
        ]
        return self._page(
            "me.html",
            200,
            links={
                "sign_out_href": f"{PAGES}logout",
                "sessions_href": f"{PAGES}sessions",
                "tokens_href": tokens_href,
            },
            who=[row for row in rows if row[1]],
            no_groups=sentence_for_person(no_groups) if no_groups else "",
            way=Link(f"Open {self._title}", HOME) if home_is_open else Link("Whom can I ask?", f"{PAGES}denied"),
        )

    def tokens(  # noqa: PLR0913 - all that the page can say
        self,
        tokens: Sequence[OwnToken],
        *,
        action: str,
        csrf: str,
        roles: Sequence[str],
        lifetimes: Sequence[int],
        lifetime: int,
        now: float,
        name: str = "",
        notice: str = "",
        problem: str = "",
        issued: tuple[str, str] | None = None,
        status: int = 200,
    ) -> Answer:
        """Return one's own tokens, and the form that issues another with one of ``roles``, if there are any.

        ``issued`` is the name of a new token and the token itself, which no other page shows. ``lifetimes`` are in
        seconds, and ``lifetime`` is the one that is chosen at first.
        """
        rows = [
            {
                "id": one.id,
                "name": one.name,
                "role": one.role,
                "created": Moment(one.created, now),
                "expires": Moment(one.expires, now),
                "used": Moment(one.used, now) if one.used is not None else None,
            }
            for one in tokens
        ]
        return self._page(
            "tokens.html",
            status,
            links={"action": action, "back_href": f"{PAGES}me", "sessions_href": f"{PAGES}sessions"},
            csrf=csrf,
            tokens=rows,
            roles=roles,
            lifetimes=lifetimes,
            lifetime=lifetime,
            name=name,
            notice=notice,
            problem=problem,
            issued=issued,
        )

    def sessions(
        self,
        sessions: Sequence[OwnSession],
        *,
        action: str,
        csrf: str,
        now: float,
        shared: bool,
        notice: str = "",
        problem: str = "",
        status: int = 200,
    ) -> Answer:
        """Return one's own sessions by device; ``shared`` tells whether other replicas' are among them."""
        rows = [{**one._asdict(), "began": Moment(one.began, now), "seen": Moment(one.seen, now)} for one in sessions]
        return self._page(
            "sessions.html",
            status,
            links={"action": action, "back_href": f"{PAGES}me", "sign_out_href": f"{PAGES}logout"},
            csrf=csrf,
            sessions=rows,
            others=any(not one.is_this for one in sessions),
            shared=shared,
            notice=notice,
            problem=problem,
        )

    # refused ------------------------------------------------------------------------------------------------

    def no_access(
        self,
        session: Session,
        roles: Sequence[str],
        *,
        switch_href: str,
        home_is_open: bool = False,
        no_groups: Cause | None = None,
    ) -> Answer:
        """Return who one is here, and whom to ask for more: whoever helps a person who was refused needs that.

        ``no_groups`` is as with ``me``.
        """
        who = {
            "name": session.name,
            "subject": _if_other(session.subject, session.name),
            "email": session.email,
            "issuer": session.issuer,
            "roles": roles,
            "groups": session.groups,
        }
        cause = Cause(Problem.ROLES_NOT_ENOUGH if roles else Problem.NO_ROLE)
        home = Link(f"Open {self._title}", HOME) if home_is_open else None
        ways = Ways(Link("Use another account", switch_href), home)
        more = sentence_for_person(no_groups) if no_groups else ""
        return self._denied(who, cause, ways, {"switch_href": switch_href}, have="" if roles else "no role", more=more)

    def denied(
        self,
        who: Mapping[str, str | Sequence[str]],
        cause: Cause,
        *,
        again_href: str,
        switch_href: str,
        request_id: str = "",
    ) -> Answer:
        """Return a 403 for somebody who may not enter: who they are (name, subject), and why.

        ``again_href`` and ``switch_href`` are as with ``refused``.
        """
        hrefs = {"retry_href": again_href, "sign_in_href": again_href, "switch_href": switch_href}
        ways = ways_of(cure_of(Code.INSUFFICIENT_SCOPE, cause), title=self._title, **hrefs)
        return self._denied(who, cause, ways, hrefs, request_id=request_id)

    def _denied(
        self,
        who: Mapping[str, str | Sequence[str]],
        cause: Cause,
        ways: Ways,
        links: dict[str, str],
        *,
        have: str = "",
        more: str = "",
        request_id: str = "",
    ) -> Answer:
        return self._page(
            "denied.html",
            403,
            links=links,
            ways=ways,
            who=who,
            needed=sentence_for_person(cause),
            have=have,
            more=more,
            request_id=request_id,
        )

    def refused(
        self, refusal: Refusal, *, request_id: str, again_href: str, switch_href: str, status: int = 0
    ) -> Answer:
        """Return a refusal on a page under /_auth/: what happened, and the way on.

        ``again_href`` is where one tries again, which is to sign in; ``switch_href`` where one does as somebody else.
        ``status`` replaces that of the refusal.
        """
        cause = refusal.cause
        hrefs = {"retry_href": again_href, "sign_in_href": again_href, "switch_href": switch_href}
        retry_after = refusal.retry_after if isinstance(refusal, Later) else 0
        content = {
            "heading": heading_of(refusal.code, cause),
            "detail": sentence_for_person(cause),
            "wait": wait_sentence(retry_after),
            "request_id": request_id,
            "code": refusal.code,
        }
        cure, checks = cure_of(refusal.code, cause), checks_of(cause)
        return self._refused(status or refusal.status, cure, hrefs, content, checks=checks, retry_after=retry_after)

    def refusal_page(self, *, switch_href: str) -> RefusalPage:
        """Return the page for refusals at the gate, rendered once for each cure; what differs is filled in later."""
        mark = secrets.token_hex(16)
        gaps = {gap: f"{mark}{gap}{mark}" for gap in GAPS}
        hrefs = {"retry_href": "", "sign_in_href": f"{PAGES}login", "switch_href": switch_href}
        pages = {
            cure: self._refused(403, cure, hrefs, gaps if cure is Cure.RETRY else {**gaps, "wait": ""}) for cure in Cure
        }
        headers = [one for one in pages[Cure.RETRY].headers if one[0] != b"content-length"]
        return RefusalPage({cure: page.body.decode().split(mark) for cure, page in pages.items()}, headers)

    def _refused(
        self,
        status: int,
        cure: Cure,
        hrefs: dict[str, str],
        content: Mapping[str, str],
        *,
        checks: Sequence[str] = (),
        retry_after: int = 0,
    ) -> Answer:
        return self._page(
            "error.html",
            status,
            links=hrefs,
            retry_after=retry_after,
            ways=ways_of(cure, title=self._title, **hrefs),
            asks=cure in _ASK,
            checks=checks,
            **content,
        )


@lru_cache(maxsize=4)
def pages_of(title: str, help: str, *, allow_http: bool) -> Pages:  # noqa: A002 - its setting's name
    """Return the pages of a configuration; those of the last ones are kept, since making them takes a while."""
    return Pages(title, help, allow_http=allow_http)


def _if_other(subject: str, name: str) -> str:
    """Return a subject, or an empty text if it is the name, which is shown already."""
    return subject if subject != name else ""
