"""The demo's processes: started apart from the terminal, watched, and stopped in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from environments import UnusableError

GRACE_SECONDS = 10


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, *, status: int = 200) -> bool:
    """Say whether this URL answers with this status."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  our own loopback addresses
            return bool(answer.status == status)
    except urllib.error.HTTPError as refusal:
        return refusal.code == status
    except OSError:
        return False


class Part:
    """One program, in a process group of its own so that Ctrl-C reaches the demo alone."""

    def __init__(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as sink:
            self._popen = subprocess.Popen(
                argv,
                env={**os.environ, **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has gone, by itself or stopped."""
        return self._popen.poll() is not None

    def last_words(self, lines: int = 15) -> str:
        """Return how it ended and the end of its log."""
        words = "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return f"{self.name} ended with status {self._popen.poll()}. The end of {self.log}:\n{words}"

    def ask_to_stop(self) -> None:
        """Send SIGTERM; `stop` waits."""
        if not self.ended:
            self._popen.terminate()

    def stop(self) -> None:
        """Wait for the end, and force it, leftovers included, after the grace."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Parts:
    """All of them, in the order of their start."""

    def __init__(self, folder: Path, interrupted: Callable[[], bool]) -> None:
        self._folder = folder
        self._interrupted = interrupted
        self._parts: list[Part] = []

    def start(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> Part:
        """Start a program with a log of its own."""
        log = self._folder / f"{name.lower().replace(' ', '-')}.log"
        part = Part(name, argv, env=env, cwd=cwd, log=log)
        self._parts.append(part)
        return part

    def check(self) -> None:
        """Raise UnusableError with the last words of a part that has ended."""
        for part in self._parts:
            if part.ended:
                raise UnusableError(part.last_words())

    def wait_until(self, condition: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Return once the condition holds; raise if a part ends, time is up, or the demo is interrupted."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self._interrupted():
                raise KeyboardInterrupt
            self.check()
            if time.monotonic() > deadline:
                msg = f"{what}: not within {timeout:g} s. The logs are in {self._folder}."
                raise UnusableError(msg)
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop all, the last started first; nothing of theirs is left running."""
        for part in reversed(self._parts):
            part.ask_to_stop()
        for part in reversed(self._parts):
            part.stop()
        self._parts.clear()
