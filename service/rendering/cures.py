"""What helps after a refusal, and how a page says so: its heading, its main button, and where that leads."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from service.core.errors import Code
from service.core.problems import Cause, Problem
from service.core.request.redirects import HOME, PAGES


class Cure(Enum):
    """The closed set of things that a person can do about a refusal."""

    RETRY = auto()
    SIGN_IN = auto()
    OTHER_ACCOUNT = auto()
    ASK_FOR_ROLE = auto()
    GO_HOME = auto()
    NOTHING = auto()


class Link(NamedTuple):
    """A link or button of a page. An empty address is that of the page itself."""

    label: str
    href: str


class Ways(NamedTuple):
    """What a page offers: a button for what helps most, if anything does, and a link beside it."""

    button: Link | None
    aside: Link | None = None


_P: Final = Problem
_BY_CODE: Final[Mapping[Code, Cure]] = {
    Code.INVALID_REQUEST: Cure.GO_HOME,
    Code.INVALID_TOKEN: Cure.SIGN_IN,
    Code.INSUFFICIENT_SCOPE: Cure.ASK_FOR_ROLE,
    Code.CREDENTIAL_REQUIRED: Cure.SIGN_IN,
    Code.SESSION_ENDED: Cure.SIGN_IN,
    Code.CROSS_ORIGIN: Cure.GO_HOME,
    Code.SIGN_IN_FAILED: Cure.SIGN_IN,
    Code.UNTRUSTED_PROXY: Cure.NOTHING,
    Code.ISSUER_UNAVAILABLE: Cure.RETRY,
    Code.THROTTLED: Cure.RETRY,
    Code.INTERNAL_ERROR: Cure.RETRY,
    Code.NOT_FOUND: Cure.GO_HOME,
}
_BY_PROBLEM: Final[Mapping[Problem, Cure]] = {
    **dict.fromkeys((_P.PROVIDER_BUSY, _P.PROVIDER_ERROR), Cure.RETRY),
    **dict.fromkeys((_P.PROVIDER_DENIED, _P.PERSON_NOT_PERMITTED), Cure.OTHER_ACCOUNT),
    _P.EMAIL_NOT_VERIFIED: Cure.SIGN_IN,
    _P.ROUTE_UNKNOWN: Cure.GO_HOME,
    **dict.fromkeys(  # the browser, the proxy, the provider or the configuration has to be changed first
        (
            _P.COOKIES_TOO_LARGE,
            _P.SIGN_IN_LOOPS,
            _P.GRANT_REFUSED,
            _P.HEADER_MISSING,
            _P.SCHEME_UNKNOWN,
            _P.HOST_INVALID,
            _P.CLIENT_ADDRESS_INVALID,
            _P.FORWARDED_FOR_TOO_LONG,
            _P.VERIFY_METHOD_NOT_GET,
            _P.PROVIDER_REFUSES_CLIENT,
            _P.PROVIDER_ENCRYPTS,
            _P.ISSUER_MISCONFIGURED,
            _P.SESSION_TOO_LARGE,
            _P.SIGN_IN_NOT_SET_UP,
            _P.SIGN_IN_NOT_SET_UP_LOCALLY,
            _P.SIGN_IN_OVER_HTTP,
        ),
        Cure.NOTHING,
    ),
}
_NO_ACCESS: Final = "You have no access to this"
_REFUSED: Final = "This page was refused"
_NOT_SIGNED_IN: Final = "Signing in did not work"
_UNAVAILABLE: Final = "Temporarily unavailable"
_HEADINGS: Final[Mapping[Code, str]] = {
    Code.INVALID_REQUEST: "This request cannot be understood",
    Code.INVALID_TOKEN: _NOT_SIGNED_IN,
    Code.INSUFFICIENT_SCOPE: _NO_ACCESS,
    Code.CREDENTIAL_REQUIRED: "You are not signed in",
    Code.SESSION_ENDED: "Your session has ended",
    Code.CROSS_ORIGIN: _REFUSED,
    Code.SIGN_IN_FAILED: _NOT_SIGNED_IN,
    Code.UNTRUSTED_PROXY: _REFUSED,
    Code.ISSUER_UNAVAILABLE: _UNAVAILABLE,
    Code.THROTTLED: "Too many attempts",
    Code.INTERNAL_ERROR: _UNAVAILABLE,
    Code.NOT_FOUND: "There is nothing here",
}
_CHECKS: Final[Mapping[Problem, tuple[str, ...]]] = {
    _P.SIGN_IN_LOOPS: (
        "Cookies are allowed for this site, third-party rules and extensions included.",
        "The address begins with https:// (or is this machine's own).",
        "The clocks of this computer and of the server are right.",
    )
}
_WHO: Final = Link("Who am I here?", f"{PAGES}me")
_WHOM_TO_ASK: Final = Link("Who am I here, and whom can I ask?", f"{PAGES}denied")


def cure_of(code: Code, cause: Cause) -> Cure:
    """Return what helps after a refusal."""
    return _BY_PROBLEM.get(cause.problem) or _BY_CODE[code]


def heading_of(code: Code, cause: Cause) -> str:
    """Return the heading of a page for a refusal."""
    return "This browser did not keep your session" if cause.problem is Problem.SIGN_IN_LOOPS else _HEADINGS[code]


def checks_of(cause: Cause) -> tuple[str, ...]:
    """Return what a person should look at, one after the other."""
    return _CHECKS.get(cause.problem, ())


def ways_of(cure: Cure, *, title: str, retry_href: str, sign_in_href: str, switch_href: str) -> Ways:
    """Return what a page offers for a cure.

    ``title`` is what the pages call the place that one signs in to. The addresses are those at which to try again, to
    sign in, and to sign in with another account.
    """
    other_account, again = Link("Use another account", switch_href), Link("Try again", retry_href)
    return {
        Cure.RETRY: Ways(again),
        Cure.SIGN_IN: Ways(Link("Sign in again", sign_in_href)),
        Cure.OTHER_ACCOUNT: Ways(other_account, again),
        Cure.ASK_FOR_ROLE: Ways(other_account, _WHOM_TO_ASK),
        Cure.GO_HOME: Ways(Link(f"Open {title}", HOME), _WHO),
        Cure.NOTHING: Ways(None, again),  # once it has been put right elsewhere
    }[cure]
