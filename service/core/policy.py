"""decide(): the one function that turns proof into an answer. Silence denies.

A principal passes where its roles open the route, and a browser from its own pages alone.
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
from service.core.request.faces import READS
from service.core.request.redirects import PAGES, sign_in_location

UI_SETTINGS = "/ui-settings"
WEBSOCKETS = frozenset({"ws", "wss"})
_NOBODY = {
    Gate.API: "Send a credential: set PREFECT_API_KEY to a JWT, or PREFECT_API_AUTH_STRING to 'user:password'.",
    Gate.JWT: "Send a JWT: set PREFECT_API_KEY.",
    Gate.BASIC: "Send a user name and password: set PREFECT_API_AUTH_STRING to 'user:password'.",
    Gate.UI: "You are not signed in: reload the page to sign in.",
}
_NOBODY_ON_WEBSOCKET = (
    "This WebSocket carried no credential, so events and task-run states are lost: Prefect does not send "
    'PREFECT_API_KEY there. Set PREFECT_CLIENT_CUSTOM_HEADERS=\'{"Authorization": "Bearer <token>"}\' '
    "(Prefect 3.4.8 and newer), or put the token into the URL, PREFECT_API_URL=https://jwt:<token>@<host>/api "
    "(every version)."
)


_FROM_ANOTHER_SITE = (
    "This request came from another site, and what a browser sends along by itself does not permit that: open Prefect "
    "itself and try there."
)


def decide(
    request: ForwardedRequest | None,
    who: Principal | NoCredential | Refusal,
    gate: Gate,
    access: Access,
    *,
    browser: Browser | None = None,
    body: bytes | None = None,
) -> Decision:
    """Return what becomes of a request from whoever sent it; anything but a principal whose roles open it is refused.

    ``request`` is None where it could not be parsed; ``who`` is then the refusal that says why. ``browser`` is what
    a browser says of a request, and None where none sent it; a principal whom a cookie proved needs it. ``body`` is
    the request's own, where the proxy sends it along.
    """
    if isinstance(who, Principal):
        if request is None:
            return Deny(400, Code.INVALID_REQUEST, "There is no request.")
        if not (_is_its_senders_wish(gate, browser) or _reads(request)):
            return Deny(403, Code.CROSS_ORIGIN, _FROM_ANOTHER_SITE)
        return _by_roles(request, who, access, body)
    if isinstance(who, NoCredential | SessionEnded):
        challenge = _challenge(request, who, gate)
        return _asked_to_sign_in(request, browser, access, challenge) if gate is Gate.UI else challenge
    if isinstance(who, Later):
        return Unavailable(who.status, who.code, who.detail, who.retry_after)
    if isinstance(who, Rejected | MalformedCredential):
        return Challenge(who.status, who.code, who.detail)
    if isinstance(who, Malformed):
        return Deny(who.status, who.code, who.detail)
    return Deny(403, who.code, who.detail)


def _by_roles(request: ForwardedRequest, who: Principal, access: Access, body: bytes | None) -> Allow | Deny:
    verdict = access.judge(request, who.roles, body)
    if isinstance(verdict, Lacking):
        return Deny(403, Code.INSUFFICIENT_SCOPE, access.refusal(request, who, verdict), verdict.route is not None)
    return Allow(who, verdict.route is not None)


def _challenge(request: ForwardedRequest | None, who: NoCredential | SessionEnded, gate: Gate) -> Challenge:
    if isinstance(who, SessionEnded):
        return Challenge(401, who.code, who.detail)
    on_websocket = gate is not Gate.UI and request is not None and websocket_endpoint(request.path)
    return Challenge(401, Code.CREDENTIAL_REQUIRED, _NOBODY_ON_WEBSOCKET if on_websocket else _NOBODY[gate])


def _is_its_senders_wish(gate: Gate, browser: Browser | None) -> bool:
    """Tell whether whoever the credential proves wants this, and not a page of another site that they look at.

    A browser adds a cookie to whatever is sent, so at ``ui`` it must say that a page of this very site is sending. It
    adds a user name and password that it remembers, too; but machines say nothing, and are believed.
    """
    if gate is Gate.UI:
        return browser is not None and browser.same_origin
    return browser is None or not browser.another_site


def _reads(request: ForwardedRequest) -> bool:
    """Tell whether a request changes nothing; a WebSocket begins as a GET and may act afterwards, so it is a write."""
    return request.method in READS and request.scheme not in WEBSOCKETS and not websocket_endpoint(request.path)


def _asked_to_sign_in(
    request: ForwardedRequest | None, browser: Browser | None, access: Access, challenge: Challenge
) -> Challenge | Login:
    """Send whoever opens a page to sign in, and challenge whatever else asks.

    The UI asks for its settings before it shows anything, and shows nothing without them: it is sent to a stand-in,
    so that the first call of its API can tell the person what to do.
    """
    if request is None or browser is None:
        return challenge
    if browser.navigates:
        return Login(302, challenge.code, challenge.detail, sign_in_location(request.target))
    route = access.routes.find(request.method, request.path)
    if request.method == "GET" and route is not None and route.path.endswith(UI_SETTINGS):  # below the UI's base
        return Login(302, challenge.code, challenge.detail, f"{PAGES}ui-settings")
    return challenge
