"""Sessions that ended before their time.

A session lives in its cookie alone, so what ends early has to be remembered until it would have ended anyway. Looking
that up is local and never waits.

WITHOUT A STORE a restart forgets it all: a cookie that was copied and then signed out is good again until its own end,
unless the key that seals sessions is changed too.
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

log = logging.getLogger(__name__)

MARGIN: Final = 300.0  # seconds by which the replicas' clocks may differ
KEEP: Final = MAX_LIFETIME + MARGIN  # no configuration lets a session live longer, whatever a reload changes
MAX_ENTRIES: Final = 100_000
MAX_USED: Final = 100_000
MAX_SESSIONS_OF_SUBJECT: Final = 32
_SESSION, _SUBJECT, _PROVIDER_SESSION = "session", "subject", "sid"

RevocationKey = tuple[str, str, str]  # kind, issuer, and the name of the session or subject


class Revocation(NamedTuple):
    """Sessions under ``key`` that began at or before ``before`` have ended; at ``until`` none of them would be left.

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
    """Return the end of one session."""
    now = time.time()
    return Revocation((_SESSION, "", session_id), now, now + KEEP)


def of_subject(issuer: str, subject: str, before: float) -> Revocation:
    """Return the end of every session of a person that began at or before a time, in seconds since the epoch."""
    return Revocation((_SUBJECT, issuer, subject), before, time.time() + KEEP)


def of_provider_session(issuer: str, sid: str, before: float) -> Revocation:
    """Return the end of every session of one of the provider's own (OIDC Back-Channel Logout §2.1) begun by then."""
    return Revocation((_PROVIDER_SESSION, issuer, sid), before, time.time() + KEEP)


class Revocations:
    """Remembers what ended, and which single-use tokens were used, for all configurations.

    Of more than ``MAX_ENTRIES`` the oldest goes first, with a warning. Only sign-outs of sessions that were proved, and
    logout tokens that were verified, add to them. ``on_change`` is called when something is newly revoked, here or
    elsewhere: what was proved before may no longer be believed.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._ended: dict[RevocationKey, _Ended] = {}  # the oldest first
        self._used: dict[str, float] = {}  # name → monotonic end, the oldest first
        self._signed_out: TTLCache[tuple[str, str], int] = TTLCache(MAX_ENTRIES, KEEP)  # sessions

    def end_of(self, session: Session) -> Revocation:
        """Return what ends a session; it holds once it is learnt.

        Of a person who has signed out of ``MAX_SESSIONS_OF_SUBJECT`` sessions, one entry for all that began until then
        takes the place of further ones: whoever signs in and out all day pushes out nobody else's.
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
        """Tell whether this session has ended before its time; looks at memory alone."""
        ended = self._ended
        if not ended:
            return False
        _id, issuer, began = session.id, session.issuer, session.began
        if (_SESSION, "", _id) in ended or began <= ended.get((_SUBJECT, issuer, session.subject), _NEVER).before:
            return True
        sid = session.provider_sid
        return bool(sid) and began <= ended.get((_PROVIDER_SESSION, issuer, sid), _NEVER).before

    def learn(self, revocations: Iterable[Revocation]) -> None:
        """Remember what is news; it holds at once."""
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
        """Tell whether this name is used for the first time within ``seconds``, and remember that it was."""
        now = time.monotonic()
        if self._used.get(name, now) > now:
            return False
        self._used.pop(name, None)
        self._used[name] = now + seconds
        _drop_oldest(self._used, lambda end: end <= now, MAX_USED)
        return True


def name_of_use(kind: str, token_id: str) -> str:
    """Return the name under which the use of a token is remembered; the issuer belongs into ``kind``."""
    return "used:" + hashlib.sha256(json.dumps([kind, token_id]).encode()).hexdigest()


def _drop_oldest(entries: dict[Any, Any], over: Callable[[Any], bool], capacity: int) -> int:
    """Drop from the front what is over, then what is too many; return how many of the latter."""
    while entries and over(entries[first := next(iter(entries))]):
        del entries[first]
    surplus = max(0, len(entries) - capacity)
    for _ in range(surplus):
        del entries[next(iter(entries))]
    return surplus
