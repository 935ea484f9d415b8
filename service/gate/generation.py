"""One configuration's life: its background work, and the calls that began with it."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Self

from service.gate.wiring import Wiring

RETIREMENT: Final = 60.0  # seconds that a replaced configuration waits for its last calls


class Generation:
    """A configuration at work, from its start until the last call that began with it has ended.

    ``with generation:`` keeps what a call uses from being stopped under it.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.ready = False
        self._tasks: list[asyncio.Task[None]] = []
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Read the users; begin to fetch keys, and do not wait for them.

        Raises UsersFileError where the users file cannot be used.
        """
        wiring = self.wiring
        if wiring.users is not None and wiring.settings.users is not None:
            await asyncio.to_thread(wiring.users.load)
            self._begin(wiring.users.watch(wiring.settings.users.reload), "users file")
        for issuer in wiring.all_issuers:
            self._begin(issuer.keys.keep_fresh(issuer.policy), f"keys of {issuer.trust.issuer}")
        await wiring.revocation_log.start()
        self.ready = True

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def take_effect(self) -> None:
        """Decide by this configuration from now on: nothing that was decided by another is remembered."""
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
        """Stop once the calls that began with it have been answered, or ``RETIREMENT`` seconds later."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), RETIREMENT)
        await self.stop()

    async def stop(self) -> None:
        """Stop what start() began; what was learnt stays in the state."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.wiring.revocation_log.stop()
        if self.wiring.store is not None:
            await self.wiring.store.close()
        if self.wiring.passwords is not None:
            self.wiring.passwords.close()
