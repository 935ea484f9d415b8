"""A generation: one configuration at work, from its start to its last call."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Self

from service.gate.wiring import Wiring

RETIREMENT: Final = 60.0  # seconds that a replaced generation waits for its last calls


class Generation:
    """The background tasks of one wiring, and the calls that use it.

    Calls run inside ``with generation:``, so that nothing they use is stopped before they end.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.ready = False
        self._tasks: list[asyncio.Task[None]] = []
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Read the users file and the issued tokens, start the background tasks, and connect to the store.

        Does not wait for issuers' keys. Raises UsersFileError or LedgerError if one of the files cannot be used.
        """
        wiring = self.wiring
        if wiring.users is not None and wiring.settings.users is not None:
            await asyncio.to_thread(wiring.users.load)
            self._begin(wiring.users.watch(wiring.settings.users.reload), "users file")
        for issuer in wiring.all_issuers:
            self._begin(issuer.keys.keep_fresh(issuer.policy), f"keys of {issuer.trust.issuer}")
        if wiring.own_issuer is not None:
            await wiring.own_issuer.issued.start()
            self._begin(wiring.own_issuer.issued.follow(), "issued tokens")
        if wiring.shared_reports is not None and wiring.notes_reporters:
            self._begin(wiring.shared_reports.write(), "reported runs")
        if wiring.shared_sightings is not None:
            self._begin(wiring.shared_sightings.write(), "seen sessions")
        await wiring.revocation_log.start()
        self.ready = True

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def take_effect(self) -> None:
        """Apply the settings to the shared state: what is logged, and the limits of the cache of verdicts, emptied."""
        settings, state = self.wiring.settings, self.wiring.state
        state.telemetry.log(settings.log.decisions)
        state.verdicts.renew(seconds=settings.verdict_seconds, capacity=settings.verdict_count)

    def __enter__(self) -> Self:
        self._calls += 1
        self._idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def retire(self) -> None:
        """Stop when the last call has ended, or after ``RETIREMENT`` seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), RETIREMENT)
        await self.stop()

    async def stop(self) -> None:
        """Stop the background tasks and close connections to the store. The state of the process stays."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.wiring.revocation_log.stop()
        if self.wiring.own_issuer is not None:
            await self.wiring.own_issuer.issued.stop()
        if self.wiring.store is not None:
            await self.wiring.store.close()
        for hashing in (self.wiring.passwords, self.wiring.machines):
            if hashing is not None:
                hashing.close()
