"""What an attacker tries on the WebSockets of machines, through Traefik, in front of a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.support.issuer import Issuer
from tests.support.machine_socket import STRANGER, closing, open_socket, send_token
from tests.support.metrics import dropped_events
from tests.support.parts import TRAEFIK, require
from tests.support.prefect import Server
from tests.support.raw_http import UPGRADE, basic, bearer, send
from tests.support.site import MACHINES, Site, add_user
from tests.support.waiting import wait_until

EVENTS = "/api/events/in"
WORKER, ONLOOKER, PASSWORD = "etl", "onlooker", "correct horse battery staple"
ELSEWHERE = "127.0.0.8"
SILENT = 5_000


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer("RS256") as issuer:
        yield issuer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, prefect_server: Server, issuer: Issuer) -> Iterator[Site]:
    require(TRAEFIK)
    folder = tmp_path_factory.mktemp("attacked")
    users = folder / "users"
    for name in (WORKER, ONLOOKER):
        add_user(users, name, PASSWORD)
    settings = {
        "FORWARD_AUTH_USERS__FILE": str(users),
        "FORWARD_AUTH_USERS__ROLE": "viewer",
        "FORWARD_AUTH_GRANTS": json.dumps([{"issuer": "local", "users": WORKER, "roles": "worker"}]),
        "FORWARD_AUTH_ISSUER__URL": issuer.url,
        "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect",
        "FORWARD_AUTH_ISSUER__ROLE": "worker",
        "FORWARD_AUTH_ISSUER__LEEWAY": "0",
    }
    with Site(folder / "site", prefect_server.url, settings) as site:
        yield site


def event(name: str, resource: str, run: str) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "event": name,
        "resource": {"prefect.resource.id": resource},
        "related": [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        "payload": {},
    }


def of_a_task_run(run: str) -> dict[str, Any]:
    sent = event("prefect.task-run.Completed", f"prefect.task-run.{uuid.uuid4()}", run)
    return {**sent, "payload": {"task_run": {"name": "x"}, "validated_state": {"type": "COMPLETED"}}}


def report(site: Site, run: str, credential: tuple[str, str] | None = None, *, source: str = "127.0.0.1") -> None:
    """Name a run in a request, as its flow does; what Prefect says of it does not matter here."""
    sent = [credential or basic(WORKER, PASSWORD)]
    path = f"/api/flow_runs/{run}/set_state"
    answer = send(site.port, MACHINES, path, sent, method="POST", body=b"{}", source=source)
    assert answer.status not in {401, 403}, answer


def arrived(server: Server, *ids: str) -> set[str]:
    """Return which of the events the server has."""
    found = server.ask("POST", "/events/filter", {"filter": {"id": {"id": list(ids)}}})
    return {one["id"] for one in found["events"]}


# the first message ----------------------------------------------------------------------------------------


def _nothing(connection: ClientConnection) -> None:
    """Say nothing."""


def _late(connection: ClientConnection) -> None:
    """Send a valid credential, but only when the time is up."""
    time.sleep(11)
    try:
        send_token(connection, f"{WORKER}:{PASSWORD}")
    except ConnectionClosed:
        return


def _ten_megabytes(connection: ClientConnection) -> None:
    try:
        send_token(connection, "x" * 10_000_000)
    except ConnectionClosed:
        return


def _half_a_frame(connection: ClientConnection) -> None:
    connection.socket.sendall(bytes([0x81, 0xFE, 0x10, 0x00, 1, 2, 3, 4]) + b"{")  # 4,096 bytes are announced


def _wrong_password(connection: ClientConnection) -> None:
    send_token(connection, f"{WORKER}:wrong")


def _viewer(connection: ClientConnection) -> None:
    send_token(connection, f"{ONLOOKER}:{PASSWORD}")


FIRST_MESSAGES = [_nothing, _late, _ten_megabytes, _half_a_frame, _wrong_password, _viewer]


@pytest.fixture(scope="module")
def closings(site: Site) -> Iterator[dict[Callable[[ClientConnection], None], Future[int]]]:
    """Return the close code that each attack gets. All begin at once: most of them wait for the time to be up."""

    def attempt(attack: Callable[[ClientConnection], None]) -> int:
        with open_socket(site.port, MACHINES, EVENTS, source=STRANGER) as connection:
            attack(connection)
            return closing(connection)[0]

    with ThreadPoolExecutor(len(FIRST_MESSAGES)) as pool:
        yield {attack: pool.submit(attempt, attack) for attack in FIRST_MESSAGES}


@pytest.mark.parametrize("attack", FIRST_MESSAGES, ids=lambda attack: attack.__name__.strip("_"))
def test_a_first_message_that_proves_nothing(
    attack: Callable[[ClientConnection], None], closings: dict[Callable[[ClientConnection], None], Future[int]]
) -> None:
    cut = {1006, 1009}  # while the client still sends, it may not see the close frame
    assert closings[attack].result() in (cut if attack is _ten_megabytes else {1008})


def test_a_legacy_client_that_nobody_vouches_for(site: Site) -> None:
    with open_socket(site.port, MACHINES, EVENTS, source=STRANGER, legacy=True) as connection:
        assert closing(connection)[0] == 1008


def test_a_token_of_another_audience(site: Site, issuer: Issuer) -> None:
    with open_socket(site.port, MACHINES, EVENTS, source=STRANGER) as connection:
        send_token(connection, issuer.mint(aud="another"))
        code, reason = closing(connection)
    assert (code, "audience" in reason) == (1008, True)


# events without a credential ----------------------------------------------------------------------------------


def test_forged_events_do_not_arrive_and_the_worker_s_own_do(site: Site, prefect_server: Server) -> None:
    run, unreported, elsewhere = (str(uuid.uuid4()) for _ in range(3))
    report(site, run)
    report(site, elsewhere, source=ELSEWHERE)
    own = f"prefect.flow-run.{run}"
    forged = [
        of_a_task_run(unreported),
        of_a_task_run(elsewhere),
        event("prefect.flow-run.Failed", own, run),  # an automation may wait for this one
        event("PREFECT.flow-run.Failed", own, run),
        event("prefect.deployment.not-ready", f"prefect.deployment.{uuid.uuid4()}", run),
        event("prefect.automation.action.executed", f"prefect.automation.{uuid.uuid4()}", run),
    ]
    honest = of_a_task_run(run)
    with open_socket(site.port, MACHINES, EVENTS, legacy=True) as connection:
        for one in (*forged, honest):
            connection.send(json.dumps(one))
        wait_until(lambda: arrived(prefect_server, honest["id"]), timeout=20, what="the worker's own event")
        assert not arrived(prefect_server, *(one["id"] for one in forged))
    wait_until(lambda: dropped_events(site) == len(forged), timeout=10, what="the end of all forged events")
    assert not arrived(prefect_server, *(one["id"] for one in forged))


def test_nothing_arrives_after_the_end_of_a_token(site: Site, prefect_server: Server, issuer: Issuer) -> None:
    run, token = str(uuid.uuid4()), issuer.mint(exp=int(time.time()) + 5)
    source = "127.0.0.7"
    report(site, run, bearer(token), source=source)
    with (
        open_socket(site.port, MACHINES, EVENTS, source=source) as with_token,
        open_socket(site.port, MACHINES, EVENTS, source=source, legacy=True) as vouched,
    ):
        send_token(with_token, token)
        assert json.loads(with_token.recv(10)) == {"type": "auth_success"}
        for connection in (with_token, vouched):
            code, _ = closing(connection)
            assert code == 1012, "clients connect again, and are refused then"
    with open_socket(site.port, MACHINES, EVENTS, source=source) as again:
        send_token(again, token)
        assert closing(again)[0] == 1008
    late = of_a_task_run(run)
    with open_socket(site.port, MACHINES, EVENTS, source=source, legacy=True) as again:
        again.send(json.dumps(late))
        assert closing(again)[0] == 1008
    assert not arrived(prefect_server, late["id"])


# floods ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_thousands_of_silent_sockets_keep_nobody_out(site: Site, tmp_path: Path) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE)
    request = f"GET {EVENTS} HTTP/1.1\r\nHost: {MACHINES}\r\n{head}Sec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode()

    async def flood() -> tuple[int, float]:
        writers: list[asyncio.StreamWriter] = []

        async def silent(number: int) -> None:
            source = (f"127.0.{1 + number % 50}.9", 0)  # of 50 networks
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port, local_addr=source)
            writers.append(writer)
            writer.write(request)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")

        for start in range(0, SILENT, 250):
            await asyncio.gather(*map(silent, range(start, start + 250)))
        began = time.monotonic()
        await asyncio.to_thread(enter)
        took = time.monotonic() - began
        for writer in writers:
            writer.close()
        return len(writers), took

    def enter() -> None:
        with open_socket(site.port, MACHINES, EVENTS) as connection:
            send_token(connection, f"{WORKER}:{PASSWORD}")
            assert json.loads(connection.recv(10)) == {"type": "auth_success"}

    opened, took = asyncio.run(flood())
    assert opened == SILENT
    assert took < 5
