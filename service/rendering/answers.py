"""A Decision as each kind of proxy needs it: status, headers and body.

Every answer has every identity header, empty if there is no principal: some proxies leave the client's own header in
place if the auth service omits it.
"""

import json
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard, assert_never
from urllib.parse import quote

from service.core.errors import Code
from service.core.model import Allow, Browser, Challenge, Decision, Deny, Face, Gate, Identity, Login, Unavailable
from service.core.problems import Cause, Problem
from service.rendering.forms import ANY_VERSION, Form
from service.rendering.refusal_page import RefusalPage
from service.rendering.sentences import sentence, sentence_for_person
from service.rendering.wire import Answer, Head, WireHeaders

IDENTITY_HEADERS: Final = (
    b"x-auth-request-user",
    b"x-auth-request-email",
    b"x-auth-request-groups",
    b"x-auth-request-roles",
    b"x-auth-request-issuer",
)
_NOTHING_MORE: Final[WireHeaders] = []
_NOBODY: Final[WireHeaders] = [(name, b"") for name in IDENTITY_HEADERS]
_JSON: Final[WireHeaders] = [(b"cache-control", b"no-store"), (b"content-type", b"application/json")]
_ONE_LINE: Final = bytes.maketrans(bytes([*range(0x20), 0x7F]), b" " * 0x21)
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "").replace(",", "")
_BEARER: Final = 'Bearer realm="Prefect API"'
_BASIC: Final = b'Basic realm="Prefect API", charset="UTF-8"'
Refused = Challenge | Deny | Login | Unavailable
_CHALLENGES: Final = {
    Gate.API: ("Bearer", "Basic"),
    Gate.JWT: ("Bearer",),
    Gate.BASIC: ("Basic",),
    Gate.UI: (),
}


def header_text(value: str) -> bytes:
    """Return text as printable ASCII, the rest percent-encoded UTF-8 (RFC 3986 §2.1), which any header can carry.

    ``%`` and ``,`` are encoded too, so that a list joined by commas is unambiguous.
    """
    if value.isascii() and value.isprintable() and "%" not in value and "," not in value:
        return value.encode("ascii")
    return quote(value, safe=_PLAIN).encode("ascii")


def allow_headers(identity: Identity) -> WireHeaders:
    """Return all headers of an Allow, the same for every face."""
    issuer, name, email, groups, roles = identity
    return [
        (b"x-auth-request-user", header_text(name)),
        (b"x-auth-request-email", header_text(email)),
        (b"x-auth-request-groups", b",".join([header_text(group) for group in groups])),
        (b"x-auth-request-roles", b",".join([header_text(role) for role in roles])),
        (b"x-auth-request-issuer", header_text(issuer)),
        (b"content-length", b"0"),
    ]


@lru_cache(maxsize=4096)  # a caller with a new token has the same identity
def _allow_head(identity: Identity) -> Head:
    return Head(200, allow_headers(identity))


def allowed(identity: Identity, more: WireHeaders = _NOTHING_MORE) -> Answer:
    """Return the answer to what is allowed, the same for every face."""
    return Answer(_allow_head(identity), b"", more)


class _Frame(NamedTuple):
    """A refusal without what is its own: the request id, which ends the JSON, or the page in place of the JSON."""

    status: int
    headers: WireHeaders
    json_head: Head  # with the headers of the JSON
    opening: bytes


