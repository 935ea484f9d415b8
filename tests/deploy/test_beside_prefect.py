"""docs/agent.md, "Install it": in one environment with the oldest and with the newest Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent_gate import AgentGate
from tests.support.package_index import install_beside_prefect, run_in
from tests.support.parts import ROOT, prefect_part, require

pytestmark = pytest.mark.long

OLDEST, NEWEST = "3.2.15", "3.9.1"
ASK = """
import asyncio, prefect
from prefect.client.orchestration import get_client
async def ask():
    async with get_client() as client:
        print(prefect.__version__, (await client.hello()).text)
asyncio.run(ask())
"""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_one_environment_holds_prefect_and_the_agent(version: str, tmp_path: Path) -> None:
    venv = install_beside_prefect(version, tmp_path)
    assert "No broken requirements" in run_in(venv, tmp_path, "pip", "check")
    with AgentGate("good") as gate:
        source = ("--url", f"{gate.url}/api", "--token-command", "echo good")
        child = (venv / "bin" / "python", "-W", "ignore", "-c", ASK)
        told, _, echo = run_in(venv, tmp_path, "prefect-forward-auth", "run", *source, "--", *child).partition(" ")
    assert told == version
    assert dict(json.loads(echo)["headers"])["authorization"] == "Bearer good"


def test_the_relay_works_with_the_oldest_websockets(tmp_path: Path) -> None:
    """An environment with Prefect 3.2 has websockets 15, where the limit of a message has another name."""
    (packages,) = require(prefect_part(OLDEST)).parent.parent.glob("lib/python*/site-packages")
    (tmp_path / "websockets").symlink_to(packages / "websockets")
    argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/web/test_relay.py", "-k", "ten_megabytes or ping"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
