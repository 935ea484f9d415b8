"""README.md, "Install the command": its first line, run in a fresh environment, and what it installs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from service import __version__
from tests.support.package_index import clone_to, pip_environment, require_index
from tests.support.parts import ROOT
from tests.support.processes import Process, clean_environment
from tests.support.waiting import accepts, free_port, wait_until

pytestmark = pytest.mark.long

(BLOCK,) = re.findall(r"## Install the command\n.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line.partition("#")[0].strip() for line in BLOCK.splitlines()]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command that the README's first line installs from a clone."""
    folder = tmp_path_factory.mktemp("install")
    require_index(folder)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, capture_output=True)
    program, *arguments = LINES[0].split()
    argv = [folder / "venv" / "bin" / program, *arguments, "--quiet"]
    env, clone = pip_environment(folder), clone_to(folder / "clone")
    done = subprocess.run(argv, cwd=clone, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "venv" / "bin" / "prefect-forward-auth"


def run(command: Path, folder: Path, *arguments: str, given: str = "") -> str:
    argv: Sequence[str | Path] = [command, *arguments]
    env = clean_environment(folder / "home", {})
    done = subprocess.run(argv, cwd=folder, env=env, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_a_line_for_each_installer() -> None:
    assert LINES == ["pip install .", "pipx install .", "uv tool install .", "prefect-forward-auth --help"]


def test_the_command_is_there(command: Path, tmp_path: Path) -> None:
    assert run(command, tmp_path, "--version") == f"{__version__}\n"
    assert "config" in run(command, tmp_path, *LINES[-1].split()[1:])
    assert len(run(command, tmp_path, "routes").splitlines()) > 100


def test_what_is_installed_serves_pages(command: Path, tmp_path: Path) -> None:
    """Templates and styles are part of the package."""
    run(
        command,
        tmp_path,
        "users",
        "add",
        "alice",
        "--file",
        "users",
        "--cost",
        "4",
        given="correct horse battery staple",
    )
    port = free_port()
    settings = {
        "FORWARD_AUTH_USERS__FILE": "users",
        "FORWARD_AUTH_USERS__ROLE": "viewer",
        "FORWARD_AUTH_PORT": str(port),
    }
    env = clean_environment(tmp_path / "home", settings)
    with Process("the service", [command, "serve"], env=env, log=tmp_path / "log", cwd=tmp_path) as service:
        wait_until(lambda: accepts(port), timeout=20, what="the service", log=service.tail)
        forwarded = {"Method": "GET", "Uri": "/_auth/login", "Host": "localhost", "Proto": "http", "For": "127.0.0.1"}
        headers = {"Host": "localhost"} | {f"X-Forwarded-{name}": value for name, value in forwarded.items()}
        page = httpx.get(f"http://127.0.0.1:{port}/_auth/login", headers=headers)
        assert page.status_code == 200, page.text
        assert "<form" in page.text
