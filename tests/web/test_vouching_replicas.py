"""Clients without a credential at replicas: a run is named at one of them, and its events come to another one."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.prefect_sockets import PrefectSockets
from tests.support.redis import RedisServer
from tests.support.relay_gate import EVENTS, Gate, closed, served
from tests.web.conftest import basic
from tests.web.test_vouching import ELSEWHERE, HOME, OUT, arrived, event, report

pytestmark = pytest.mark.anyio
ETL = basic("etl:secret")
OTHER = basic("other:secret")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def replicas(relay_settings: dict[str, Any], redis: RedisServer) -> AsyncIterator[tuple[Gate, Gate]]:
    shared = {
        **relay_settings,
        "store": {"url": redis.url, "prefix": f"{uuid.uuid4()}:"},
        "session": {"keys": ["k" * 40]},
    }
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(served(shared)), await stack.enter_async_context(served(shared))


async def test_events_pass_at_a_replica_that_has_not_seen_their_run(
    replicas: tuple[Gate, Gate], prefect: PrefectSockets
) -> None:
    first, second = replicas
    run = str(uuid.uuid4())
    await report(second, ETL, str(uuid.uuid4()))
    async with second.connect(EVENTS, legacy=True) as socket:
        await report(first, ETL, run)
        for _ in range(2):  # while it is being shared, and later
            sent = event(run)
            await socket.send(sent)
            assert await arrived(prefect, sent)


async def test_a_worker_and_its_cancelled_runs_are_known_at_each_replica(
    replicas: tuple[Gate, Gate], prefect: PrefectSockets
) -> None:
    first, second = replicas
    run, foreign = str(uuid.uuid4()), str(uuid.uuid4())
    await report(first, ETL, "default", route="POST /api/work_pools/{}/get_scheduled_flow_runs")
    await report(first, ETL, run)
    await report(second, ETL, str(uuid.uuid4()))
    pool = {
        "prefect.resource.id": f"prefect.work-pool.{uuid.uuid4()}",
        "prefect.resource.name": "default",
        "prefect.resource.role": "work-pool",
    }
    resource = {"prefect.resource.id": "prefect.worker.process.w", "prefect.resource.name": "w"}
    async with second.connect(EVENTS, legacy=True) as socket:
        started = event("", "prefect.worker.started", resource=resource, related=[pool])
        await socket.send(started)
        assert await arrived(prefect, started)
    async with second.connect(OUT) as socket:
        await socket.send('{"type": "auth", "token": null}')
        await socket.recv()
        for of in (foreign, run):
            await socket.send(json.dumps({"type": "event", "event": json.loads(event(of))}))  # the stand-in echoes it
        received = await asyncio.wait_for(socket.recv(), 30)
        assert run in str(received)


@pytest.mark.usefixtures("short_waits")
async def test_what_is_shared_proves_nobody(replicas: tuple[Gate, Gate], prefect: PrefectSockets) -> None:
    first, second = replicas
    run, at_home = str(uuid.uuid4()), str(uuid.uuid4())
    await report(first, ETL, run)
    async with second.connect(EVENTS, legacy=True) as socket:
        assert (await closed(socket))[0] == 1008, "this replica has seen nobody there"
    await report(second, OTHER, str(uuid.uuid4()))
    await report(second, ETL, str(uuid.uuid4()), address=ELSEWHERE)
    await report(second, OTHER, at_home)
    for address in (HOME, ELSEWHERE):  # another caller at the address, and the caller at another one
        async with second.connect(EVENTS, legacy=True, client=address) as socket:
            sent = event(run)
            await socket.send(sent)
            assert not await arrived(prefect, sent)
    store = second.app.wiring.store
    assert store is not None
    names = [name async for name in store._client.scan_iter("*:reported:*")]
    kept = " ".join(names + [await store._client.get(name) for name in names])
    assert names
    for shown in (run, HOME, "etl", "secret"):
        assert shown not in kept
    assert {await store._client.ttl(name) > 0 for name in names} == {True}


async def test_a_store_that_is_away_holds_nothing_up(
    replicas: tuple[Gate, Gate], redis: RedisServer, prefect: PrefectSockets, logged: Callable[[], str]
) -> None:
    first, second = replicas
    own, other = str(uuid.uuid4()), str(uuid.uuid4())
    redis.freeze()
    try:
        await report(second, ETL, own)
        await report(first, ETL, other)
        async with second.connect(EVENTS, legacy=True) as socket:
            began = time.monotonic()
            for _ in range(5):
                await socket.send(event(str(uuid.uuid4()), "prefect.flow-run.Failed"))
                sent = event(own)
                await socket.send(sent)
                assert await arrived(prefect, sent)
            assert time.monotonic() - began < 5
            dropped = event(other)
            await socket.send(dropped)
            assert not await arrived(prefect, dropped)
    finally:
        redis.thaw()
    assert logged().count("runs that are reported elsewhere are not known here") <= 2, "once for each replica"
    async with second.connect(EVENTS, legacy=True) as socket:  # the store is asked again, and was told meanwhile
        async with asyncio.timeout(15):
            while True:
                sent = event(other)
                await socket.send(sent)
                if await arrived(prefect, sent):
                    break


async def test_without_a_key_in_common_nothing_is_shared(
    relay_settings: dict[str, Any], redis: RedisServer, prefect: PrefectSockets
) -> None:
    prefix = f"{uuid.uuid4()}:"
    async with served({**relay_settings, "store": {"url": redis.url, "prefix": prefix}}) as gate:
        await report(gate, ETL, str(uuid.uuid4()))
        await asyncio.sleep(0.6)  # more than twice as long as a batch waits
        store = gate.app.wiring.store
        assert store is not None
        assert [name async for name in store._client.scan_iter(f"{prefix}*reported*")] == []
