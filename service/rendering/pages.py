"""What people see under /_auth/: each page says what happened, and what to do next.

A page works without JavaScript, loads nothing from elsewhere, is framed by nobody and kept by no cache. Whatever it
shows is escaped, and a link that leads to anything but a page turns the whole page into an error.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

log = logging.getLogger(__name__)

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # under "no-referrer", browsers send our own forms with "Origin: null"
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'{}; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ORIGIN: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_LINK: Final = re.compile(r"(/(?!/)|https://|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?/)[^\x00-\x20\x7f\\]*")
_LINK_OVER_HTTP: Final = re.compile(r"(/(?!/)|https?://)[^\x00-\x20\x7f\\]*")
_UNITS: Final = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


class Moment(NamedTuple):
    """A time as a person is told it: ``at``, seen from ``now``, both in seconds since the epoch."""

    at: float
    now: float

    @property
    def iso(self) -> str:
        """Return it as the datetime attribute of a time element."""
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


def duration(seconds: float) -> str:
    """Return a length of time in the largest unit that fits."""
    unit, size = next((one for one in _UNITS if seconds >= one[1]), _UNITS[-1])
    count = max(1, round(seconds / size))
    return f"{count} {unit}{'s' if count > 1 else ''}"


class Pages:
    """The pages under one title, and the files they refer to.

    ``help`` says whom to ask, and is shown with each refusal. ``allow_http`` permits links to plain http beyond this
    machine, for a provider that is configured so.
    """

    def __init__(self, title: str, help: str = "", *, allow_http: bool = False) -> None:  # noqa: A002 - its setting's name
        self._link = _LINK_OVER_HTTP if allow_http else _LINK
        self._static = {
            one.name: _Static.of(one.name, one.read_bytes())
            for one in (resources.files("service.rendering") / "static").iterdir()
        }
        environment = Environment(
            loader=PackageLoader("service.rendering"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals |= {"title": title, "help": help, "static": self._static_href}
        environment.filters["duration"] = duration
        self._templates = {one: environment.get_template(one) for one in environment.list_templates(["html"])}

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
    ) -> HTMLResponse:
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

    def redirecting(self, *, href: str, provider: str) -> HTMLResponse:
        """Return a page that leads on at once, with the fragment of the address where ``href`` is a path of ours.

        It also leads from our form to another origin, where a redirect would be held to our form-action at each hop.
        """
        return self._page("redirecting.html", 200, links={"href": href}, provider=provider)

    def signed_out(
        self, *, sign_in_href: str, everywhere: bool = False, provider_still: str | None = None
    ) -> HTMLResponse:
        """Return the end of a session; ``provider_still`` names the provider where another may go on."""
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
    ) -> HTMLResponse:
        """Return the question; ``everywhere`` offers all devices. ``provider_origin`` is where the answer leads."""
        return self._page(
            "confirm_sign_out.html",
            200,
            links={"action": action, "back_href": back_href},
            form_origin=provider_origin,
            csrf=csrf,
            who=who,
            everywhere=everywhere,
        )

    # being in, or not -------------------------------------------------------------------------------------

    def me(
        self, *, who: Sequence[tuple[str, str | Sequence[str] | Moment]], sign_out_href: str, home_href: str
    ) -> HTMLResponse:
        """Return who one is here, a row each; a list's items stand apart."""
        return self._page("me.html", 200, links={"sign_out_href": sign_out_href, "home_href": home_href}, who=who)

    def denied(
        self,
        *,
        who: Mapping[str, str | Sequence[str]],
        needed: str,
        have: str,
        request_id: str,
        switch_href: str,
        back_href: str,
    ) -> HTMLResponse:
        """Return a 403 for somebody: who they are (name, subject, email, issuer, groups, roles) and what they lack.

        ``needed`` is a sentence; what is empty or missing is not shown.
        """
        return self._page(
            "denied.html",
            403,
            links={"switch_href": switch_href, "back_href": back_href},
            who=who,
            needed=needed,
            have=have,
            request_id=request_id,
        )

    def error(
        self,
        *,
        status: int,
        heading: str,
        detail: str,
        request_id: str,
        retry_href: str | None,
        code: str,
        checks: Sequence[str] = (),
        retry_after: int = 0,
    ) -> HTMLResponse:
        """Return what happened and the way on; ``checks`` are what to look at, ``retry_after`` is in seconds."""
        return self._page(
            "error.html",
            status,
            links={"retry_href": retry_href or ""},
            retry_after=retry_after,
            heading=heading,
            detail=detail,
            request_id=request_id,
            code=code,
            checks=checks,
        )

    def _page(
        self,
        template: str,
        status: int,
        *,
        links: dict[str, str],
        form_origin: str = "",
        retry_after: int = 0,
        **content: Any,
    ) -> HTMLResponse:
        astray = [name for name, href in links.items() if href and not self._link.fullmatch(href)]
        if astray or (form_origin and not _ORIGIN.fullmatch(form_origin)):
            log.error("a page was not shown: %s leads to no page", ", ".join(astray) or "form_origin")
            return self.error(
                status=503,
                heading="This page could not be shown",
                detail="It would have held a link that leads to no page. Nothing was changed.",
                request_id=content.get("request_id", ""),
                retry_href=None,
                code="internal_error",
            )
        body = self._templates[template].render(links | content, retry_after=retry_after)
        policy = _POLICY.format(f" {form_origin}" if form_origin else "")
        later = {"Retry-After": str(retry_after)} if retry_after else {}
        return HTMLResponse(body, status, {**_HEADERS, "Content-Security-Policy": policy, **later})

    # what pages refer to ----------------------------------------------------------------------------------

    def static(self, name: str, version: str = "") -> Response:
        """Return the file of that name, one of a closed set, or 404.

        Under its own version it may be kept for ever; under another, as beside a newer replica, not at all.
        """
        found = self._static.get(name)
        if found is None:
            return Response(status_code=404, headers=_HEADERS)
        kept = "public, max-age=31536000, immutable" if version == found.version else "no-store"
        headers = {**_HEADERS, "Cache-Control": kept, "Content-Security-Policy": "default-src 'none'"}
        return Response(found.content, media_type=found.media_type, headers=headers)

    def _static_href(self, name: str) -> str:
        return f"/_auth/static/{name}?v={self._static[name].version}"


class _Static(NamedTuple):
    content: bytes
    media_type: str
    version: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "_Static":
        """Return the file with a version that changes with its content."""
        return cls(content, _MEDIA_TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:16])
