"""A browser session: how it is serialised, when it ends, and whose it is. Time is an argument."""

import json
from dataclasses import dataclass

from service.core.errors import SessionEnded
from service.core.model import Principal, Session
from service.core.problems import Problem

MAX_LIFETIME = 30 * 86_400.0  # seconds: no configuration lets a session live longer
_FIELDS = len(Session._fields)


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long a session lasts, in seconds: ``idle`` without a request, ``lifetime`` in all."""

    idle: float = 28_800.0
    lifetime: float = 57_600.0

    @property
    def touch(self) -> float:
        """Return after how many seconds the cookie of a used session is sealed anew, so that idle time is measured."""
        return min(self.idle / 10, 300.0)


def dump_session(session: Session) -> bytes:
    """Return the bytes of a session that are sealed."""
    return json.dumps(list(session), separators=(",", ":"), ensure_ascii=False).encode()


def load_session(document: bytes) -> Session:
    """Return a session that dump_session() wrote. The seal has proved its origin, so types are not checked."""
    values = json.loads(document)
    if not isinstance(values, list) or len(values) != _FIELDS:
        raise SessionEnded(Problem.SESSION_OUTDATED)
    session = Session(*values)
    return session._replace(groups=tuple(session.groups))


def ends_at(session: Session, policy: SessionPolicy) -> float:
    """Return when the session ends, unless it is used before."""
    return min(session.began + policy.lifetime, session.seen + policy.idle)


def validate_session(session: Session, policy: SessionPolicy, now: float) -> None:
    """Raise SessionEnded if the session has ended, or began in the future."""
    if now >= session.began + policy.lifetime:
        raise SessionEnded(Problem.SESSION_LIFETIME_OVER)
    if now >= session.seen + policy.idle:
        raise SessionEnded(Problem.SESSION_IDLE_TOO_LONG)
    if session.began > now + policy.touch:
        raise SessionEnded(Problem.SESSION_FROM_THE_FUTURE)


def principal_of(session: Session, policy: SessionPolicy) -> Principal:
    """Return the principal of a valid session, without roles."""
    return Principal(
        session.issuer,
        session.name,
        session.email,
        session.groups,
        subject=session.subject,
        expires=session.began + policy.lifetime,
    )
