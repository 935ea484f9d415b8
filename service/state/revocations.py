"""Sessions that ended before their time, known to every replica.

A session lives in its cookie alone, so what ends early has to be remembered until it would have ended anyway. Looking
that up is local and never waits. With a store, each revocation is appended to one log, which all replicas follow: it
arrives at once, and a replica that was cut off, or has just started, reads what it missed, and writes what the others
lack, at most ``HEALED_WITHIN`` seconds after the store can be reached again. The order is the store's; the clocks of
replicas may differ by ``MARGIN``.

WITHOUT A STORE a restart forgets them all: a cookie that was copied and then signed out is good again until its own
end, unless the key that seals sessions is changed too.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from service.adapters.store import MAX_ENTRIES, PAGE, TIMEOUT, Store, StoreUnavailable
from service.core.model import Session

log = logging.getLogger(__name__)

MARGIN: Final = 300.0  # seconds by which the replicas' clocks may differ
MAX_USED: Final = 100_000
WAIT: Final = 1.0  # seconds a read stays open for news; also how soon a failed write is tried again
RETRY: Final = 0.5  # seconds
START: Final = 3.0  # seconds that a start waits for the store
LOOK_AGAIN: Final = 60.0  # seconds; a store may lose the log (a flush, a fail-over) and keep the connection
HEALED_WITHIN: Final = WAIT + RETRY + 2 * TIMEOUT
_LOG: Final = "revocations"
_SESSION, _SUBJECT, _PROVIDER_SESSION = "session", "subject", "sid"

Key = tuple[str, str, str]  # kind, issuer, and the name of the session or subject


class _Ended(NamedTuple):
    """Sessions begun at or before ``before`` have ended; at ``until`` none of them would be left."""

    before: float
    until: float


_NEVER: Final = _Ended(-1.0, -1.0)


class Revocations:
    """Remembers what ended, for ``keep`` seconds: the longest that a session may live by any configuration.

    A shorter one would not outlast a lifetime that is raised by a reload, or is another at a replica.

    Of more than ``MAX_ENTRIES`` the oldest goes first, with a warning. Only sign-outs of sessions that were proved, and
    logout tokens that were verified, add to them. ``on_change`` is called when something is newly revoked, here or
    elsewhere: what was proved before may no longer be believed.
    """

    def __init__(self, store: Store | None, *, keep: float, on_change: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._keep = keep + MARGIN
        self._on_change = on_change
        self._ended: dict[Key, _Ended] = {}  # the oldest first
        self._used: dict[str, float] = {}  # name → monotonic end, the oldest first
        self._behind = True  # the store's log and what is remembered here may differ
        self._after = "0"
        self._look_at = 0.0  # monotonic
        self._problem = "not asked yet"
        self._follower: asyncio.Task[None] | None = None

    def succeed(self, before: "Revocations") -> None:
        """Know all that was revoked so far, and what is revoked there by calls that are still under way."""
        self._ended, self._used = before._ended, before._used

    # what requests ask ------------------------------------------------------------------------------------

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

    # what ends sessions -----------------------------------------------------------------------------------

    async def revoke_session(self, session_id: str) -> bool:
        """End one session; as all that follow, it holds here when this is called, before it is awaited upon.

        Return False where the other replicas cannot be told now: they will be, once the store can be reached.
        """
        return await self._revoke((_SESSION, "", session_id), time.time())

    async def revoke_subject(self, issuer: str, subject: str, before: float) -> bool:
        """End every session of a person that began at or before a time, in seconds since the epoch."""
        return await self._revoke((_SUBJECT, issuer, subject), before)

    async def revoke_provider_session(self, issuer: str, sid: str, before: float) -> bool:
        """End every session of one of the provider's own (OIDC Back-Channel Logout §2.1) begun by then."""
        return await self._revoke((_PROVIDER_SESSION, issuer, sid), before)

    async def _revoke(self, key: Key, before: float) -> bool:
        ended = _Ended(before, time.time() + self._keep)
        if self._learn([(key, ended)]):
            self._on_change()
        if self._store is None:
            return True
        try:
            await self._store.append(_LOG, [_render(key, ended)], self._keep)
        except StoreUnavailable as problem:
            self._fall_behind(problem)
            return False
        return True

    async def first_use(self, kind: str, token_id: str, seconds: float) -> bool:
        """Tell whether this token is seen for the first time within ``seconds``; the issuer belongs into ``kind``.

        While the store cannot be reached, each replica knows only what it has seen itself.
        """
        name = "used:" + hashlib.sha256(json.dumps([kind, token_id]).encode()).hexdigest()
        now = time.monotonic()
        if self._used.get(name, now) > now:
            return False
        self._used.pop(name, None)
        self._used[name] = now + seconds
        _drop_oldest(self._used, lambda end: end <= now, MAX_USED)
        if self._store is None:
            return True
        try:
            return await self._store.claim(name, seconds)
        except StoreUnavailable as problem:
            self._fall_behind(problem)
            return True

    # what keeps replicas together -------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn what was revoked before, and follow from here on; without the store, go on without it."""
        if self._store is None:
            return
        try:
            async with asyncio.timeout(START):
                await self._catch_up(self._store)
        except (StoreUnavailable, TimeoutError) as problem:
            self._fall_behind(problem)
        self._follower = asyncio.create_task(self._follow(self._store), name="revocations")

    async def stop(self) -> None:
        """End the background work."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    def state(self) -> dict[str, Any]:
        """Return whether all that was revoked anywhere is known here, and if not, why not."""
        if self._store is None:
            return {"state": "none", "problem": ""}
        return {"state": "unreachable" if self._problem else "connected", "problem": self._problem}

    async def _follow(self, store: Store) -> None:
        while True:
            try:
                if self._behind or time.monotonic() >= self._look_at:
                    await self._catch_up(store)
                self._take(await store.read(_LOG, self._after, wait=WAIT))
            except StoreUnavailable as problem:
                self._fall_behind(problem)
                await asyncio.sleep(RETRY)
            except Exception as problem:
                log.exception("following the revocations failed; it is tried again")
                self._fall_behind(problem)
                await asyncio.sleep(RETRY)

    async def _catch_up(self, store: Store) -> None:
        """Read the log from its start, and append what is known here and does not stand there."""
        self._behind = False  # a write that fails from here on is for the next time
        self._after = "0"
        there: dict[Key, float] = {}
        while page := await store.read(_LOG, self._after):
            for key, ended in self._take(page):
                there[key] = max(ended.before, there.get(key, ended.before))
        now = time.time()
        lacking = [
            (key, ended)
            for key, ended in self._ended.items()
            if there.get(key, _NEVER.before) < ended.before and ended.until > now
        ]
        for first in range(0, len(lacking), PAGE):
            await store.append(_LOG, [_render(*one) for one in lacking[first : first + PAGE]], self._keep)
        self._look_at = time.monotonic() + LOOK_AGAIN
        if self._problem and not self._behind:
            log.info(
                "store: connected; %d revocations are known, %d of them were new there", len(self._ended), len(lacking)
            )
            self._problem = ""

    def _take(self, page: list[tuple[str, str]]) -> list[tuple[Key, _Ended]]:
        entries = [entry for position, text in page if (entry := _parse(text, time.time() + self._keep)) is not None]
        if page:
            self._after = page[-1][0]
        if self._learn(entries):
            self._on_change()
        return entries

    def _learn(self, entries: list[tuple[Key, _Ended]]) -> bool:
        """Remember what is news, and tell whether anything was."""
        now, news = time.time(), False
        for key, ended in entries:
            if ended.until > now and ended.before > self._ended.get(key, _NEVER).before:
                self._ended.pop(key, None)
                self._ended[key] = ended
                news = True
        if dropped := _drop_oldest(self._ended, lambda ended: ended.until <= now, MAX_ENTRIES):
            log.warning("more than %d revocations at once: %d of the oldest are forgotten", MAX_ENTRIES, dropped)
        return news

    def _fall_behind(self, problem: Exception) -> None:
        self._behind = True
        text = str(problem) or type(problem).__name__
        if not self._problem or self._follower is None:
            log.warning("store: out of reach, what is revoked elsewhere is not known here: %s", text)
        self._problem = text


def _drop_oldest(entries: dict[Any, Any], over: Callable[[Any], bool], capacity: int) -> int:
    """Drop from the front what is over, then what is too many; return how many of the latter."""
    while entries and over(entries[first := next(iter(entries))]):
        del entries[first]
    surplus = max(0, len(entries) - capacity)
    for _ in range(surplus):
        del entries[next(iter(entries))]
    return surplus


def _render(key: Key, ended: _Ended) -> str:
    return json.dumps([*key, *ended])


def _parse(text: str, latest: float) -> tuple[Key, _Ended] | None:
    """Return an entry of the log, or None for what is none: an entry of a later version stops nobody."""
    try:
        kind, issuer, name, before, until = json.loads(text)
        return (str(kind), str(issuer), str(name)), _Ended(float(before), min(float(until), latest))
    except (ValueError, TypeError, RecursionError):
        return None
