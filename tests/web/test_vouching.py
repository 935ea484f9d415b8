"""Clients without any credential on a WebSocket: what their address proves over HTTP vouches for them."""

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from service.adapters.users_file import hash_password
from service.gate import held_events, vouching
from service.state import reporters
from tests.support.issuer import Issuer as Provider
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import EVENTS, Gate, closed, eventually, served
from tests.web.conftest import Caller, basic

pytestmark = pytest.mark.anyio
HOME, ELSEWHERE = "203.0.113.7", "203.0.113.8"
OUT = "/api/events/out"
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/client-events.txt").read_text().splitlines()
    if line.startswith("{")
]


def _is_of_served_task(recorded: dict[str, Any]) -> bool:
    event = recorded["event"]
    of_flow = any(one["prefect.resource.role"] == "flow-run" for one in event["related"])
    return event["event"].startswith("prefect.task-run.") and not of_flow and bool(recorded["reported"])


async def report(
    gate: Gate, credential: str, run: str, *, address: str = HOME, route: str = "POST /api/flow_runs/{}/set_state"
) -> None:
    """Let a caller name a run over HTTP, as Traefik asks about it."""
    method, _, path = route.format(run).partition(" ")
    call = Caller(gate.app)
    answer = await call(credential, X_Forwarded_For=address, X_Forwarded_Method=method, X_Forwarded_Uri=path)
    assert answer.status == 200


