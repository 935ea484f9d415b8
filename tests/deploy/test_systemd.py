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

from tests.support.issuer import Issuer
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
AGENT = WORKER.with_name("agent.conf")
ETC = "/etc/prefect-forward-auth"
# No new rights to execute memory from here on, as MemoryDenyWriteExecute= has it (PR_SET_MDWE of Linux 6.3).
MDWE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
COMMANDS = (
    "/opt/prefect-forward-auth/bin/prefect-forward-auth",
    "/opt/prefect-worker/bin/prefect-forward-auth",
    "/opt/prefect-worker/bin/prefect",
)


def _analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [require(SYSTEMD), "--no-pager", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the units, their drop-in, and commands that exist here."""
    units = {file: file.name.replace("@", "@pool") for file in (SERVICE, SOCKET, WORKER)}
    units |= {HERE / "socket.conf": f"{SERVICE.name}.d/socket.conf"}
    units |= {AGENT: "prefect-worker@agent.service.d/agent.conf"}
    for file, name in units.items():
        text = file.read_text()
        for command in COMMANDS:
            text = text.replace(command, "/bin/true")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(tmp_path / "prefect-worker@pool.service", tmp_path / "prefect-worker@agent.service")
    return tmp_path


@pytest.mark.parametrize(
    "name", [SERVICE.name, SOCKET.name, "prefect-worker@pool.service", "prefect-worker@agent.service"]
)
def test_systemd_finds_no_fault(name: str, installed: Path) -> None:
    done = _analyze("verify", installed / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "most"), [(SERVICE.name, 15), ("prefect-worker@pool.service", 20), ("prefect-worker@agent.service", 20)]
)
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


def test_the_worker_s_agent_has_a_token_by_what_its_drop_in_says(tmp_path: Path) -> None:
    told = unit(AGENT)
    (credential,) = told["Service.LoadCredential"]
    (tmp_path / credential.partition(":")[0]).write_text("s3cret\n")
    issuer_url, secret = "https://idp.example.com", "FORWARD_AUTH_AGENT_CLIENT_SECRET_FILE"
    with Issuer() as issuer:
        issuer.grant_to({"prefect-worker": "s3cret"})
        lines = " ".join(told["Service.Environment"]).replace("%d", str(tmp_path)).replace(issuer_url, issuer.url)
        variables = dict(word.split("=", 1) for word in shlex.split(lines))
        assert variables[secret].startswith(str(tmp_path))
        reset, command = told["Service.ExecStart"]
        program, *words = shlex.split(command)
        assert (reset, program) == ("", "/opt/prefect-worker/bin/prefect-forward-auth")
        (as_without,) = unit(WORKER)["Service.ExecStart"]
        assert shlex.join(words[words.index("--") + 1 :]) == as_without, "the same worker as without the agent"
        argv = [sys.executable, "-m", "service", *words[: words.index("--") + 1], "printenv", "PREFECT_API_URL"]
        env = clean_environment(tmp_path / "home", {**variables, "PREFECT_API_URL": "https://prefect.test/api"})
        with Process("the agent", argv, env=env, log=tmp_path / "log", cwd=ROOT) as agent:
            assert agent.wait(timeout=30) == 0, agent.tail()
        assert "http://127.0.0.1:" in agent.text()
        assert [call.path for call in issuer.calls] == ["/token"]
