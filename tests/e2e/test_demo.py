"""The demo, taken at its word: what it prints is pasted into a shell, and nothing is left when it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import Code
from service.core.model import Challenge, Face, ForwardedRequest, Gate, Session
from service.core.problems import Cause, Problem
from service.telemetry.events import JSONFormatter, Telemetry
from tests.support.cookie_client import SAME_ORIGIN, CookieClient
from tests.support.parts import PARTS, ROOT, SERVER_VERSION, prefect_part, require
from tests.support.processes import Process, clean_environment, marked
from tests.support.waiting import free_port, wait_until

DEMO = ROOT / "deploy" / "demo" / "demo.py"
MORE = """\
[sign_in]
title = "Prefect of the demo"

[[grants]]
issuer = "local"
users = ["admin"]
roles = ["viewer"]
"""


def start_demo(folder: Path) -> Process:
    """Start the demo; its environments are cached between runs of the tests, and Prefect's is the tests' own."""
    prefect = require(prefect_part(SERVER_VERSION)).parents[1]
    cache = PARTS / "demo"
    cache.mkdir(exist_ok=True)
    if not (cache / "prefect").exists():
        (cache / "prefect").symlink_to(prefect)
    # pip may need to know where packages come from; nothing else of this environment is handed on.
    pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    env = clean_environment(folder / "home", pip)
    config, port = folder / "more.toml", str(free_port())
    config.write_text(MORE)
    argv: list[str | Path] = [sys.executable, DEMO, "--folder", cache, "--config", config, "--port", port]
    return Process("demo", argv, env=env, log=folder / "demo.log")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Serve the demo until its last test ends it."""
    with start_demo(tmp_path_factory.mktemp("demo")) as demo:
        demo.wait_for_line("Decisions as they are made:", timeout=240)
        yield demo


def printed(demo: Process, start: str, end: str) -> list[str]:
    """Return the commands (indented lines) that stand between two patterns."""
    match = re.search(rf"(?ms)^{start}.*?$(.*?)^(?:{end})", demo.text())
    assert match is not None, demo.text()
    return [line.strip() for line in match[1].splitlines() if line.startswith("  ")]


def shell(demo: Process, folder: Path, lines: list[str]) -> str:
    """Run lines in a shell that knows nothing else, and return what they wrote."""
    env = clean_environment(folder / "home", {})
    script = "\n".join(lines)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def person(demo: Process) -> CookieClient:
    """Sign in as the demo says."""
    printed = demo.wait_for_line(r"(?s)http://localhost:(\d+)\n  sign in as (\w+), with the password (\S+)", timeout=1)
    person = CookieClient(int(printed[1]))
    assert person.sign_in(user=printed[2], password=printed[3]).status == 303
    return person


def test_more_configuration_is_added_to_the_demos_own(person: CookieClient) -> None:
    assert b"Prefect of the demo" in person.send("/_auth/login").body
    me = json.loads(person.send("/_auth/me", [("Accept", "application/json")]).body)
    assert me["roles"] == ["admin", "viewer"]


def ask(person: CookieClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask Prefect's API as its UI does."""
    headers = [SAME_ORIGIN, ("Content-Type", "application/json")]
    answer = person.send(f"/api{path}", headers, method="POST", body=json.dumps(body).encode())
    assert answer.status == 200, answer
    return list(json.loads(answer.body))


def completed_task_runs(person: CookieClient, flow_run_name: str) -> list[dict[str, Any]]:
    """Return the task runs of a flow run once both are persisted as completed."""
    condition = {"flow_runs": {"name": {"any_": [flow_run_name]}}}

    def both() -> list[dict[str, Any]]:
        rows = ask(person, "/task_runs/filter", condition)
        return rows if [row["state_type"] for row in rows] == ["COMPLETED"] * 2 else []

    return wait_until(both, timeout=30, what=f"both task runs of {flow_run_name}")


CREDENTIALS = {"basic": "# 1", "jwt-header": "# 2", "jwt-url": "# 3"}


@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS)
def test_printed_commands_run_a_flow(credential: str, demo: Process, person: CookieClient, tmp_path: Path) -> None:
    export = printed(demo, credential, "#|Then run")
    flow = printed(demo, "Then run a flow", "Or deploy")

    output = shell(demo, tmp_path, [*export, *flow])

    name = re.search(r"Flow run '([\w-]+)' - Finished in state Completed", output)
    assert name, output
    assert completed_task_runs(person, name[1])
    assert re.search(r"200 allowed +demo-worker +\w+ +/api/events/in", demo.text()), "the decisions are streamed"


@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS)
def test_the_doctor_finds_nothing_wrong_with_what_is_printed(credential: str, demo: Process, tmp_path: Path) -> None:
    export = printed(demo, credential, "#|Then run")
    (flow,) = printed(demo, "Then run a flow", "Or deploy")
    python = flow.split()[0]
    told = shell(demo, tmp_path, [*export, f"cd {ROOT}", f"{sys.executable} -m service doctor --python {python}"])
    assert f"Prefect {SERVER_VERSION} carries" in told
    assert "A WebSocket for events reaches Prefect" in told
    assert "change " not in told


