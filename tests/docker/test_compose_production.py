"""The same project later on: PostgreSQL and TLS by what deploy/compose/README.md says, its users kept."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.certificates import write_certificate
from tests.support.compose import MACHINES, NAVIGATION, PEOPLE, Person, Stack
from tests.support.raw_http import basic

pytestmark = pytest.mark.long

IN_POSTGRES = ("exec", "-T", "postgres", "psql", "--username", "prefect", "--tuples-only", "--no-align", "--command")


def _in_sqlite(stack: Stack) -> bool:
    look = "import pathlib; print(pathlib.Path('/var/lib/prefect/prefect.db').exists())"
    return stack.compose("exec", "-T", "prefect", "python", "-c", look).strip() == "True"


def test_what_is_in_sqlite_is_not_left_behind(stack: Stack) -> None:
    done = stack.try_to(stack.docker, "compose", "--profile", "postgres", "up", "--detach", "--wait")
    assert done.returncode
    said = stack.compose("logs", "--no-log-prefix", "database")
    assert "it would not be moved" in said
    assert stack.inspect("postgres")["State"]["Status"] == "created"
    assert _in_sqlite(stack)


@pytest.fixture(scope="module")
def passwords(stack: Stack) -> dict[str, str]:
    return stack.passwords()


@pytest.fixture(scope="module")
def production(stack: Stack, passwords: dict[str, str]) -> Iterator[Stack]:
    """Take all containers away, and Prefect's data, and start again with TLS and PostgreSQL."""
    stack.down()
    stack.run(stack.docker, "volume", "rm", f"{stack.project}_prefect")
    (stack.folder / "tls").mkdir()
    certificate, key = write_certificate(stack.folder / "tls", PEOPLE, MACHINES)
    key.chmod(0o644)
    stack.add_file("deploy/compose/tls.yml")
    stack.environment["COMPOSE_PROFILES"] = "postgres"
    stack.trust = ssl.create_default_context(cafile=certificate)
    stack.paste("docker compose up -d --wait")
    yield stack
    stack.trust = None


@pytest.fixture(scope="module")
def worker(passwords: dict[str, str]) -> tuple[str, str]:
    return "worker", passwords["worker"]


def test_the_users_are_the_same_and_no_password_is_printed(production: Stack, worker: tuple[str, str]) -> None:
    assert production.passwords() == {}
    assert production.ask(MACHINES, "/api/health", worker).json() is True
    assert production.ask(MACHINES, "/api/health").status_code == 401


def test_people_sign_in_over_tls(production: Stack, passwords: dict[str, str]) -> None:
    person = Person(production)
    person.sign_in("admin", passwords["admin"])
    assert person.get("/api/health").json() is True


def test_in_clear_people_are_sent_to_tls_and_machines_nowhere(production: Stack, worker: tuple[str, str]) -> None:
    answer = production.send("GET", PEOPLE, "/v2/runs", clear=True, headers=NAVIGATION)
    assert (answer.status_code, answer.headers["location"]) == (301, f"https://{PEOPLE}/v2/runs")
    assert production.send("GET", MACHINES, "/api/health", clear=True, auth=worker).status_code == 404


def test_the_two_ports_of_traefik_are_the_only_ones(production: Stack) -> None:
    published = {name: ports for name, ports in production.published().items() if ports}
    assert published == {
        "traefik": {("127.0.0.1", str(production.port)), ("127.0.0.1", str(production.secure_port))},
    }


def test_websockets_pass_tls_and_the_gate(production: Stack, worker: tuple[str, str]) -> None:
    def greet(path: str, headers: dict[str, str]) -> None:
        with (
            socket.create_connection(("127.0.0.1", production.secure_port), timeout=10) as connection,
            connect(
                f"wss://{MACHINES}{path}",
                sock=connection,
                ssl=production.trust,
                subprotocols=[Subprotocol("prefect")],
                additional_headers=headers,
                proxy=None,
            ) as events,
        ):
            events.send(json.dumps({"type": "auth", "token": None}))
            assert json.loads(events.recv(timeout=10))["type"] == "auth_success"

    greet("/api/events/in", {"Authorization": basic(*worker)[1]})
    with pytest.raises(ConnectionClosed) as refused:
        greet("/api/logs/out", {})  # what the address proved over HTTP vouches only for the WebSockets of events
    assert refused.value.rcvd is not None
    assert refused.value.rcvd.code == 1008
    assert "PREFECT_API_AUTH_STRING" in refused.value.rcvd.reason


def test_runs_are_in_postgresql(production: Stack, worker: tuple[str, str]) -> None:
    flow = production.ask(MACHINES, "/api/flows/", worker, {"name": "hello"}).json()
    run = production.ask(MACHINES, "/api/flow_runs/", worker, {"flow_id": flow["id"], "name": "kept"})
    assert run.status_code == 201, run.text
    assert production.compose(*IN_POSTGRES, "select id from flow_run where name = 'kept'").strip() == run.json()["id"]
    assert not _in_sqlite(production)


def test_its_password_is_shown_nowhere(production: Stack) -> None:
    password = production.compose("exec", "-T", "postgres", "cat", "/var/lib/postgres-password/password")
    assert len(password) == 43
    containers = production.compose("ps", "--all", "--quiet").split()
    assert password not in production.run(production.docker, "inspect", *containers)
    assert password not in production.compose("logs")


def test_without_the_profile_the_server_begins_no_other_database(
    production: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(production.environment, "COMPOSE_PROFILES", "")
    look = """if True:
        from prefect.settings import get_current_settings
        print(get_current_settings().server.database.connection_url.get_secret_value().partition("://")[0])
    """
    told = production.compose("run", "--rm", "--no-deps", "-T", "prefect", "python", "-c", look)
    assert told.strip() == "postgresql+asyncpg"
