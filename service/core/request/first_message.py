"""The first message of Prefect's WebSocket clients, which carries their credential: ``{"type": "auth", "token": …}``.

Clients send there what PREFECT_API_AUTH_STRING holds, or PREFECT_API_KEY, or null. Sockets with the sub-protocol
``prefect`` begin with it.
"""

import base64
import json
from typing import Final

from service.core.errors import MalformedCredential
from service.core.problems import Problem
from service.core.request.headers import is_token
from service.core.strict_json import no_constant, unique_members

SUBPROTOCOL: Final = "prefect"
MAX_FIRST_MESSAGE: Final = 32 * 1024  # bytes; twice the longest Authorization header that is read


def parse_first_message(message: str | bytes) -> str | None:
    """Return the token of a first message, or None if it has none. Raises MalformedCredential for anything else."""
    try:
        content = json.loads(message, object_pairs_hook=unique_members, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise MalformedCredential(Problem.FIRST_MESSAGE_UNREADABLE) from None
    if not isinstance(content, dict) or content.get("type") != "auth":
        raise MalformedCredential(Problem.FIRST_MESSAGE_UNREADABLE)
    token = content.get("token")
    if token is not None and not isinstance(token, str):
        raise MalformedCredential(Problem.FIRST_MESSAGE_UNREADABLE)
    return token or None


def first_message(auth_string: str | None) -> str:
    """Return the first message for the server. It contains the server's own auth string, if that is configured."""
    return json.dumps({"type": "auth", "token": auth_string})


def authorization_of(token: str) -> bytes:
    """Return the Authorization header that carries the same credential as a token of a first message.

    So both are proved by the same code. Forms: ``user:password``, ``anything:JWT``, a token, and ``Bearer TOKEN``.
    What has no colon is no pair, and PREFECT_API_KEY as it is.
    """
    if is_token(token):
        return b"Bearer " + token.encode("ascii")
    try:
        return b"Basic " + base64.b64encode(token.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        raise MalformedCredential(Problem.FIRST_MESSAGE_UNREADABLE) from None
