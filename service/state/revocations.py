"""Revoked sessions.

A session exists only in its cookie, so a session that ends early has to be remembered until it would have expired. The
lookup is local and never waits.

WITHOUT A STORE a restart forgets all revocations: a copied cookie of a session that was signed out is valid again until
it expires, unless the session key is changed as well.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from cachetools import TTLCache

from service.core.identity.sessions import MAX_LIFETIME
from service.core.model import Session
from service.state.bounded import drop_oldest

log = logging.getLogger(__name__)

MARGIN: Final = 300.0  # seconds: the maximum difference between the replicas' clocks
KEEP: Final = MAX_LIFETIME + MARGIN  # seconds: the longest lifetime that any configuration can give a session
MAX_ENTRIES: Final = 100_000
MAX_USED: Final = 100_000
MAX_SESSIONS_OF_SUBJECT: Final = 32
_SESSION, _SUBJECT, _PROVIDER_SESSION = "session", "subject", "sid"
_SUBJECT_WITHOUT_SID: Final = "subject-without-sid"  # replicas of earlier versions pass it on, and do not apply it

RevocationKey = tuple[str, str, str]  # kind, issuer, and the name of the session or subject


class Revocation(NamedTuple):
    """Revokes the sessions under ``key`` that began at or before ``before``. At ``until`` all of them have expired.

    Times are in seconds since the epoch.
    """

    key: RevocationKey
    before: float
    until: float


class _Ended(NamedTuple):
    before: float
    until: float


_NEVER: Final = _Ended(-1.0, -1.0)


def of_session(session_id: str) -> Revocation:
    """Return the revocation of one session."""
    now = time.time()
    return Revocation((_SESSION, "", session_id), now, now + KEEP)


def of_subject(issuer: str, subject: str, before: float) -> Revocation:
    """Return the revocation of all sessions of a person begun at or before ``before`` (seconds since the epoch)."""
    return Revocation((_SUBJECT, issuer, subject), before, time.time() + KEEP)


def of_provider_session(issuer: str, sid: str, before: float) -> Revocation:
    """Return the revocation of all sessions of one provider session (OIDC Back-Channel Logout §2.1) begun by then."""
    return Revocation((_PROVIDER_SESSION, issuer, sid), before, time.time() + KEEP)


def of_subject_without_sid(issuer: str, subject: str, before: float) -> Revocation:
    """Return the revocation of a person's sessions that name no provider session, begun by then.

    For a logout that names both: a provider that sent no ``sid`` at sign-in can have meant any of these.
    """
    return Revocation((_SUBJECT_WITHOUT_SID, issuer, subject), before, time.time() + KEEP)


class Revocations:
    """Remembers revocations and used single-use tokens.

    Only sign-outs of valid sessions and verified logout tokens add entries. If there are more than ``MAX_ENTRIES``, the
    oldest is dropped and a warning is logged. ``on_change`` is called when a new revocation is learnt, from this
    replica or another: cached proofs may no longer be valid.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._ended: dict[RevocationKey, _Ended] = {}  # oldest first
        self._used: dict[str, float] = {}  # name → monotonic end, oldest first
        self._signed_out: TTLCache[tuple[str, str], int] = TTLCache(MAX_ENTRIES, KEEP)  # sessions

    def end_of(self, session: Session) -> Revocation:
        """Return the revocation of a session, to be passed to ``learn()``.

        After ``MAX_SESSIONS_OF_SUBJECT`` sign-outs of one person, further ones share one entry for all of the person's
        sessions that began until then. So one account cannot fill the memory and push out other people's revocations.
        """
        person = session.issuer, session.subject
        count = self._signed_out.get(person, 0) + 1
        self._signed_out[person] = count
        if count > MAX_SESSIONS_OF_SUBJECT:
            return of_subject(*person, session.began)
        return of_session(session.id)

    def __len__(self) -> int:
        return len(self._ended)

    def __iter__(self) -> Iterator[Revocation]:
        return (Revocation(key, *ended) for key, ended in list(self._ended.items()))

    def revoked(self, session: Session) -> bool:
        """Tell whether this session is revoked. Only looks at memory."""
        ended = self._ended
        if not ended:
            return False
        _id, issuer, began = session.id, session.issuer, session.began
        if (_SESSION, "", _id) in ended or began <= ended.get((_SUBJECT, issuer, session.subject), _NEVER).before:
            return True
        sid = session.provider_sid
        key = (_PROVIDER_SESSION, issuer, sid) if sid else (_SUBJECT_WITHOUT_SID, issuer, session.subject)
        return began <= ended.get(key, _NEVER).before

    def learn(self, revocations: Iterable[Revocation]) -> None:
        """Remember revocations. They are in force when this returns."""
        now, news = time.time(), False
        for key, before, until in revocations:
            if until > now and before > self._ended.get(key, _NEVER).before:
                self._ended.pop(key, None)
                self._ended[key] = _Ended(before, until)
                news = True
        if dropped := _drop_oldest(self._ended, lambda ended: ended.until <= now, MAX_ENTRIES):
            log.warning("more than %d revocations at once: %d of the oldest are forgotten", MAX_ENTRIES, dropped)
        if news:
            self._on_change()

    def first_use(self, name: str, seconds: float) -> bool:
        """Tell whether this name is used for the first time within ``seconds``, and remember the use."""
        now = time.monotonic()
        if self._used.get(name, now) > now:
            return False
        self._used.pop(name, None)
        self._used[name] = now + seconds
        _drop_oldest(self._used, lambda end: end <= now, MAX_USED)
        return True


def name_of_use(kind: str, token_id: str) -> str:
    """Return the name under which the use of a token is remembered. ``kind`` includes the issuer."""
    return "used:" + hashlib.sha256(json.dumps([kind, token_id]).encode()).hexdigest()


def _drop_oldest(entries: dict[Any, Any], over: Callable[[Any], bool], capacity: int) -> int:
    """Drop expired entries from the front, then the oldest beyond ``capacity``; return how many of the latter."""
    while entries and over(entries[first := next(iter(entries))]):
        del entries[first]
    return drop_oldest(entries, capacity)
