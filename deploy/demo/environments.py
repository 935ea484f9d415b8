"""The demo's Python environments: made once from locks, in a folder of their own, by pip alone."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPLETE = ".complete"


class UnusableError(Exception):
    """Something is lacking or has ended; the message says what, and what to do about it."""


def _run(argv: Sequence[str | Path], sink: IO[bytes], interrupted: Callable[[], bool]) -> int:
    """Return the exit status of a program, which Ctrl-C ends by way of the demo alone."""
    with subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True) as program:
        while True:
            try:
                return program.wait(0.2)
            except subprocess.TimeoutExpired:
                if interrupted():
                    os.killpg(program.pid, signal.SIGKILL)
                    raise KeyboardInterrupt from None


@dataclass(frozen=True)
class Environment:
    """One environment: where it is to be, and the lock that fills it."""

    folder: Path
    lock: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def fingerprint(self) -> str:
        """What it was made of: the lock, and this Python."""
        return hashlib.sha256(self.lock.read_bytes() + sys.version.encode()).hexdigest()

    def is_made(self) -> bool:
        """Say whether it holds what its lock says, for this Python."""
        marker = self.folder / COMPLETE
        return marker.exists() and marker.read_text() == self.fingerprint

    def make(self, interrupted: Callable[[], bool]) -> None:
        """Make it anew, and mark it complete at the very end."""
        shutil.rmtree(self.folder, ignore_errors=True)
        log = self.folder.with_suffix(".log")
        pip = [
            self.python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--no-deps",
            "--require-hashes",
        ]
        with log.open("wb") as sink:
            for argv in ([sys.executable, "-m", "venv", self.folder], [*pip, "-r", self.lock]):
                if _run(argv, sink, interrupted):
                    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    msg = f"{self.folder.name} could not be installed (all of it is in {log}):\n{end}"
                    raise UnusableError(msg)
        (self.folder / COMPLETE).write_text(self.fingerprint)


@dataclass(frozen=True)
class Environments:
    """The three programs of the demo, none in another's way."""

    service: Environment
    traefik: Environment
    prefect: Environment

    @classmethod
    def within(cls, folder: Path) -> Environments:
        """Lay the three out in a folder."""
        return cls(
            Environment(folder / "service", ROOT / "requirements.lock"),
            Environment(folder / "traefik", HERE / "traefik-3.7.15.txt"),
            Environment(folder / "prefect", HERE / "prefect-3.9.1.txt"),
        )

    def make(self, interrupted: Callable[[], bool]) -> None:
        """Make those that are missing or out of date, side by side."""
        missing = [one for one in (self.service, self.traefik, self.prefect) if not one.is_made()]
        if not missing:
            return
        names = ", ".join(one.folder.name for one in missing)
        print(f"Installing {names} into {self.service.folder.parent} (once; a minute or two) …", flush=True)
        with ThreadPoolExecutor() as pool:
            for outcome in [pool.submit(one.make, interrupted) for one in missing]:
                outcome.result()


def check_python() -> None:
    """Raise UnusableError if this Python cannot make environments, with the command that cures it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (3, 11) <= sys.version_info < (3, 14):
        msg = f"This is Python {version}; the demo needs 3.11, 3.12 or 3.13."
        raise UnusableError(msg)
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        msg = f"This Python cannot make environments. Cure: sudo apt-get install python{version}-venv"
        raise UnusableError(msg)
