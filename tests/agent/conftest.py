from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.agent_gate import AgentGate
from tests.support.issuer import Issuer
from tests.support.parts import ROOT
from tests.support.processes import Process, clean_environment
from tests.support.waiting import wait_until

CHILD = """
import json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
path.with_suffix(".new").write_text(json.dumps(dict(os.environ)))
path.with_suffix(".new").rename(path)
time.sleep(600)
"""


class Agent:
    """An agent whose child has written its environment down, and sleeps."""

    def __init__(self, process: Process, env: Mapping[str, str]) -> None:
        self.process, self.env = process, env
        self.url = env["PREFECT_API_URL"]


class StartAgent(Protocol):
    """Starts an agent with these options and further variables; with a command, returns its process at once."""

    def __call__(self, *options: str, env: Mapping[str, str] | None = None) -> Agent: ...


class Run(Protocol):
    """Runs a command behind an agent, or an agent without any, and returns the process."""

    def __call__(self, command: Sequence[str], *options: str, env: Mapping[str, str] | None = None) -> Process: ...


@pytest.fixture
def gate() -> Iterator[AgentGate]:
    with AgentGate("good") as gate:
        yield gate


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with ExitStack() as stack:

        def run(command: Sequence[str], *options: str, env: Mapping[str, str] | None = None) -> Process:
            name, rest = ("run", ["--", *command]) if command else ("agent", [])
            argv = [sys.executable, "-m", "service", name, *options, *rest]
            home = clean_environment(tmp_path / "home", env or {})
            return stack.enter_context(Process("agent", argv, env=home, log=tmp_path / "agent.log", cwd=ROOT))

        yield run


@pytest.fixture
def start(run: Run, tmp_path: Path) -> StartAgent:
    def start(*options: str, env: Mapping[str, str] | None = None) -> Agent:
        seen = tmp_path / "env.json"
        process = run([sys.executable, "-c", CHILD, str(seen)], *options, env=env)

        def begun() -> bool:
            assert process.returncode is None, process.tail()
            return seen.exists()

        wait_until(begun, timeout=30, what="the child of the agent", log=process.tail)
        return Agent(process, json.loads(seen.read_text()))

    return start
