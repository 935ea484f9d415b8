"""Chromium as the tests start it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.support import undisturbed
from tests.support.parts import CHROMIUM_ENGINE, Part, require

ARGUMENTS = [
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    # Prefect's UI reports its use to a third party; from here it finds nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
]
PATIENCE = 60_000  # milliseconds; a bound for a busy machine, not what a page takes


def starter(folder: Path, part: Part = CHROMIUM_ENGINE) -> Path:
    """Return what starts Chromium so that it does not notice the networks that Docker makes beside."""
    program = require(part)
    path = folder / f"undisturbed-{program.name}"
    words = (sys.executable, undisturbed.__file__, str(program))
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path