def event(run: str, name: str = "prefect.task-run.Completed", **changes: Any) -> str:
    task_run = str(uuid.uuid4())
    content = {
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "event": name,
        "resource": {"prefect.resource.id": f"prefect.task-run.{task_run}"},
        "related": [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        "payload": {"task_run": {}, "validated_state": {"type": "COMPLETED"}},
        "id": str(uuid.uuid4()),
    }
    return json.dumps({**content, **changes})


async def arrived(prefect: PrefectSockets, sent: str) -> bool:
    async def there() -> None:
        while not any(sent in one.messages for one in prefect.opened):
            await asyncio.sleep(0.02)

    try:
        await asyncio.wait_for(there(), 2.5)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", ["jwt", "password"])
async def test_events_of_a_run_that_its_address_reports_on_pass(
    *, legacy: bool, kind: str, gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    credential = f"Bearer {provider.mint()}" if kind == "jwt" else basic("etl:secret")
    run = str(uuid.uuid4())
    await report(gate, credential, run)
    async with gate.connect(EVENTS, legacy=legacy) as socket:
        if not legacy:
            await socket.send('{"type": "auth", "token": null}')
            assert json.loads(await socket.recv()) == {"type": "auth_success"}
        sent = event(run)
        await socket.send(sent)
        assert await arrived(prefect, sent)
    one = prefect.opened[0]
    assert one.subprotocol == (None if legacy else "prefect")
    assert one.headers["x-auth-request-user"] == ("svc" if kind == "jwt" else "etl")


async def test_a_silent_socket_stays_open(gate: Gate, prefect: PrefectSockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gate.relay.VOUCHED_CHECK_SECONDS", 0.1)
    run = str(uuid.uuid4())
    await report(gate, basic("etl:secret"), run)
    async with gate.connect(EVENTS, legacy=True) as socket:
        await asyncio.sleep(2.5)  # several looks at who vouches for it
        sent = event(run)
        await socket.send(sent)
        assert await arrived(prefect, sent)


async def test_an_event_waits_for_the_request_that_names_its_run(gate: Gate, prefect: PrefectSockets) -> None:
    run, later = str(uuid.uuid4()), str(uuid.uuid4())
    await report(gate, basic("etl:secret"), run)
    async with gate.connect(EVENTS, legacy=True) as socket:
        sent = event(later)
        await socket.send(sent)
        await asyncio.sleep(0.3)
        assert sent not in prefect.opened[0].messages
        await report(gate, basic("etl:secret"), later)
        assert await arrived(prefect, sent)


async def test_an_event_waits_for_as_long_as_it_takes_and_holds_nothing_else_up(
    gate: Gate, prefect: PrefectSockets
) -> None:
    """After a restart, a flow run may not name itself in a request before it ends."""
    run, silent = str(uuid.uuid4()), str(uuid.uuid4())
    await report(gate, basic("etl:secret"), run)
    held, passing = event(silent), event(run)
    async with gate.connect(EVENTS, legacy=True) as socket:
        await socket.send(held)
        await socket.send(passing)
        assert await arrived(prefect, passing)
        await asyncio.sleep(held_events.LAST_SECONDS + 0.5)
        assert prefect.opened[0].messages == [passing]
        await report(gate, basic("etl:secret"), silent)
        assert await arrived(prefect, held)
    assert not gate.app.state.telemetry.events_dropped


async def test_an_event_passes_that_is_held_when_its_client_leaves(gate: Gate, prefect: PrefectSockets) -> None:
    run, ending = str(uuid.uuid4()), str(uuid.uuid4())
    await report(gate, basic("etl:secret"), run)
    async with gate.connect(EVENTS, legacy=True) as socket:
        sent = event(ending)
        await socket.send(sent)
    await report(gate, basic("etl:secret"), ending)
    assert await arrived(prefect, sent)


async def test_a_socket_waits_for_the_request_that_vouches_for_it(gate: Gate, prefect: PrefectSockets) -> None:
    """After a restart, a client may open its WebSocket again before it sends a request."""
    run = str(uuid.uuid4())
    async with gate.connect(EVENTS, legacy=True) as socket:
        sent = event(run)
        await socket.send(sent)
        await asyncio.sleep(0.3)
        assert not prefect.opened
        await report(gate, basic("etl:secret"), run)
        assert await arrived(prefect, sent)


@pytest.mark.parametrize("bound", ["MAX_EVENTS", "MAX_BYTES", "MAX_EVENTS_OF_ALL", "MAX_BYTES_OF_ALL"])
async def test_what_is_held_is_bounded_and_the_oldest_gives_way(
    bound: str, gate: Gate, prefect: PrefectSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    runs = [str(uuid.uuid4()) for _ in range(3)]
    events = [event(run) for run in runs]
    monkeypatch.setattr(held_events, bound, 2 if "EVENTS" in bound else 2 * len(events[0]) + 10)
    async with gate.connect(EVENTS, legacy=True) as socket:
        for one in events:
            await socket.send(one)
        await eventually(lambda: sum(gate.app.state.telemetry.events_dropped.values()) == 1)
        for run in runs:
            await report(gate, basic("etl:secret"), run)
        assert await arrived(prefect, events[1])
        assert await arrived(prefect, events[2])
    assert events[0] not in prefect.opened[0].messages


async def test_an_event_is_not_held_for_ever(
    gate: Gate, prefect: PrefectSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_events, "HOLD_SECONDS", 0.2)
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    async with gate.connect(EVENTS, legacy=True) as socket:
        await socket.send(event(str(uuid.uuid4())))
        await eventually(lambda: gate.app.state.telemetry.events_dropped["unreported"] == 1)


async def test_the_events_of_a_worker_pass_for_who_asks_its_pool_for_runs(gate: Gate, prefect: PrefectSockets) -> None:
    await report(gate, basic("etl:secret"), "default", route="POST /api/work_pools/{}/get_scheduled_flow_runs")
    async with gate.connect(EVENTS, legacy=True) as socket:
        for pool, passes in (("default", True), ("another", False)):
            sent = event(
                "",
                "prefect.worker.started",
                resource={"prefect.resource.id": "prefect.worker.process.w", "prefect.resource.name": "w"},
                related=[
                    {
                        "prefect.resource.id": f"prefect.work-pool.{uuid.uuid4()}",
                        "prefect.resource.name": pool,
                        "prefect.resource.role": "work-pool",
                    }
                ],
            )
            await socket.send(sent)
            assert await arrived(prefect, sent) is passes


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("version", ["3.2.15", "3.6.11", "3.9.1"])
async def test_events_of_task_runs_that_a_server_hands_out_pass(
    version: str, gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    recorded = [one["event"] for one in RECORDED if one["client"] == version and _is_of_served_task(one)]
    assert recorded
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    async with gate.opened(provider.mint(), "/api/task_runs/subscriptions/scheduled") as served_tasks:
        parents = [one["payload"]["task_run"]["task_inputs"].get("__parents__") for one in recorded]
        runs = {
            above[0]["id"] if above else one["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")
            for one, above in zip(recorded, parents, strict=True)
        }
        for run in runs:
            await served_tasks.send(json.dumps({"id": run, "name": "served", "flow_run_id": None}))  # comes back
            assert json.loads(await served_tasks.recv())["id"] == run
        async with gate.connect(EVENTS, legacy=True) as socket:
            for one in recorded:
                sent = json.dumps({**one, "occurred": now})
                await socket.send(sent)
                assert await arrived(prefect, sent)
        async with gate.connect(EVENTS, legacy=True, client=ELSEWHERE) as socket:
            assert (await closed(socket))[0] == 1008


async def test_what_a_server_hands_out_counts_for_nobody_where_vouching_is_off(
    relay_settings: dict[str, Any], provider: Provider
) -> None:
    async with (
        served({**relay_settings, "websockets": {"vouched": False}}) as gate,
        gate.opened(provider.mint(), "/api/task_runs/subscriptions/scheduled") as served_tasks,
    ):
        for sent in (json.dumps({"id": str(uuid.uuid4())}), "no JSON"):
            await served_tasks.send(sent)
            assert await served_tasks.recv() == sent
        assert not len(gate.app.state.reporters)


# who gets nowhere -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_waits")
async def test_nobody_vouches_for_a_stranger(gate: Gate, prefect: PrefectSockets, provider: Provider) -> None:
    async with gate.connect(EVENTS, legacy=True) as socket:
        assert (await closed(socket))[0] == 1008
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    for other in ({"client": ELSEWHERE}, {"path": "/api/logs/out"}, {"path": "/api/work_pools/p/workers/connect"}):
        path = other.pop("path", EVENTS)
        async with gate.connect(path, legacy=True, **other) as socket:
            assert (await closed(socket))[0] == 1008
    assert (await gate.refused(provider.mint(aud="another")))[0] == 1008, "a bad credential is not none"
    assert not prefect.opened


@pytest.mark.usefixtures("short_waits")
async def test_who_has_no_address_is_vouched_for_by_nobody(gate: Gate, prefect: PrefectSockets) -> None:
    call = Caller(gate.app, endpoint="/auth-request/api")
    target = f"https://prefect.example.com/api/flow_runs/{uuid.uuid4()}/set_state"
    told = {"X_Original_Method": "POST", "X_Original_URL": target, "X_Forwarded_For": None}
    assert (await call(basic("etl:secret"), **told)).status == 200
    async with gate.connect(EVENTS, legacy=True, client="") as socket:
        assert (await closed(socket))[0] == 1008
    assert not prefect.opened


@pytest.mark.usefixtures("short_waits")
async def test_who_may_only_read_vouches_for_nobody(gate: Gate, prefect: PrefectSockets) -> None:
    await report(gate, basic("alice:secret"), str(uuid.uuid4()), route="GET /api/flow_runs/{}")
    for path in (EVENTS, OUT):
        async with gate.connect(path, legacy=True) as socket:
            assert (await closed(socket))[0] == 1008
    assert not prefect.opened


async def test_a_refused_request_reports_nothing(gate: Gate, prefect: PrefectSockets) -> None:
    run = str(uuid.uuid4())
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    answer = await Caller(gate.app)(
        basic("etl:wrong"), X_Forwarded_Method="POST", X_Forwarded_Uri=f"/api/flow_runs/{run}/set_state"
    )
    assert answer.status == 401
    answer = await Caller(gate.app)(
        basic("etl:secret"), X_Forwarded_Method="DELETE", X_Forwarded_Uri=f"/api/flow_runs/{run}"
    )
    assert answer.status == 403
    async with gate.connect(EVENTS, legacy=True) as socket:
        sent = event(run)
        await socket.send(sent)
        assert not await arrived(prefect, sent)


@pytest.mark.usefixtures("short_waits")
async def test_forged_events_are_dropped_and_the_next_one_passes(gate: Gate, prefect: PrefectSockets) -> None:
    run, unreported, of_another_address = (str(uuid.uuid4()) for _ in range(3))
    await report(gate, basic("etl:secret"), run)
    await report(gate, basic("etl:secret"), of_another_address, address=ELSEWHERE)
    own = f"prefect.flow-run.{run}"
    forged = {
        "a run that nobody reports": event(unreported),
        "a run that another address reports": event(of_another_address),
        "a state that only the server gives": event(
            run, "prefect.flow-run.Failed", resource={"prefect.resource.id": own}
        ),
        "an automation": event(run, "prefect.automation.triggered"),
        "no JSON": "{",
        "no event": '{"type": "auth", "token": null}',
        "too large": event(run, payload={"x": "x" * 2_000_000}),
    }
    async with gate.connect(EVENTS, legacy=True) as socket:
        for sent in forged.values():
            await socket.send(sent)
        last = event(run)
        await socket.send(last)
        assert await arrived(prefect, last)
    await eventually(lambda: sum(gate.app.state.telemetry.events_dropped.values()) == len(forged))
    assert prefect.opened[0].messages == [last]


async def test_a_socket_ends_with_the_credential_that_vouches_for_it(
    gate: Gate, provider: Provider, relay_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.gate.relay.VOUCHED_CHECK_SECONDS", 0.2)
    await report(gate, f"Bearer {provider.mint(exp=int(time.time()) + 3)}", str(uuid.uuid4()), address=ELSEWHERE)
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    async with gate.connect(EVENTS, legacy=True) as of_user:
        async with gate.connect(EVENTS, legacy=True, client=ELSEWHERE) as of_token:
            assert (await closed(of_token))[0] == 1012
        await asyncio.to_thread(relay_users.write_text, f"alice:{hash_password('secret', 4)}\n")
        assert (await closed(of_user))[0] == 1012


@pytest.mark.usefixtures("short_waits")
async def test_an_address_that_is_silent_for_long_vouches_for_no_new_socket(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    monkeypatch.setattr(vouching, "RECENT_SECONDS", 0.0)
    async with gate.connect(EVENTS, legacy=True) as socket:
        assert (await closed(socket))[0] == 1008


async def test_an_address_has_a_bounded_number_of_sockets(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouching, "MAX_OF_ADDRESS", 2)
    await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    open_ones = [await gate.connect(EVENTS, legacy=True) for _ in range(2)]
    await eventually(lambda: len(gate.app.relay) == 2)
    async with gate.connect(EVENTS, legacy=True) as third:
        assert (await closed(third))[0] == 1013
    for one in open_ones:
        await one.close()


async def test_vouching_can_be_turned_off(relay_settings: dict[str, Any], prefect: PrefectSockets) -> None:
    async with served({**relay_settings, "websockets": {"vouched": False}}) as gate:
        await report(gate, basic("etl:secret"), str(uuid.uuid4()))
        async with gate.connect(EVENTS, legacy=True) as socket:
            assert (await closed(socket))[0] == 1008
    assert not prefect.opened


# what an address receives -----------------------------------------------------------------------------------


async def test_only_events_of_its_own_runs_reach_an_address(gate: Gate, prefect: PrefectSockets) -> None:
    run, foreign = str(uuid.uuid4()), str(uuid.uuid4())
    await report(gate, basic("etl:secret"), run)
    async with gate.connect(OUT) as socket:
        await socket.send('{"type": "auth", "token": null}')
        assert json.loads(await socket.recv()) == {"type": "auth_success"}
        for of in (foreign, run):
            await socket.send(json.dumps({"type": "event", "event": json.loads(event(of))}))  # the stand-in echoes it
        received = json.loads(await asyncio.wait_for(socket.recv(), 30))
        assert run in json.dumps(received)
        assert foreign not in json.dumps(received)


# bounds ---------------------------------------------------------------------------------------------------


async def test_memory_is_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "MAX_ADDRESSES", 10)
    monkeypatch.setattr(reporters, "MAX_RUNS", 10)
    for number in range(30):
        await report(gate, basic("etl:secret"), str(uuid.uuid4()), address=f"198.51.100.{number}")
        await report(gate, basic("etl:secret"), str(uuid.uuid4()))
    state = gate.app.state.reporters
    assert len(state) <= 10
    assert len(state.fresh) <= 10
    assert all(len(one.runs) <= 10 for one in state.at(HOME))
    assert "secret" not in repr(list(state.at(HOME)))
