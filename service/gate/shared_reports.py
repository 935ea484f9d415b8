"""Which runs callers report on, shared by replicas through the store.

A flow run's requests and its WebSocket may reach different replicas. What is shared is only that a caller has named a
run, or a work pool, from an address: each fact is a name in the store, an HMAC under the session key. It holds no
credential and proves nobody. Who a caller is, and that its credential is valid, each replica has to see itself. So a
revocation, a change of users or an expiry needs nothing here.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from typing import Final

from service.adapters.store import Store, StoreUnavailable
from service.authn.seal import Seal
from service.state.reporters import KEEP_SECONDS, Report, Reporter, Reporters

log = logging.getLogger(__name__)

WRITE_SECONDS: Final = 0.25  # between two batches: an event waits longer than that for its run
AWAY_SECONDS: Final = 2.0  # that a store which did not answer is not asked again
_BATCH: Final = 500


class SharedReports:
    """Writes what this replica has noted, and looks up what others have."""

    def __init__(self, store: Store, seal: Seal, reporters: Reporters) -> None:
        self._store, self._seal, self._reporters = store, seal, reporters
        self._away_until = 0.0  # monotonic
        self._problem = ""

    async def write(self) -> None:
        """Write new reports in batches until cancelled. While the store is away, the latest ones are kept."""
        news = self._reporters.news
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            batch = [news.popleft() for _ in range(min(_BATCH, len(news)))]
            if not batch:
                continue
            try:
                await self._store.keep_all(map(self._name_of, batch), KEEP_SECONDS)
            except StoreUnavailable as problem:
                news.extend(batch)
                self._is_away(problem)
            except asyncio.CancelledError:  # the generation ends: the next one writes them
                news.extend(batch)
                raise
            else:
                self._is_there()

    async def learn(self, address: str, callers: Iterable[Reporter], runs: Iterable[str], pools: Iterable[str]) -> None:
        """Let these callers report what they have named at another replica. Without the store, nothing happens."""
        if time.monotonic() < self._away_until:
            return
        wanted = list(runs), list(pools)
        asked = [
            (caller, Report(address, *caller.who, kind, name))
            for caller in callers
            for kind, names in zip(("run", "pool"), wanted, strict=True)
            for name in names
        ]
        if not asked:
            return
        try:
            found = await self._store.kept([self._name_of(report) for _, report in asked])
        except StoreUnavailable as problem:
            self._is_away(problem)
            return
        self._is_there()
        for (caller, report), is_kept in zip(asked, found, strict=True):
            if is_kept:
                caller.learn(report)

    def _name_of(self, report: Report) -> str:
        return "reported:" + self._seal.name_of(json.dumps(["reported", *report]).encode())

    def _is_away(self, problem: StoreUnavailable) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        if not self._problem:
            log.warning("store: out of reach, runs that are reported elsewhere are not known here: %s", problem)
        self._problem = str(problem)

    def _is_there(self) -> None:
        if self._problem:
            log.info("store: connected; runs that are reported elsewhere are known again")
        self._problem = ""
