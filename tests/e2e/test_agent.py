"""A worker behind the agent, with tokens that end many times while its flow runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.support.openid import OpenIDProvider
from tests.support.parts import ROOT, SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Client, Server
from tests.support.site import Site
from tests.support.waiting import wait_until

TOKEN_SECONDS = 9
TASKS = 20


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[OpenIDProvider]:
    folder = tmp_path / "provider"
    folder.mkdir()
    with OpenIDProvider(folder, token_seconds=TOKEN_SECONDS) as provider:
        yield provider


@pytest.fixture
def site(
    tmp_path: Path, prefect_server: Server, service_settings: Mapping[str, str], provider: OpenIDProvider
) -> Iterator[Site]:
    """Serve a site that accepts a token not a second longer than it lives."""
    require(TRAEFIK)
    settings = {
        **service_settings,
        "FORWARD_AUTH_ISSUER__URL": provider.url,
        "FORWARD_AUTH_ISSUER__LEEWAY": "0",
    }
    with Site(tmp_path / "site", prefect_server.url, settings) as site:
        yield site


def test_a_run_outlives_its_tokens(
    site: Site, prefect_server: Server, provider: OpenIDProvider, tmp_path: Path
) -> None:
    """A token from the start of the run is refused long before its end, and the worker is never answered 401."""
    prefect_server.create_pool("agent")
    deployment = prefect_server.create_deployment("agent", entrypoint="proof.py:proof", pool="agent")
    asked = {"parameters": {"marker": "agent", "tasks": TASKS, "pause": 1.1}}
    run = str(prefect_server.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"])
    first = {"authorization": f"Bearer {provider.token()}"}
    api = f"{site.machines_url}/api"
    assert httpx.get(f"{api}/health", headers=first).status_code == 200
    began = len(site.traefik.text())

    secret = tmp_path / "client-secret"
    secret.write_text("worker-secret\n")
    python = require(prefect_part(SERVER_VERSION))
    settings = {"PREFECT_API_URL": api, "PYTHONPATH": "", "FORWARD_AUTH_AGENT_SCOPE": "prefect:write"}
    worker = Client(SERVER_VERSION, tmp_path / "worker", settings)
    argv: list[str | Path] = [
        "-m",
        "service",
        "run",
        "--issuer",
        provider.url,
        "--client-id",
        "worker",
        "--client-secret-file",
        secret,
    ]
    command: list[str | Path] = [python, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "agent"]
    with worker.start_behind("worker", [sys.executable, *argv, "--", *command], ROOT) as process:

        def ended() -> bool:
            assert process.returncode is None, process.tail()
            return prefect_server.state_of(run) not in {"SCHEDULED", "PENDING", "RUNNING"}

        wait_until(ended, timeout=120, what="the end of the run", log=process.tail)
        assert " 401 " not in site.traefik.text()[began:]
        assert httpx.get(f"{api}/health", headers=first).status_code == 401
        assert prefect_server.state_of(run) == "COMPLETED", process.tail()

        def task_runs() -> int:
            rows = prefect_server.of_flow_run("task_runs", run)
            return [row["state_type"] for row in rows].count("COMPLETED")

        wait_until(lambda: task_runs() == TASKS, timeout=30, what=f"{TASKS} task runs, not {task_runs()}")
        messages = {row["message"] for row in prefect_server.of_flow_run("logs", run)}
        assert {f"doubling {number}" for number in range(1, TASKS + 1)} <= messages
    assert "401" not in process.text()
    assert provider.token()[:20] not in process.text()
