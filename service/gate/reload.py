"""Reloads on SIGHUP: the whole configuration is read again, and takes effect as a whole or not at all."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from service.adapters.users_file import UsersFileError
from service.gate.generation import Generation
from service.gate.wiring import wire
from service.issuing.database import LedgerError
from service.settings import ConfigError, Settings
from service.telemetry.events import configure_logging

log = logging.getLogger(__name__)

FIXED: Final = (
    "host",
    "port",
    "uds",
    "workers",
    "shutdown_grace",
)  # a reload cannot change these

ReadSettings = Callable[[], Settings]


class Reloads:
    """Replaces the configuration under running calls.

    ``read`` returns the current settings. ``use`` lets a generation answer from the next call on. Calls that have begun
    end with the generation they began with. All generations share the state of the process.
    """

    def __init__(self, read: ReadSettings, use: Callable[[Generation], None]) -> None:
        self._read, self._use = read, use
        self._in_force: Generation | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def follow_sighup(self, generation: Generation) -> None:
        """Reload on each SIGHUP until cancelled. Signals that arrive during a reload cause one more reload."""
        if not hasattr(signal, "SIGHUP"):
            return
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        while True:
            await asked.wait()
            asked.clear()
            generation = await self.reload(generation)

    async def reload(self, before: Generation) -> Generation:
        """Return the generation in force afterwards: a new one or, if there are problems, the one before."""
        after: Generation | None = None
        try:
            settings = _with_fixed(await asyncio.to_thread(self._read), before.wiring.settings)
            after = Generation(await asyncio.to_thread(wire, settings, before.wiring.state))
            await after.start()
        except Exception as problem:  # noqa: BLE001 - whatever fails, the service goes on with the configuration that it has
            if after is not None:
                await after.stop()
            _refuse(before, problem)
            return before
        self._use(after)
        _report(after, before)
        self._in_force = after
        retiring = asyncio.create_task(self._retire(before))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return after

    async def _retire(self, generation: Generation) -> None:
        await generation.retire()
        if self._in_force is not None:
            wiring = self._in_force.wiring
            wiring.state.keys.keep_only([one.keys for one in wiring.all_issuers])


def _refuse(before: Generation, problem: Exception) -> None:
    """Log every problem, and that the configuration before stays in force."""
    if isinstance(problem, ConfigError):
        problems = problem.problems
    elif isinstance(problem, UsersFileError):
        problems = [f"users.file: {problem}"]
    elif isinstance(problem, LedgerError):
        problems = [f"tokens: {problem}"]
    else:
        problems = [f"failed with {type(problem).__name__}"]
        log.error("configuration: reading it failed", exc_info=problem)
    for one in problems:
        log.error("configuration: %s", one)
    log.error("configuration: NOT LOADED, the one before stays in force: %d problem(s)", len(problems))
    before.wiring.telemetry.reloaded("; ".join(problems))


def _report(after: Generation, before: Generation) -> None:
    """Set up logging by the new settings, and log which keys have changed."""
    new, old = after.wiring.settings, before.wiring.settings
    if new.log != old.log:
        configure_logging(new.log.level, new.log.format)
    changed = sorted(_changed(old.model_dump(), new.model_dump()))
    log.info("configuration: loaded, and in force; changed: %s", ", ".join(changed) or "nothing")
    after.wiring.telemetry.reloaded()


def _with_fixed(settings: Settings, before: Settings) -> Settings:
    """Return the settings with the ``FIXED`` ones of before, and log which of them have changed."""
    kept = {name: getattr(before, name) for name in FIXED if getattr(settings, name) != getattr(before, name)}
    for name in kept:
        log.warning("configuration: %s has changed, which takes a restart", name)
    return settings.model_copy(update=kept)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the keys whose values differ."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{at}{name}.")
        elif old != new:
            yield f"{at}{name}"
