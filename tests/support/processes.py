"""Processes that tests start: each has its own log, and none outlives its test."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

# Every process that we start carries this variable, and hands it on to its children; that is how the ones that
# left their process group are still known to be ours.
MARK = "TEST_PROCESS_MARK"


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with nothing of the developer's own in it but PATH."""
    home.mkdir(parents=True, exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **extra}


def marked(mark: str) -> set[int]:
    """Return the ids of living processes that carry this mark in their environment."""
    needle = f"{MARK}={mark}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if needle in environment.split(b"\0"):
            found.add(int(folder.name))
    return found


class Startable(ABC):
    """What is started, and may be stopped and started again; it runs inside the `with` block."""

    @abstractmethod
    def start(self) -> None:
        """Start, and return when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop; do nothing where it does not run."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Process:
    """One started program; leaving the `with` block ends it and everything that it started."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.name = name
        self.log = log
        self.mark = secrets.token_hex(8)
        with log.open("ab") as sink:
            self._begin = sink.tell()  # one before it, on the same address, may have written to the same log
            self._popen = subprocess.Popen(
                [str(word) for word in argv],
                env={**env, MARK: self.mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._popen.poll()

    def text(self) -> str:
        """Return all that was written to the log so far, by those before this process, too."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the log, for the message of a failure."""
        return "\n".join(self.text().splitlines()[-lines:])

    def wait_for_line(self, pattern: str, *, timeout: float) -> re.Match[str]:
        """Return the first match of `pattern` in what this process wrote, failing early if it ends without one."""

        def look() -> re.Match[str] | None:
            ended = self.returncode is not None
            match = re.search(pattern, self.log.read_bytes()[self._begin :].decode(errors="replace"))
            if match is None and ended:
                msg = f"{self.name} ended with {self.returncode} before {pattern!r}:\n{self.tail()}"
                raise RuntimeError(msg)
            return match

        return wait_until(look, timeout=timeout, what=f"{pattern!r} in the log of {self.name}")

    def wait(self, *, timeout: float) -> int:
        """Return the exit status, or raise TimeoutError with the log's end."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            msg = f"{self.name} still runs after {timeout:g} s:\n{self.tail()}"
            raise TimeoutError(msg) from None

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(10)

    def stop(self, *, grace: float = 10) -> None:
        """Ask the process to end, and end it and its leftovers after `grace` seconds."""
        if self.returncode is None:
            self._popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace)
        for _ in range(100):  # killing one may let it start no other; a bound all the same
            leftovers = marked(self.mark)
            if self.returncode is None:
                leftovers.add(self.pid)
            if not leftovers:
                return
            for pid in leftovers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0.1)
        msg = f"{self.name} cannot be ended"
        raise RuntimeError(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
