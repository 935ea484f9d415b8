"""SIGHUP: the configuration is read again as a whole, and takes effect as a whole, or not at all."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from service.adapters.users_file import UsersFileError
from service.gate.wiring import Wiring
from service.settings import ConfigError, Settings
from service.telemetry.events import configure_logging

log = logging.getLogger(__name__)

FIXED: Final = ("host", "port", "uds", "workers", "shutdown_grace")  # what the server was started with

Read = Callable[[], Settings]


class Reloads:
    """Puts one wiring in the place of another, without a call noticing.

    ``read`` returns the settings as they stand now, ``swap`` lets a wiring decide from the next call on; calls that
    have begun end with the one they began with.
    """

    def __init__(self, read: Read, swap: Callable[[Wiring], None]) -> None:
        self._read, self._swap = read, swap
        self._retiring: set[asyncio.Task[None]] = set()

    async def at_each_hangup(self, wiring: Wiring) -> None:
        """Follow SIGHUP for ever, where there is such a signal; those that come while one is followed are one."""
        if not hasattr(signal, "SIGHUP"):
            return
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        while True:
            await asked.wait()
            asked.clear()
            wiring = await self.reload(wiring)

    async def reload(self, before: Wiring) -> Wiring:
        """Return the wiring that is in force afterwards: a new one, or with every problem in the log the one before."""
        after = None
        try:
            settings = _with_fixed(await asyncio.to_thread(self._read), before.settings)
            after = await asyncio.to_thread(Wiring, settings, before)
            await after.start()
        except Exception as problem:  # noqa: BLE001 - whatever it is, the service goes on as it is
            if after is not None:
                await after.stop()
            _refuse(before, problem)
            return before
        self._swap(after)
        _take_effect(after, before)
        retiring = asyncio.create_task(before.retire())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return after


def _refuse(before: Wiring, problem: Exception) -> None:
    """Say loudly that everything stays as it was, and why."""
    if isinstance(problem, ConfigError):
        problems = problem.problems
    elif isinstance(problem, UsersFileError):
        problems = [f"users.file: {problem}"]
    else:
        problems = [f"failed with {type(problem).__name__}"]
        log.error("configuration: reading it failed", exc_info=problem)
    for one in problems:
        log.error("configuration: %s", one)
    log.error("configuration: NOT LOADED, the one before stays in force: %d problem(s)", len(problems))
    before.telemetry.reloaded("; ".join(problems))


def _take_effect(after: Wiring, before: Wiring) -> None:
    """Let go of what was decided by other settings, and say what has changed."""
    after.take_effect()
    if after.settings.log != before.settings.log:
        configure_logging(after.settings.log.level, after.settings.log.format)
    changed = sorted(_changed(before.settings.model_dump(), after.settings.model_dump()))
    log.info("configuration: loaded, and in force; changed: %s", ", ".join(changed) or "nothing")
    after.telemetry.reloaded()


def _with_fixed(settings: Settings, before: Settings) -> Settings:
    """Return the settings without what cannot change while the service runs, and say what that is."""
    kept = {name: getattr(before, name) for name in FIXED if getattr(settings, name) != getattr(before, name)}
    for name in kept:
        log.warning("configuration: %s has changed, which takes a restart", name)
    return settings.model_copy(update=kept)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the keys whose values differ, and no value."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{at}{name}.")
        elif old != new:
            yield f"{at}{name}"
