"""The units, as systemd itself judges them, and the service started with what its unit gives it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.parts import ROOT, STRACE, SYSTEMD, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import basic
from tests.support.site import PASSWORD, USER, add_user
from tests.support.systemd_files import unit
from tests.support.waiting import free_port, wait_until

HERE = ROOT / "deploy" / "systemd"
SERVICE = HERE / "prefect-forward-auth.service"
SOCKET = HERE / "prefect-forward-auth.socket"
WORKER = ROOT / "deploy" / "workers" / "process" / "prefect-worker@.service"
ETC = "/etc/prefect-forward-auth"
# No new rights to execute memory from here on, as MemoryDenyWriteExecute= has it (PR_SET_MDWE of Linux 6.3).
MDWE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"


def _analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [require(SYSTEMD), "--no-pager", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the units, their drop-in, and commands that exist here."""
    for file in (SERVICE, SOCKET, WORKER):
        text = file.read_text()
        for command in ("/opt/prefect-forward-auth/bin/prefect-forward-auth", "/opt/prefect-worker/bin/prefect"):
            text = text.replace(command, "/bin/true")
        (tmp_path / file.name.replace("@", "@pool")).write_text(text)
    drop_in = tmp_path / f"{SERVICE.name}.d"
    drop_in.mkdir()
    shutil.copy(HERE / "socket.conf", drop_in)
    return tmp_path


@pytest.mark.parametrize("name", [SERVICE.name, SOCKET.name, "prefect-worker@pool.service"])
def test_systemd_finds_no_fault(name: str, installed: Path) -> None:
    done = _analyze("verify", installed / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "most"), [(SERVICE.name, 15), ("prefect-worker@pool.service", 20)])
def test_little_is_exposed(name: str, most: int, installed: Path) -> None:
    """In tenths of systemd's own scale, which ends at 10; above 5 it says medium."""
    done = _analyze("security", "--offline=true", f"--threshold={most}", installed / name)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


class Installed:
    """The unit's command with its variables and credentials, in a folder instead of /etc and /run."""

    def __init__(self, folder: Path, *, socket: bool) -> None:
        told = unit(SERVICE)
        etc, credentials, run = folder / "etc", folder / "credentials", folder / "run"
        for needed in (etc / "secrets", credentials, run / "prefect-forward-auth"):
            needed.mkdir(parents=True)
        shutil.copy(HERE / "forward-auth.toml", etc)
        self.port = free_port()
        config = (etc / "forward-auth.toml").read_text().replace(ETC, str(etc)).replace("8080", str(self.port))
        (etc / "forward-auth.toml").write_text(config)
        add_user(etc / "users.htpasswd", USER, PASSWORD)
        (etc / "secrets" / "session.keys").write_text("k" * 44)
        for each in told["Service.LoadCredential"]:
            name, _, source = each.partition(":")
            shutil.copy(source.replace(ETC, str(etc)), credentials / name)
            (credentials / name).chmod(0o400)  # as systemd makes them
        lines = told["Service.Environment"] + (unit(HERE / "socket.conf")["Service.Environment"] if socket else [])
        places = {"%d": credentials, "%t": run, ETC: etc}
        variables = dict(line.split("=", 1) for line in lines)
        for shipped, here in places.items():
            variables = {name: value.replace(shipped, str(here)) for name, value in variables.items()}
        self.uds = variables.get("FORWARD_AUTH_UDS")
        self.env = clean_environment(folder / "home", variables)
        (command,) = told["Service.ExecStart"]
        program, *arguments = shlex.split(command)
        assert Path(program).name == "prefect-forward-auth"
        self.argv = [sys.executable, "-m", "service", *arguments]
        self.log = folder / "log"
        self.etc = etc
        self.process: Process

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=self.uds) if self.uds else None
        return httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{self.port}")

    def ready(self) -> bool:
        try:
            with self.client() as client:
                return client.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def status(self, user: str = USER) -> int:
        forwarded = {"Method": "GET", "Uri": "/api/hello", "Host": "m", "Proto": "https", "For": "192.0.2.1"}
        headers = {f"X-Forwarded-{name}": value for name, value in forwarded.items()} | dict([basic(user, PASSWORD)])
        with self.client() as client:
            return client.get("/forward-auth/api", headers=headers).status_code


@pytest.fixture(params=[False, True], ids=["port", "socket"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installed]:
    service = Installed(tmp_path, socket=request.param)
    with Process("the service", service.argv, env=service.env, log=service.log, cwd=ROOT) as process:
        wait_until(service.ready, timeout=20, what="the service ready", log=process.tail)
        service.process = process
        yield service


def test_it_starts_with_what_the_unit_gives_it(service: Installed) -> None:
    assert service.status() == 200


def test_a_reload_reads_the_configuration_again(service: Installed) -> None:
    add_user(service.etc / "others.htpasswd", "bob", PASSWORD)
    config = service.etc / "forward-auth.toml"
    config.write_text(config.read_text().replace("users.htpasswd", "others.htpasswd"))
    (command,) = unit(SERVICE)["Service.ExecReload"]
    subprocess.run(shlex.split(command.replace("$MAINPID", str(service.process.pid))), check=True)
    wait_until(lambda: service.status("bob") == 200, timeout=20, what="the other users", log=service.process.tail)
    assert service.status() == 401
    assert service.process.returncode is None


def allowed() -> set[str]:
    """Return the system calls that the unit's filter leaves, by systemd's own sets."""

    def of(name: str) -> set[str]:
        lines = {line.strip() for line in _analyze("syscall-filter", name).stdout.splitlines()[1:]}
        named = {line for line in lines if line and not line.startswith("#")}
        return {call for one in named for call in (of(one) if one.startswith("@") else {one})}

    add, take = unit(SERVICE)["Service.SystemCallFilter"]
    assert take.startswith("~")
    return of(add) - {call for name in take.removeprefix("~").split() for call in of(name)}


def test_the_filter_of_system_calls_leaves_what_it_needs(tmp_path: Path) -> None:
    """Seccomp itself takes systemd as the first process; here the calls are listed, and looked up."""
    service = Installed(tmp_path, socket=False)
    table = tmp_path / "calls"
    argv: list[str | Path] = [
        require(STRACE),
        "--follow-forks",
        "--summary-only",
        "--summary-columns=name",
        "--output",
        table,
    ]
    argv += [sys.executable, "-c", MDWE, *service.argv]
    with Process("the service", argv, env=service.env, log=service.log, cwd=ROOT) as process:
        wait_until(service.ready, timeout=60, what="the service ready", log=process.tail)
        assert service.status() == 200
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        process.wait(timeout=30)
    calls = {line.strip() for line in table.read_text().splitlines()} - {"syscall", "total", ""}
    calls = {call for call in calls if not call.startswith("-")}
    assert len(calls) > 30
    assert calls - allowed() == set()
