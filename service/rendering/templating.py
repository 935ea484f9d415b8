"""Templates and static files → answers. Jinja loads slowly, so the gate imports this only in the background."""

import hashlib
import logging
import re
from importlib import resources
from typing import Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from service.core.errors import Code
from service.rendering.cures import Ways
from service.rendering.sentences import duration
from service.rendering.wire import Answer, Head, WireHeaders

log = logging.getLogger(__name__)

_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'{}; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_POLICY_OF_FILES: Final = "default-src 'none'"
_HEADERS: Final[WireHeaders] = [
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),  # under "no-referrer", browsers send our own forms with "Origin: null"
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ORIGIN: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_LINK: Final = re.compile(r"(/(?!/)|https://|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?/)[^\x00-\x20\x7f\\]*")
_LINK_OVER_HTTP: Final = re.compile(r"(/(?!/)|https?://)[^\x00-\x20\x7f\\]*")
_NOT_SHOWN: Final[dict[str, Any]] = {
    "heading": "This page could not be shown",
    "detail": "It would have held a link that leads to no page. Nothing was changed.",
    "code": Code.INTERNAL_ERROR,
    "ways": Ways(None),
    "checks": (),
    "asks": False,
    "wait": "",
}


class Templates:
    """The templates of the pages, with one title, and the static files that they refer to.

    ``help`` and ``allow_http`` are as with ``Pages``.
    """

    def __init__(self, title: str, help: str, *, allow_http: bool) -> None:  # noqa: A002 - its setting's name
        self._link = _LINK_OVER_HTTP if allow_http else _LINK
        self._files = {
            one.name: _File.of(one.name, one.read_bytes())
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
        environment.globals |= {"title": title, "help": help, "static": self._file_href}
        environment.filters["duration"] = duration
        self._templates = {one: environment.get_template(one) for one in environment.list_templates(["html"])}

    def page(
        self,
        template: str,
        status: int,
        *,
        links: dict[str, str],
        form_origin: str = "",
        retry_after: int = 0,
        **content: Any,
    ) -> Answer:
        """Return a page; if one of ``links`` is not the address of a page, return an error page instead.

        ``form_origin`` is another origin to which a form of the page may lead. ``retry_after`` is in seconds.
        """
        wrong = [name for name, href in links.items() if href and not self._link.fullmatch(href)]
        if wrong or (form_origin and not _ORIGIN.fullmatch(form_origin)):
            log.error("a page was not shown: %s is not the address of a page", ", ".join(wrong) or "form_origin")
            template, status, form_origin, retry_after = "error.html", 503, "", 0
            links, content = {}, {**_NOT_SHOWN, "request_id": content.get("request_id", "")}
        body = self._templates[template].render(links | content, retry_after=retry_after)
        policy = _POLICY.format(f" {form_origin}" if form_origin else "")
        more = [(b"retry-after", str(retry_after).encode())] if retry_after else []
        return _answer(status, body.encode(), "text/html; charset=utf-8", policy, more=more)

    def static(self, name: str, version: str = "") -> Answer:
        """Return the file of that name, one of a closed set, or 404.

        With its own version it may be cached for ever; with another, as of a newer replica, not at all.
        """
        found = self._files.get(name)
        if found is None:
            return _answer(404, b"", "text/plain; charset=utf-8", _POLICY_OF_FILES)
        cached = "public, max-age=31536000, immutable" if version == found.version else "no-store"
        return _answer(200, found.content, found.media_type, _POLICY_OF_FILES, cached)

    def _file_href(self, name: str) -> str:
        return f"/_auth/static/{name}?v={self._files[name].version}"


class _File(NamedTuple):
    content: bytes
    media_type: str
    version: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "_File":
        """Return the file with a version that changes with its content."""
        return cls(content, _MEDIA_TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:16])


_NO_MORE: Final[WireHeaders] = []


def _answer(
    status: int, body: bytes, media_type: str, policy: str, cached: str = "no-store", *, more: WireHeaders = _NO_MORE
) -> Answer:
    headers = {
        b"content-type": media_type,
        b"content-length": str(len(body)),
        b"content-security-policy": policy,
        b"cache-control": cached,
    }
    head = Head(status, [*((name, value.encode()) for name, value in headers.items()), *_HEADERS])
    return Answer(head, body, more)
