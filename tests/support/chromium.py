"""Chromium as the tests start it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.support import without_netlink
from tests.support.parts import CHROMIUM_ENGINE, Part, require

ARGUMENTS = [
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    # Prefect's UI reports usage to a third party; this keeps it from doing so.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
]
TIMEOUT_MS = 60_000  # milliseconds; the limit on a busy machine, not what a page usually takes


def starter(folder: Path, part: Part = CHROMIUM_ENGINE) -> Path:
    """Return a script that starts Chromium without netlink, so that networks made by Docker do not disturb it."""
    program = require(part)
    path = folder / f"{program.name}-without-netlink"
    words = (sys.executable, "-P", without_netlink.__file__, str(program))  # -P: our modules hide no other
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path
