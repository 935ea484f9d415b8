"""Installs this project as its users do, with packages from the index that pip knows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.parts import ROOT, Part, prefect_part, require
from tests.support.processes import clean_environment

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "service")


def pip_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which pip knows where packages come from, and nothing else of ours."""
    told = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    return clean_environment(folder / "home", {**told, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def _reachable(folder: Path) -> Path | None:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "hatchling"]
    done = subprocess.run(argv, env=pip_environment(folder), capture_output=True, check=False, timeout=120)
    return None if done.returncode else folder


def require_index(folder: Path) -> None:
    """Skip the test if pip reaches no index of packages."""
    require(Part("a package index", lambda: _reachable(folder), "connect to the network, or set PIP_INDEX_URL"))


def clone_to(folder: Path) -> Path:
    """Return a copy of what the package is built from, in a new folder."""
    folder.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def run_in(venv: Path, folder: Path, *argv: str | Path) -> str:
    """Run a program of an environment to its good end, and return what it prints."""
    command = [venv / "bin" / argv[0], *argv[1:]]
    env = pip_environment(folder)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install_beside_prefect(version: str, folder: Path) -> Path:
    """Return a new environment with this project and the very packages of one version of Prefect.

    It sees the packages that were installed from that version's lock, and has those of its own that were missing or
    too old for this project.
    """
    python = require(prefect_part(version))
    require_index(folder)
    venv = folder / f"prefect-{version}"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, capture_output=True)
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "prefect.pth").write_text(f"{packages}\n")
    for program in python.parent.glob("uv*"):  # which Prefect 3.2 looks for beside its Python
        (venv / "bin" / program.name).symlink_to(program)
    run_in(venv, folder, "pip", "install", "--quiet", f"prefect=={version}", clone_to(folder / f"clone-{version}"))
    return venv
