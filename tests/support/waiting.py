"""Waits for conditions with a time limit; finds free ports."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05
BELOW_EPHEMERAL = range(15_000, 32_000)  # systems give connections higher ones


def wait_until(
    condition: Callable[[], T | None], *, timeout: float, what: str, log: Callable[[], str] | None = None
) -> T:
    """Return the condition's first truthy value, or raise TimeoutError with `what` and `log` after some seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"not within {timeout:g} s: {what}; last seen: {value!r}\n{log() if log else ''}"
            raise TimeoutError(msg)
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free, and that no connection takes as its own before it is used."""
    while True:
        port = secrets.choice(BELOW_EPHEMERAL)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def accepts(port: int) -> bool:
    """Say whether something accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