def render(
    decision: Decision,
    face: Face,
    gate: Gate,
    request_id: str,
    browser: Browser | None = None,
    page: RefusalPage | None = None,
    *,
    form: Form = ANY_VERSION,
) -> Answer:
    """Return the answer for one kind of proxy.

    ``page`` is what a person sees who navigated to what is refused; without it they get the JSON of all others.
    ``form`` is how the version of Prefect that asked sends a credential.
    """
    if isinstance(decision, Allow):
        return allowed(decision.principal.identity)
    prompts = browser is None
    if isinstance(decision, Challenge) and not decision.cause.facts:  # whoever sends very many gets one of these
        status, code, (problem, _) = decision
        frame = _frame_without_facts(status, code, problem, face, gate, form, prompts=prompts)
    else:
        frame = _frame(decision, face, gate, form, prompts=prompts)
    if page is not None and reaches_a_person(decision, gate, browser):
        head, body = Head(frame.status, frame.headers + page.headers), page.fill(decision, request_id)
    else:
        head, body = frame.json_head, frame.opening + request_id.encode() + b'"}'
    more = [(b"content-length", b"%d" % len(body))]
    if face is Face.AUTH_REQUEST:
        more.append((b"x-auth-body", body.translate(_ONE_LINE)))
    return Answer(head, body, more)


@lru_cache(maxsize=1024)  # more than there are problems of credentials, faces, gates and forms in use
def _frame_without_facts(
    status: int, code: Code, problem: Problem, face: Face, gate: Gate, form: Form, *, prompts: bool
) -> _Frame:
    return _frame(Challenge(status, code, Cause(problem)), face, gate, form, prompts=prompts)


def _frame(decision: Refused, face: Face, gate: Gate, form: Form, *, prompts: bool) -> _Frame:
    """Return a refusal's frame. ``prompts`` tells that no browser asks, which would prompt for a password."""
    match decision:
        case Challenge():
            headers = [(b"www-authenticate", one) for one in _challenges(decision, gate, form, prompts=prompts)]
        case Login():
            headers = [(b"location", decision.location.encode("ascii"))]
        case Unavailable():
            headers = [(b"retry-after", str(decision.retry_after).encode())]
        case Deny():
            headers = []
        case _:
            assert_never(decision)
    detail = sentence_for_person(decision.cause) if gate is Gate.UI else sentence(decision.cause, form)
    headers += _NOBODY
    status = decision.status
    if face is Face.AUTH_REQUEST:
        # Nginx passes 401 and 403 on and turns every other refusal into a 500: the configuration replays these
        headers += [
            (b"x-auth-status", str(status).encode()),
            (b"x-auth-detail", header_text(detail)),
            (b"x-auth-redirect", decision.location.encode("ascii") if isinstance(decision, Login) else b""),
        ]
        status = 401 if isinstance(decision, Challenge | Login) else 403
    opening = json.dumps(_content(decision.code, detail, "")).removesuffix('"}')
    return _Frame(status, headers, Head(status, headers + _JSON), opening.encode())


def reaches_a_person(
    decision: Decision, gate: Gate, browser: Browser | None
) -> TypeGuard[Deny | Challenge | Unavailable]:
    """Tell whether a refusal is read by a person who navigated to a page, and not by a program."""
    navigates = gate is Gate.UI and browser is not None and browser.navigates
    return navigates and not isinstance(decision, Allow | Login)


def refusal_content(code: Code, cause: Cause, request_id: str) -> dict[str, Any]:
    """Return the JSON object of a refusal."""
    return _content(code, sentence(cause), request_id)


def _content(code: Code, detail: str, request_id: str) -> dict[str, Any]:
    return {"detail": detail, "code": code, "request_id": request_id}


def _challenges(decision: Challenge, gate: Gate, form: Form, *, prompts: bool) -> list[bytes]:
    """Return one challenge for each scheme (RFC 6750 §3, RFC 7617 §2), with an error if a credential was sent.

    A browser is not asked for ``Basic``: it would prompt for a password, remember it, and add it to the requests that
    other sites make it send.
    """
    error = ""
    if decision.code in {Code.INVALID_TOKEN, Code.INVALID_REQUEST}:
        description = sentence(decision.cause, form).replace("\\", "").replace('"', "'")
        error = f', error="{decision.code}", error_description="{description}"'
    bearer = f"{_BEARER}{error}".encode("ascii", "replace").translate(_ONE_LINE)
    return [bearer if scheme == "Bearer" else _BASIC for scheme in _CHALLENGES[gate] if prompts or scheme != "Basic"]
