"""A worker behind the agent, with tokens that end many times while its flow runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from tests.support.openid import OpenIDProvider
from tests.support.parts import ROOT, SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Client, Server
from tests.support.processes import clean_environment
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


@pytest.mark.long
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


@pytest.mark.parametrize("found_by", ["--issuer", "--token-url"])
def test_the_service_itself_gives_the_agent_its_tokens(
    found_by: str, prefect_server: Server, service_settings: Mapping[str, str], tmp_path: Path
) -> None:
    """Through Traefik, from the token endpoint to Prefect's answer, and only while there is the machine."""
    require(TRAEFIK)
    site = Site(tmp_path / "site", prefect_server.url, service_settings)
    issuer, folder = f"{site.machines_url}/_auth", tmp_path / "tokens"
    site.settings = {
        **service_settings,
        "FORWARD_AUTH_TOKENS__FOLDER": str(folder),
        "FORWARD_AUTH_TOKENS__ISSUER": issuer,
        "FORWARD_AUTH_SESSION__KEYS": "",
    }
    secret = tmp_path / "client-secret"
    with site, Ledger(SQLite(folder), rotate=86_400) as ledger:
        secret.write_text(ledger.add_machine("worker", "worker"))
        url = issuer if found_by == "--issuer" else f"{issuer}/token"
        ask = "import os, urllib.request as r; print(r.urlopen(os.environ['PREFECT_API_URL'] + '/health').read())"
        argv: list[str | Path] = [sys.executable, "-m", "service", "run", "--url", f"{site.machines_url}/api"]
        argv += [found_by, url, "--client-id", "worker", "--client-secret-file", secret]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*argv, "--", sys.executable, "-c", ask],
                capture_output=True,
                text=True,
                check=False,
                timeout=90,
                cwd=ROOT,
                env=clean_environment(tmp_path / "home", {}),
            )

        done = run()
        assert (done.returncode, done.stdout.strip()) == (0, "b'true'"), done.stderr
        if found_by == "--token-url":  # once is enough: the agent tries for half a minute
            ledger.remove_machine("worker")
            asked = {"grant_type": "client_credentials"}
            pair = "worker", secret.read_text()
            wait_until(
                lambda: httpx.post(url, data=asked, auth=pair, timeout=30).status_code == 401,
                timeout=5,
                what="no more tokens for a machine that was removed",
            )
            refused = run()
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "401 (invalid_client)" in refused.stderr
