"""What a session is worth: how it is written, when it ends, and whom it stands for. Time is an argument."""

import json
from dataclasses import dataclass

from service.core.errors import SessionEnded
from service.core.model import Principal, Session

MAX_LIFETIME = 30 * 86_400.0  # seconds: no configuration lets a session live longer
_FIELDS = len(Session._fields)


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long a session lasts, in seconds: ``idle`` without a request, ``lifetime`` in all."""

    idle: float = 28_800.0
    lifetime: float = 57_600.0

    @property
    def touch(self) -> float:
        """Return after how long the cookie is sealed anew, so that idle time counts from the last use."""
        return min(self.idle / 10, 300.0)


def dump_session(session: Session) -> bytes:
    """Return the session as it is sealed."""
    return json.dumps(list(session), separators=(",", ":"), ensure_ascii=False).encode()


def load_session(document: bytes) -> Session:
    """Return a session that dump_session() wrote; its seal has vouched for the types."""
    values = json.loads(document)
    if not isinstance(values, list) or len(values) != _FIELDS:
        raise SessionEnded("Your session is of an older version: reload the page to sign in.", reason="other fields")
    session = Session(*values)
    return session._replace(groups=tuple(session.groups))


def ends_at(session: Session, policy: SessionPolicy) -> float:
    """Return when the session ends, unless it is used before."""
    return min(session.began + policy.lifetime, session.seen + policy.idle)


def validate_session(session: Session, policy: SessionPolicy, now: float) -> None:
    """Refuse a session that has come to its end, and say which."""
    if now >= session.began + policy.lifetime:
        raise SessionEnded("Your session has ended: reload the page to sign in.", reason="lifetime")
    if now >= session.seen + policy.idle:
        raise SessionEnded("Your session ended while it was not used: reload the page to sign in.", reason="idle")
    if session.began > now + policy.touch:
        raise SessionEnded("Your session has ended: reload the page to sign in.", reason="begun in the future")


def principal_of(session: Session, policy: SessionPolicy) -> Principal:
    """Return for whom a valid session stands, with no roles yet."""
    return Principal(
        session.issuer,
        session.name,
        session.email,
        session.groups,
        subject=session.subject,
        expires=session.began + policy.lifetime,
    )
