"""`prefect-forward-auth run`: what its child is given, and what becomes of signals and of its exit status."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.agent.conftest import Run, StartAgent
from tests.support.agent_gate import AgentGate
from tests.support.issuer import Issuer
from tests.support.parts import ROOT
from tests.support.processes import clean_environment

URL = "https://prefect-m2m.test/api"
BARE = ("--token-command", "echo good")


def test_the_child_gets_the_address_of_the_agent_in_place_of_credentials(start: StartAgent) -> None:
    given = {
        "PREFECT_API_URL": URL,
        "PREFECT_API_KEY": "old-key",
        "PREFECT_API_AUTH_STRING": "old:string",
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"AUTHORIZATION": "Bearer old", "X-Team": "data"}),
        "FORWARD_AUTH_AGENT_CLIENT_SECRET": "old-secret",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "NO_PROXY": "internal.test",
    }
    agent = start(*BARE, env=given)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/api", agent.url)
    assert agent.env["PREFECT_UI_URL"] == "https://prefect-m2m.test"
    assert json.loads(agent.env["PREFECT_CLIENT_CUSTOM_HEADERS"]) == {"X-Team": "data"}
    assert agent.env["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert agent.env["NO_PROXY"] == agent.env["no_proxy"] == "internal.test,127.0.0.1"
    assert "old" not in json.dumps(agent.env)


def test_a_ui_url_of_ones_own_is_kept(start: StartAgent) -> None:
    agent = start("--url", URL, *BARE, env={"PREFECT_UI_URL": "https://prefect.test"})
    assert agent.env["PREFECT_UI_URL"] == "https://prefect.test"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("no-such-command",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_the_exit_status_is_that_of_a_shell(run: Run, command: tuple[str, ...], status: int) -> None:
    assert run(command, "--url", URL, *BARE).wait(timeout=30) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_for_the_child(run: Run, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    waiting = f"trap 'echo has {name}; exit 3' {name}; echo begun; while :; do sleep 0.1; done"
    process = run(["bash", "-c", waiting], "--url", URL, *BARE)
    process.wait_for_line("(?m)^begun", timeout=30)
    subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    assert process.wait(timeout=30) == 3
    assert f"has {name}" in process.text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (BARE, "name the API behind the gate"),
        (("--url", "http://prefect.test/api", *BARE), "plain http would show the credential"),
        (("--url", "https://user:pw@prefect.test/api", *BARE), "a credential, a query or a fragment"),
        (("--url", "prefect.test", *BARE), "it has to begin with https://"),
        (("--url", URL), "name one source of tokens"),
        (("--url", URL, *BARE, "--token-file", "token"), "there are --token-file and --token-command"),
        (("--url", URL, "--token-url", "https://issuer.test/token", "--client-id", "worker"), "--client-secret-file"),
        (("--url", URL, "--issuer", "http://issuer.test", "--client-id", "worker"), "--issuer: plain http"),
        (("--url", URL, *BARE, "--ca-file", "/nowhere"), "the authorities of /nowhere cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_explained(run: Run, options: tuple[str, ...], told: str) -> None:
    process = run(["true"], *options)
    assert process.wait(timeout=30) == 2
    assert told in process.text()
    assert "pw" not in process.text()


def test_an_agent_without_a_command_prints_its_address(run: Run, gate: AgentGate) -> None:
    process = run((), "--url", f"{gate.url}/api", *BARE, "--listen", "127.0.0.1:0", "--path", "of-this-pod")
    url = process.wait_for_line(r"PREFECT_API_URL=(http://127\.0\.0\.1:\d+/of-this-pod/api)", timeout=30)[1]
    assert httpx.get(f"{url}/flows").status_code == 200
    process.stop()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--listen", "0.0.0.0:4201"), "--listen: an address of loopback"),
        (("--listen", "localhost"), "--listen: an address of loopback"),
        (("--path", "a/b"), "--path: up to 100"),
    ],
)
def test_an_agent_listens_at_loopback_alone(run: Run, options: tuple[str, ...], told: str) -> None:
    process = run((), "--url", URL, *BARE, *options)
    assert process.wait(timeout=30) == 2
    assert told in process.text()


def test_it_loads_nothing_of_the_service(issuer: Issuer, tmp_path: Path) -> None:
    """Whoever starts a worker waits for it: what the gate needs takes a second to load."""
    issuer.grant_to({"worker": "s3cret"})
    source = ["--url", URL, "--token-url", f"{issuer.url}/token", "--client-id", "worker"]
    argv = ["prefect-forward-auth", "run", *source, "--", "true"]
    code = (
        f"import sys; sys.argv = {argv!r}; from service.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    )
    env = clean_environment(tmp_path, {"FORWARD_AUTH_AGENT_CLIENT_SECRET": "s3cret"})
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"service.agent.command", "httpcore"} <= loaded
    of_the_gate = {
        "fastapi",
        "starlette",
        "pydantic",
        "uvicorn",
        "websockets",
        "jose",
        "cryptography",
        "httpx",
        "jinja2",
    }
    assert not of_the_gate & loaded
    floors = {name.split(".")[1] for name in loaded if name.startswith("service.")}
    assert floors == {"agent", "cli", "core"}


def test_every_option_is_documented(run: Run) -> None:
    process = run((), "--help")
    assert process.wait(timeout=30) == 0
    text = (ROOT / "docs" / "agent.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", process.text())) - {"--help"}
    assert len(options) > 10
    assert {option for option in options if f"`{option}" not in text} == set()


def test_the_command_lists_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "service", "--help"]
    shown = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search(r"^ +run +run a command, such as a Prefect worker", shown, re.MULTILINE)
