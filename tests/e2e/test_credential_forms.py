"""A deployed flow, run by a real worker behind the gate, loses nothing: for each form and client version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.campaign import TASKS, Campaign, Case
from tests.support.credential_forms import (
    API_KEY,
    BASIC,
    BEARER_AUTH_STRING,
    CUSTOM_HEADERS,
    JWT_AUTH_STRING,
    URL_USERINFO,
)
from tests.support.machine_socket import STRANGER, closing, open_socket, send_token
from tests.support.metrics import websocket_refusals
from tests.support.parts import by_age
from tests.support.prefect import Client, Server
from tests.support.site import MACHINES, Site

CASES = [  # each version, each form and each algorithm once; `make client-matrix` runs all of them with all
    Case("3.9.1", API_KEY, "ES384"),
    Case("3.9.1", BEARER_AUTH_STRING, "EdDSA"),
    Case("3.8.2", JWT_AUTH_STRING, "PS256"),
    Case("3.6.29", CUSTOM_HEADERS, "RS256"),
    Case("3.6.11", BASIC),
    Case("3.4.8", URL_USERINFO, "ES256"),
    Case("3.2.15", API_KEY),
]


@pytest.mark.parametrize("case", by_age(*CASES, version=lambda case: case.version), ids=str)
def test_run_completes_and_everything_is_persisted(case: Case, campaign: Campaign, prefect_server: Server) -> None:
    outcome = campaign.outcome(case)

    assert outcome.worker_exit is None, outcome.worker_log
    assert outcome.state == "COMPLETED", outcome.worker_log
    assert (outcome.task_runs, outcome.logs) == (TASKS, TASKS), outcome.worker_log
    task_runs = prefect_server.of_flow_run("task_runs", outcome.flow_run)
    assert {row["name"].split("-")[0] for row in task_runs} == {"double"}
    artifacts = prefect_server.of_flow_run("artifacts", outcome.flow_run)
    assert [row["data"] for row in artifacts] == [f"{case}: {TASKS * (TASKS + 1)}"]
    messages = [row["message"] for row in prefect_server.of_flow_run("logs", outcome.flow_run)]
    assert f"proof of {case}" in messages


@pytest.mark.parametrize("version", ["3.4.8", "3.9.1"])
def test_a_client_without_a_credential_is_told_the_form_of_its_version(
    version: str, site: Site, tmp_path: Path
) -> None:
    client = Client(version, tmp_path, {"PREFECT_API_URL": f"{site.machines_url}/api"})
    with client.start("ls", "-m", "prefect", "work-pool", "ls") as command:
        command.wait(timeout=60)
    assert "Set PREFECT_CLIENT_CUSTOM_HEADERS to" in command.text()


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/api/events/in", "events/in"),
        ("/api/events/out", "events/out"),
        ("/api/logs/out", "logs/out"),
        ("/api/task_runs/subscriptions/scheduled", "task_runs/subscriptions/scheduled"),
        ("/api/work_pools/any/workers/connect", "work_pools/{name}/workers/connect"),
    ],
)
def test_refused_websocket_names_the_cure(path: str, endpoint: str, site: Site) -> None:
    before = websocket_refusals(site)[endpoint]

    with open_socket(site.port, MACHINES, path, source=STRANGER) as connection:
        send_token(connection, None)
        code, reason = closing(connection)

    assert code == 1008
    assert "set PREFECT_API_AUTH_STRING to" in reason  # WebSockets name no version, and this works on each
    assert websocket_refusals(site)[endpoint] > before
