"""A real Redis as a process: on a free loopback port, with a password, and with nothing kept on disk."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Self

from tests.support.parts import REDIS, require
from tests.support.processes import Process, clean_environment
from tests.support.waiting import accepts, free_port, wait_until

PASSWORD = "store-password-never-shown"
PATIENT = 5.0  # seconds for a call to a store that is there, on however busy a machine


class RedisServer:
    """Serves inside the `with` block; `stop` and `start` play an outage on the same port, in which all data is lost."""

    def __init__(self, folder: Path) -> None:
        self._program = require(REDIS)
        self._folder = folder
        self._process: Process | None = None
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start empty, and return once it answers."""
        words = f"--bind 127.0.0.1 --port {self.port} --requirepass {PASSWORD} --save '' --appendonly no --dir"
        self._process = Process(
            "Redis",
            [self._program, *shlex.split(words), self._folder],
            env=clean_environment(self._folder / "home", {}),
            log=self._folder / "redis.log",
        )
        wait_until(lambda: accepts(self.port), timeout=10, what="Redis accepts connections", log=self._process.tail)

    def stop(self) -> None:
        """Go away as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def freeze(self) -> None:
        """Keep connections open and answer nothing, as behind a network that drops everything."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
