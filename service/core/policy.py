"""decide(): the one function that decides about a request. What nothing allows is denied.

A principal passes where its roles open the route; a browser's request must also come from a page of this site.
"""

from service.core.errors import Code, Later, Malformed, MalformedCredential, Refusal, Rejected, SessionEnded
from service.core.model import (
    Allow,
    Browser,
    Challenge,
    Decision,
    Deny,
    ForwardedRequest,
    Gate,
    Login,
    NoCredential,
    Principal,
    Unavailable,
)
from service.core.prefect.roles import Access, Lacking
from service.core.prefect.routes import websocket_endpoint
from service.core.problems import Cause, Problem
from service.core.request.faces import READS
from service.core.request.redirects import PAGES, sign_in_href

UI_SETTINGS = "/ui-settings"
WEBSOCKETS = frozenset({"ws", "wss"})
_UI = Gate.UI  # Python 3.11 takes long to find a member of an enumeration
_PAGES_ROOT = PAGES.removesuffix("/")
_NOTHING_PRESENTED = {
    Gate.API: Cause(Problem.NO_CREDENTIAL),
    Gate.JWT: Cause(Problem.NO_JWT),
    Gate.BASIC: Cause(Problem.NO_PASSWORD),
    Gate.UI: Cause(Problem.NOT_SIGNED_IN),
}


def decide(
    request: ForwardedRequest | None,
    who: Principal | NoCredential | Refusal,
    gate: Gate,
    access: Access,
    *,
    browser: Browser | None = None,
    body: bytes | None = None,
) -> Decision:
    """Return the decision about a request. Only a principal whose roles open the request is allowed.

    ``request`` is None if it could not be parsed; ``who`` is then the refusal that says why. ``browser`` is what a
    browser says about the request, or None if none sent it; a principal with a session needs it. ``body`` is the
    request's own, if the proxy sends it along.
    """
    if browser is not None and gate is _UI and request is not None and _opens_the_pages(request, browser):
        return Login(302, Code.NOT_FOUND, Cause(Problem.NOT_FOUND), f"{PAGES}me")
    if isinstance(who, Principal):
        if request is None:
            return Deny(400, Code.INVALID_REQUEST, Cause(Problem.REQUEST_MISSING))
        if not (_comes_from_own_site(gate, browser) or _reads(request, browser, access)):
            return Deny(403, Code.CROSS_ORIGIN, Cause(Problem.CROSS_SITE_REQUEST))
        return _by_roles(request, who, access, body)
    if isinstance(who, NoCredential | SessionEnded):
        challenge = _challenge(request, who, gate, browser)
        return _asked_to_sign_in(request, browser, access, challenge) if gate is Gate.UI else challenge
    if isinstance(who, Later):
        return Unavailable(who.status, who.code, who.cause, who.retry_after)
    if isinstance(who, Rejected | MalformedCredential):
        return Challenge(who.status, who.code, who.cause)
    return Deny(who.status if isinstance(who, Malformed) else 403, who.code, who.cause)


def _opens_the_pages(request: ForwardedRequest, browser: Browser) -> bool:
    """Tell whether a person opens ``/_auth``. Proxies route what is below it to the pages, and this path to Prefect."""
    return browser.navigates and request.path == _PAGES_ROOT


def _by_roles(request: ForwardedRequest, who: Principal, access: Access, body: bytes | None) -> Allow | Deny:
    verdict = access.judge(request, who.roles, body)
    if isinstance(verdict, Lacking):
        return Deny(403, Code.INSUFFICIENT_SCOPE, verdict.cause(request, who), verdict.route is not None)
    return Allow(who, verdict.route is not None)


def _challenge(
    request: ForwardedRequest | None, who: NoCredential | SessionEnded, gate: Gate, browser: Browser | None
) -> Challenge:
    if isinstance(who, SessionEnded):
        return Challenge(401, who.code, who.cause)
    if request is not None and request.method == "OPTIONS" and browser is not None and browser.another_site:
        # a browser asks before a page of another site may call (CORS), and never sends a credential with that
        return Challenge(401, Code.CREDENTIAL_REQUIRED, Cause(Problem.CROSS_SITE_PREFLIGHT))
    on_websocket = gate is not Gate.UI and request is not None and websocket_endpoint(request.path)
    cause = Cause(Problem.NO_CREDENTIAL_ON_WEBSOCKET) if on_websocket else _NOTHING_PRESENTED[gate]
    return Challenge(401, Code.CREDENTIAL_REQUIRED, cause)


def _comes_from_own_site(gate: Gate, browser: Browser | None) -> bool:
    """Tell whether the principal sends this request, and not a page of another site that the principal has open.

    A browser adds the session cookie to every request, so at ``ui`` it must say that a page of this origin sends it.
    A browser also adds a password that it remembers, so at the other gates it must not say that another site does;
    machines say nothing about it, and are believed.
    """
    if gate is _UI:
        return browser is not None and browser.same_origin
    return browser is None or not browser.another_site


def _reads(request: ForwardedRequest, browser: Browser | None, access: Access) -> bool:
    """Tell whether a request is known to change nothing.

    A WebSocket begins as a GET, but counts as a write. No sign of one reaches this service through every proxy, so an
    unknown route may be one too, unless a person opens it as a page.
    """
    if request.method not in READS or request.scheme in WEBSOCKETS or websocket_endpoint(request.path):
        return False
    if browser is not None and browser.opens_websocket:
        return False
    route = access.routes.find(request.method, request.path)
    if route is None:
        return browser is not None and browser.navigates
    return route.method in READS  # and not WS


def _asked_to_sign_in(
    request: ForwardedRequest | None, browser: Browser | None, access: Access, challenge: Challenge
) -> Challenge | Login:
    """Redirect a page navigation to sign-in, and challenge every other request.

    The UI fetches its settings first and shows nothing without them. That request is redirected to stand-in settings,
    so that the UI can show the refusal of its first API call, which tells the person what to do.
    """
    if request is None or browser is None:
        return challenge
    if browser.navigates:
        return Login(302, challenge.code, challenge.cause, sign_in_href(request.target))
    route = access.routes.find(request.method, request.path)
    if request.method == "GET" and route is not None and route.path.endswith(UI_SETTINGS):  # below the UI's base
        return Login(302, challenge.code, challenge.cause, f"{PAGES}ui-settings")
    return challenge
