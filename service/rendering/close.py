"""A refusal as the close code and the reason of a WebSocket, which Prefect's clients print."""

from typing import Final, NamedTuple

from service.core.model import Allow, Decision, Unavailable
from service.core.problems import Problem
from service.rendering.sentences import sentence

MAX_REASON: Final = 123  # bytes (RFC 6455 §5.5.1)
NORMAL: Final = 1000  # RFC 6455 §7.4.1, down to 1011
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012  # of the IANA registry of close codes, as the next one
TRY_AGAIN_LATER: Final = 1013
_SHORT: Final = {
    Problem.NO_CREDENTIAL_ON_WEBSOCKET: "No credential on this WebSocket: set PREFECT_API_AUTH_STRING to "
    "user:password or jwt:<token>.",
    Problem.CAPABILITY_MISSING: "No role of yours opens this WebSocket: ask for the role {holders[0]}.",
}


class Close(NamedTuple):
    """Why and how a WebSocket is closed: a code (RFC 6455 §7.4), and a reason of at most ``MAX_REASON`` bytes."""

    code: int
    reason: str = ""


def close_of(decision: Decision) -> Close:
    """Return how a WebSocket that was accepted for its first message is refused.

    Clients connect again after each of these codes, and are let in as soon as the cause is gone.
    """
    if isinstance(decision, Allow):
        raise TypeError("an Allow is no refusal")
    problem, facts = decision.cause
    short = _SHORT.get(problem)
    if problem is Problem.CAPABILITY_MISSING and not facts.get("holders"):
        short = None
    text = sentence(decision.cause) if short is None else short.format_map(facts)
    return Close(TRY_AGAIN_LATER if isinstance(decision, Unavailable) else POLICY_VIOLATION, cut(text))


def sendable(close: Close) -> Close:
    """Return the close frame that tells another peer of a close, for those that no frame may carry (RFC 6455 §7.4.1).

    ``NO_STATUS`` stands for a close frame without a code, ``ABNORMAL`` for a connection that ended without a frame.
    """
    if close.code == NO_STATUS:
        return Close(NORMAL)
    if close.code == ABNORMAL:
        return Close(INTERNAL_ERROR, "The other side closed the connection.")
    return close


def cut(text: str) -> str:
    """Return text that fits into a close frame, cut between two words."""
    if len(text.encode()) <= MAX_REASON:
        return text
    raw = text.encode()[: MAX_REASON - len("…".encode())].decode(errors="ignore")
    return raw.rpartition(" ")[0] + "…"
