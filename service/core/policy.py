"""decide(): the one function that turns proof into an answer. Silence denies.

Until roles are configured there is one rule: whoever is verified may pass.
"""

from service.core.errors import Code, Later, Malformed, MalformedCredential, Refusal, Rejected
from service.core.model import (
    Allow,
    Challenge,
    Decision,
    Deny,
    ForwardedRequest,
    Gate,
    NoCredential,
    Principal,
    Unavailable,
)
from service.core.routes import websocket_endpoint

_SIGN_IN = "Sign-in is not set up on this host. Use the API host with a credential."
_NOBODY = {
    Gate.API: "Send a credential: set PREFECT_API_KEY to a JWT, or PREFECT_API_AUTH_STRING to 'user:password'.",
    Gate.JWT: "Send a JWT: set PREFECT_API_KEY.",
    Gate.BASIC: "Send a user name and password: set PREFECT_API_AUTH_STRING to 'user:password'.",
    Gate.UI: _SIGN_IN,
}
_NOBODY_ON_WEBSOCKET = (
    "This WebSocket carried no credential, so events and task-run states are lost: Prefect does not send "
    'PREFECT_API_KEY there. Set PREFECT_CLIENT_CUSTOM_HEADERS=\'{"Authorization": "Bearer <token>"}\' '
    "(Prefect 3.4.8 and newer), or put the token into the URL, PREFECT_API_URL=https://jwt:<token>@<host>/api "
    "(every version)."
)


def decide(request: ForwardedRequest | None, who: Principal | NoCredential | Refusal, gate: Gate) -> Decision:
    """Return what becomes of a request from whoever sent it; anything but a principal is refused.

    ``request`` is None where it could not be parsed; ``who`` is then the refusal that says why.
    """
    if isinstance(who, Principal):
        return Allow(who) if request is not None else Deny(400, Code.INVALID_REQUEST, "There is no request.")
    if isinstance(who, NoCredential):
        on_websocket = gate is not Gate.UI and request is not None and websocket_endpoint(request.path)
        detail = _NOBODY_ON_WEBSOCKET if on_websocket else _NOBODY[gate]
        return Challenge(401, Code.CREDENTIAL_REQUIRED, detail)
    if isinstance(who, Later):
        return Unavailable(who.status, who.code, who.detail, who.retry_after)
    if isinstance(who, Rejected | MalformedCredential):
        return Challenge(who.status, who.code, who.detail)
    if isinstance(who, Malformed):
        return Deny(who.status, who.code, who.detail)
    return Deny(403, who.code, who.detail)
