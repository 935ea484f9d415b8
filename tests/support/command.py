"""Runs the command as a process with an environment of its own.

The process is forked from one that has loaded the command already: that takes a tenth of the time of a new Python.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.parts import ROOT

COMMAND = [sys.executable, "-m", "service"]
_LOADED = ["config", "doctor", "machines", "roles", "serve", "tokens", "users"]
_FORKS = multiprocessing.get_context("forkserver")
if not any(name.startswith("COVERAGE_PROCESS_") for name in os.environ):  # what is loaded is not measured any more
    _FORKS.set_forkserver_preload([*(f"service.cli.{name}" for name in _LOADED), "service.gate.server", __name__])


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a command: these variables and nothing that this machine has set."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}


def run(
    *arguments: str, stdin: str = "", cwd: Path = ROOT, timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return its exit code and what it wrote. ``timeout`` is in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder) / name for name in ("stdin", "stdout", "stderr"))
        given.write_text(stdin)
        process = _FORKS.Process(target=_be, args=(arguments, cwd, environment(**variables), given, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _be(arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], given: Path, out: Path, err: Path) -> None:
    """Be the command in this process."""
    from service.cli.main import main  # noqa: PLC0415 - loaded in the process that forks

    for descriptor, path, mode in ((0, given, "rb"), (1, out, "wb"), (2, err, "wb")):
        with path.open(mode) as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has closed it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    main(list(arguments))
