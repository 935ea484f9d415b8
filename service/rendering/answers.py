"""A Decision as each proxy wants it: status, headers and body, ready for the wire.

Every answer carries every identity header, empty where there is nobody: a header that an auth service omits
leaves the client's own in place in some proxies.
"""

import json
from functools import lru_cache
from html import escape
from typing import Final, NamedTuple, assert_never
from urllib.parse import quote

from service.core.model import Allow, Browser, Challenge, Decision, Deny, Face, Gate, Identity, Login, Unavailable

WireHeaders = list[tuple[bytes, bytes]]

IDENTITY_HEADERS: Final = (
    b"x-auth-request-user",
    b"x-auth-request-email",
    b"x-auth-request-groups",
    b"x-auth-request-roles",
    b"x-auth-request-issuer",
)
_NOBODY: Final[WireHeaders] = [(name, b"") for name in IDENTITY_HEADERS]
_ONE_LINE: Final = bytes.maketrans(bytes([*range(0x20), 0x7F]), b" " * 0x21)
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "").replace(",", "")
_CHALLENGES: Final = {
    Gate.API: ("Bearer", "Basic"),
    Gate.JWT: ("Bearer",),
    Gate.BASIC: ("Basic",),
    Gate.UI: (),
}


_PAGE_POLICY: Final = b"default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Refused</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="/_auth/static/pages.css">
</head>
<body>
<div class="gateway">
<main>
<h1>This page was refused</h1>
<p>{detail}</p>
<p><a class="button" href="">Try again</a></p>
<p><a href="{who_href}">{who_link}</a></p>
</main>
<footer><p>Request <code>{request_id}</code> &middot; <code>{code}</code></p></footer>
</div>
</body>
</html>
"""


_WAYS_ON: Final = {"insufficient_scope": ("/_auth/denied", "Who am I here, and whom can I ask?")}


class Answer(NamedTuple):
    """What goes onto the wire."""

    status: int
    headers: WireHeaders
    body: bytes


def header_text(value: str) -> bytes:
    """Return text that any header can carry: printable ASCII, the rest percent-encoded UTF-8 (RFC 3986 §2.1).

    ``%`` and ``,`` are encoded too, so that a list joined by commas has one reading.
    """
    if value.isascii() and value.isprintable() and "%" not in value and "," not in value:
        return value.encode("ascii")
    return quote(value, safe=_PLAIN).encode("ascii")


@lru_cache(maxsize=4096)  # a caller who renews its token stays who it is
def allow_headers(identity: Identity) -> WireHeaders:
    """Return all headers of an Allow, the same at every face. Do not change the list."""
    issuer, name, email, groups, roles = identity
    return [
        (b"x-auth-request-user", header_text(name)),
        (b"x-auth-request-email", header_text(email)),
        (b"x-auth-request-groups", b",".join([header_text(group) for group in groups])),
        (b"x-auth-request-roles", b",".join([header_text(role) for role in roles])),
        (b"x-auth-request-issuer", header_text(issuer)),
        (b"content-length", b"0"),
    ]


def render(decision: Decision, face: Face, gate: Gate, request_id: str, browser: Browser | None = None) -> Answer:
    """Return the answer for one proxy."""
    match decision:
        case Allow():
            return Answer(200, allow_headers(decision.principal.identity), b"")
        case Challenge():
            headers = [(b"www-authenticate", one) for one in _challenges(decision, gate, browser)]
        case Login():
            headers = [(b"location", decision.location.encode("ascii"))]
        case Unavailable():
            headers = [(b"retry-after", str(decision.retry_after).encode())]
        case Deny():
            headers = []
        case _:
            assert_never(decision)
    to_a_person = gate is Gate.UI and browser is not None and browser.navigates and not isinstance(decision, Login)
    body = (refusal_page if to_a_person else refusal_body)(decision.detail, decision.code, request_id)
    status = decision.status
    headers += [
        *_NOBODY,
        (b"cache-control", b"no-store"),
        (b"content-type", b"text/html; charset=utf-8" if to_a_person else b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if to_a_person:
        headers.append((b"content-security-policy", _PAGE_POLICY))
    if face is Face.AUTH_REQUEST:
        # Nginx passes 401 and 403 on and turns every other refusal into a 500: the configuration replays these
        headers += [
            (b"x-auth-status", str(status).encode()),
            (b"x-auth-detail", header_text(decision.detail)),
            (b"x-auth-redirect", decision.location.encode("ascii") if isinstance(decision, Login) else b""),
            (b"x-auth-body", body.translate(_ONE_LINE)),
        ]
        status = 401 if isinstance(decision, Challenge | Login) else 403
    return Answer(status, headers, body)


def refusal_body(detail: str, code: str, request_id: str) -> bytes:
    """Return the JSON that every refusal has."""
    return json.dumps({"detail": detail, "code": code, "request_id": request_id}).encode()


def refusal_page(detail: str, code: str, request_id: str) -> bytes:
    """Return the page that a person sees who opened what is refused; the design is that of the pages under /_auth/."""
    who_href, who_link = _WAYS_ON.get(code, ("/_auth/me", "Who am I here?"))
    page = _PAGE.format(
        detail=escape(detail), code=escape(code), request_id=escape(request_id), who_href=who_href, who_link=who_link
    )
    return page.encode("ascii", "xmlcharrefreplace")


def _challenges(decision: Challenge, gate: Gate, browser: Browser | None) -> list[bytes]:
    """RFC 6750 §3 and RFC 7617 §2: one challenge a scheme; an error is named only where something was sent.

    A browser is not asked for ``Basic``: it would prompt, remember the answer, and add it to what other sites send.
    """
    error = ""
    if decision.code in {"invalid_token", "invalid_request"}:
        description = decision.detail.replace("\\", "").replace('"', "'")
        error = f', error="{decision.code}", error_description="{description}"'
    rendered = {
        "Bearer": f'Bearer realm="Prefect API"{error}',
        "Basic": 'Basic realm="Prefect API", charset="UTF-8"',
    }
    return [
        rendered[scheme].encode("ascii", "replace")
        for scheme in _CHALLENGES[gate]
        if browser is None or scheme != "Basic"
    ]
