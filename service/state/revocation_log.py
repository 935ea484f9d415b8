"""Revocations, shared by all replicas through the store.

Each revocation is appended to one log in the store, and all replicas follow this log. A replica that was disconnected
or has just started reads what it missed and writes what the log lacks, at most ``HEALED_WITHIN`` seconds after the
store can be reached again. The store determines the order. The replicas' clocks may differ by ``revocations.MARGIN``.
"""

import asyncio
import json
import logging
import time
from typing import Any, Final

from service.adapters.store import PAGE, TIMEOUT, Store, StoreUnavailable
from service.core.model import Session
from service.state.revocations import KEEP, Revocation, RevocationKey, Revocations, name_of_use

log = logging.getLogger(__name__)

WAIT: Final = 1.0  # seconds that a read waits for new entries; also the delay before a failed write is repeated
RETRY: Final = 0.5  # seconds between attempts to reach the store
START: Final = 3.0  # seconds that start() waits for the store
LOOK_AGAIN: Final = 60.0  # seconds; a store can lose the log (flush, fail-over) without closing connections
HEALED_WITHIN: Final = WAIT + RETRY + 2 * TIMEOUT
_LOG: Final = "revocations"


class RevocationLog:
    """Revokes sessions on this replica and, with a ``store``, on all replicas; follows what other replicas revoke."""

    def __init__(self, revocations: Revocations, store: Store | None) -> None:
        self.revocations = revocations
        self._store = store
        self._behind = True  # the log and the memory of this replica may differ
        self._position = "0"
        self._look_at = 0.0  # monotonic
        self._problem = "not asked yet"
        self._follower: asyncio.Task[None] | None = None

    async def revoke(self, *revocations: Revocation) -> bool:
        """Revoke sessions. It is in force on this replica before the first suspension.

        Returns False if the store cannot be reached: the other replicas learn of it once it can.
        """
        self.revocations.learn(revocations)
        if self._store is None:
            return True
        try:
            await self._store.append(_LOG, [_render(one) for one in revocations], KEEP)
        except StoreUnavailable as problem:
            self._fall_behind(problem)
            return False
        return True

    async def end(self, session: Session) -> bool:
        """Revoke one session; otherwise like ``revoke()``."""
        return await self.revoke(self.revocations.end_of(session))

    async def first_use(self, kind: str, token_id: str, seconds: float) -> bool:
        """Tell whether this token is used for the first time within ``seconds``. ``kind`` includes the issuer.

        While the store cannot be reached, each replica only knows the uses that it has seen itself.
        """
        name = name_of_use(kind, token_id)
        if not self.revocations.first_use(name, seconds):
            return False
        if self._store is None:
            return True
        try:
            return await self._store.claim(name, seconds)
        except StoreUnavailable as problem:
            self._fall_behind(problem)
            return True

    # what keeps replicas together -------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the log and follow it from then on. If the store cannot be reached, go on without it and keep trying."""
        if self._store is None:
            return
        try:
            async with asyncio.timeout(START):
                await self._catch_up(self._store)
        except (StoreUnavailable, TimeoutError) as problem:
            self._fall_behind(problem)
        self._follower = asyncio.create_task(self._follow(self._store), name="revocations")

    async def stop(self) -> None:
        """Stop following the log."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    def state(self) -> dict[str, Any]:
        """Return whether the store is connected, and the problem if it is not, for the readiness document."""
        if self._store is None:
            return {"state": "none", "problem": ""}
        return {"state": "unreachable" if self._problem else "connected", "problem": self._problem}

    async def _follow(self, store: Store) -> None:
        while True:
            try:
                if self._behind or time.monotonic() >= self._look_at:
                    await self._catch_up(store)
                self._take(await store.read(_LOG, self._position, wait=WAIT))
            except StoreUnavailable as problem:
                self._fall_behind(problem)
                await asyncio.sleep(RETRY)
            except Exception as problem:
                log.exception("following the revocations failed; it is tried again")
                self._fall_behind(problem)
                await asyncio.sleep(RETRY)

    async def _catch_up(self, store: Store) -> None:
        """Read the whole log, and append the revocations that it lacks."""
        self._behind = False  # a write that fails from here on is repeated next time
        self._position = "0"
        there: dict[RevocationKey, float] = {}
        while page := await store.read(_LOG, self._position):
            for one in self._take(page):
                there[one.key] = max(one.before, there.get(one.key, one.before))
        now = time.time()
        lacking = [one for one in self.revocations if there.get(one.key, -1.0) < one.before and one.until > now]
        for first in range(0, len(lacking), PAGE):
            await store.append(_LOG, [_render(one) for one in lacking[first : first + PAGE]], KEEP)
        self._look_at = time.monotonic() + LOOK_AGAIN
        if self._problem and not self._behind:
            log.info(
                "store: connected; %d revocations are known, %d of them were new there",
                len(self.revocations),
                len(lacking),
            )
            self._problem = ""

    def _take(self, page: list[tuple[str, str]]) -> list[Revocation]:
        entries = [entry for _, text in page if (entry := _parse(text, time.time() + KEEP)) is not None]
        if page:
            self._position = page[-1][0]
        self.revocations.learn(entries)
        return entries

    def _fall_behind(self, problem: Exception) -> None:
        self._behind = True
        text = str(problem) or type(problem).__name__
        if not self._problem or self._follower is None:
            log.warning("store: out of reach, what is revoked elsewhere is not known here: %s", text)
        self._problem = text


def _render(revocation: Revocation) -> str:
    return json.dumps([*revocation.key, revocation.before, revocation.until])


def _parse(text: str, latest: float) -> Revocation | None:
    """Return an entry of the log, or None if it cannot be read: it may be from a later version."""
    try:
        kind, issuer, name, before, until = json.loads(text)
        return Revocation((str(kind), str(issuer), str(name)), float(before), min(float(until), latest))
    except (ValueError, TypeError, RecursionError):
        return None