def test_printed_commands_run_a_deployment_by_a_worker(demo: Process, person: CookieClient, tmp_path: Path) -> None:
    export = printed(demo, "# 2", "#|Then run")
    create, deploy, worker = printed(demo, "Or deploy", "See the runs")

    output = shell(demo, tmp_path, [*export, create, deploy])

    name = re.search(r"queued flow run ([\w-]+)", output)
    assert name, output
    script = "\n".join([*export, f"exec {worker}"])
    env = clean_environment(tmp_path / "home", {})
    with Process("worker", ["bash", "-euc", script], env=env, log=tmp_path / "worker.log", cwd=tmp_path) as running:
        running.wait_for_line(f"Flow run '{name[1]}' - Finished in state Completed", timeout=60)
        assert completed_task_runs(person, name[1])


@pytest.mark.usefixtures("person")
def test_the_demo_does_not_tell_of_its_own_questions(demo: Process) -> None:
    """It asks whether all is up before anybody can have sent anything."""
    demo.wait_for_line(r"signed in: admin", timeout=5)
    before = demo.text().partition("Decisions as they are made:")[2].partition("signed in: admin")[0]
    assert not re.search(r"401 refused +credential_required +GET +/api/health", before)


def test_printed_command_of_the_service(demo: Process, tmp_path: Path) -> None:
    (command,) = printed(demo, "Ask the service", "Logs are in")
    output = shell(demo, tmp_path, [f"{command} || true"])
    assert "POST /api/deployments/ needs 'deploy'" in output
    assert output.startswith("refused   403")
    program = command.split()[0]
    assert Path(program).name == "prefect-forward-auth"
    assert shell(demo, tmp_path, [f"{program} --version"]).strip()


def test_a_person_sees_the_ui_and_nobody_else_does(demo: Process, person: CookieClient) -> None:
    assert b"<title>Prefect" in person.send("/v2/").body
    assert CookieClient(person.port).send("/v2/").status == 401
    demo.wait_for_line(r"signed in: admin", timeout=5)
    demo.wait_for_line(r"200 allowed +admin +GET +/v2/", timeout=5)


def test_ctrl_c_leaves_nothing_running(demo: Process) -> None:
    assert len(marked(demo.mark)) > 4, "the demo, the issuer, Prefect, the service, Traefik"
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(timeout=60) == 0, demo.tail()
    assert marked(demo.mark) == set()
    assert demo.text().endswith("Stopped.\n")


def test_a_part_that_dies_is_named_and_the_others_stop(tmp_path: Path) -> None:
    with start_demo(tmp_path) as demo:
        issuer = wait_until(lambda: running(demo, "issuer.py"), timeout=120, what="the demo's issuer")
        os.kill(issuer, signal.SIGKILL)
        assert demo.wait(timeout=60) == 1, demo.tail()
        assert "issuer ended with status -9" in demo.text()
        assert marked(demo.mark) == set()


def running(demo: Process, word: str) -> int | None:
    """Return the id of the demo's process that has this in its command line."""
    for pid in marked(demo.mark):
        try:
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        except OSError:
            continue
    return None


def of_the_demo(module: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module of the demo, which is no package."""
    spec = importlib.util.spec_from_file_location(f"demo_{module}", DEMO.parent / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"demo_{module}", loaded)
    spec.loader.exec_module(loaded)
    return loaded


PERSON = Session("id", "local", "admin", "admin", "", (), {}, 0, 0, 0)
REQUEST = ForwardedRequest("GET", "wss", "prefect.example", "/api/events/in", "", "192.0.2.1")
NOBODY = Challenge(401, Code.CREDENTIAL_REQUIRED, Cause(Problem.NO_CREDENTIAL, {}))


@pytest.mark.parametrize(
    ("happens", "lines"),
    [
        (lambda told: told.guess_refused("192.0.2.1"), [r"warning: too many .* address \(client 192.0.2.1\)"]),
        (lambda told: told.unknown_route(REQUEST), [r"warning: a route .* \(route GET /api/events/in\)"]),
        (
            lambda told: told.decided(NOBODY, REQUEST, face=Face.FORWARD_AUTH, gate=Gate.API, request_id="", peer=""),
            [
                r"warning: a Prefect client opens .* \(client 192.0.2.1, endpoint events/in\)",
                r"401 refused  credential_required  GET    /api/events/in",
            ],
        ),
        (lambda told: told.signed_in(PERSON, "192.0.2.1"), ["    signed in: admin"]),
        (lambda told: told.signed_out(PERSON), ["    signed out: admin"]),
    ],
    ids=["guesses", "route", "websocket", "sign-in", "sign-out"],
)
def test_what_the_service_logs_becomes_lines_that_end(
    happens: Callable[[Telemetry], None],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decisions = of_the_demo("decisions", monkeypatch)
    with caplog.at_level("INFO"):
        happens(Telemetry())
    told = [decisions.readable(json.loads(JSONFormatter().format(record))) for record in caplog.records]
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d  {expected}", line), line


def test_python_without_venv_is_told_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian and Ubuntu leave ensurepip out of python3; the one line that cures it is printed."""
    environments = of_the_demo("environments", monkeypatch)
    environments.check_python()

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(environments.UnusableError, match=r"apt-get install python3\.\d+-venv"):
        environments.check_python()
