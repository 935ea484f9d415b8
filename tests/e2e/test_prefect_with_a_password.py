"""A Prefect server with an auth string of its own: the proxy and the relay know it, and callers need not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.machine_socket import open_socket, send_token
from tests.support.parts import SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Server
from tests.support.raw_http import basic, send
from tests.support.site import MACHINES, PASSWORD, USER, Site

OWN = "gate:of-the-server-itself"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require(prefect_part(SERVER_VERSION))
    with Server(tmp_path_factory.mktemp("own") / "server", {"PREFECT_SERVER_API_AUTH_STRING": OWN}) as server:
        yield server


@pytest.fixture(scope="module")
def site(
    server: Server, service_settings: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    require(TRAEFIK)
    settings = {**service_settings, "FORWARD_AUTH_PREFECT__AUTH_STRING": OWN}
    folder = tmp_path_factory.mktemp("own-site")
    with Site(folder, server.url, settings, traefik_env={"GATE_PREFECT_AUTH_STRING": OWN}) as site:
        yield site


def test_nobody_gets_past_without_it(server: Server, site: Site) -> None:
    assert httpx.post(f"{server.url}/api/flows/filter", json={}).status_code == 401
    assert httpx.post(f"{server.url}/api/flows/filter", json={}, auth=(USER, PASSWORD)).status_code == 401
    user, _, password = OWN.partition(":")
    assert send(site.port, MACHINES, "/api/health", [basic(user, password)]).status == 401, "it is Prefect's, not ours"


def test_requests_of_callers_reach_prefect(site: Site) -> None:
    answer = send(site.port, MACHINES, "/api/flows/filter", [basic(USER, PASSWORD)], method="POST", body=b"{}")
    assert (answer.status, answer.body) == (200, b"[]"), answer


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_websockets_reach_prefect(path: str, site: Site) -> None:
    with open_socket(site.port, MACHINES, path) as connection:
        send_token(connection, f"{USER}:{PASSWORD}")
        assert json.loads(connection.recv(10)) == {"type": "auth_success"}
    with connect(
        f"ws://{MACHINES}:{site.port}{path}",
        subprotocols=[Subprotocol("prefect")],
        additional_headers=[basic(USER, PASSWORD)],
    ) as connection:
        send_token(connection, None)  # with PREFECT_CLIENT_CUSTOM_HEADERS, clients send no other token
        assert json.loads(connection.recv(10)) == {"type": "auth_success"}
