"""The shared store against a real Redis: what it promises, and what it says when it cannot."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.adapters.store import TIMEOUT, Store, StoreError, StoreUnavailable
from tests.support.redis import PASSWORD, PATIENT, RedisServer
from tests.support.waiting import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[Store]:
    one = Store(redis.url, "test:", timeout=PATIENT)
    yield one
    await one.close()


async def test_what_is_appended_is_read_in_order_from_any_position(store: Store) -> None:
    assert await store.read("log", "0") == []
    await store.append("log", ["a", "b", "ü ☃ \n"], keep=60)
    page = await store.read("log", "0")
    assert [text for _, text in page] == ["a", "b", "ü ☃ \n"]
    assert await store.read("log", page[0][0]) == page[1:]
    assert await store.read("log", page[-1][0]) == []
    assert await store.read("another", "0") == []


async def test_a_long_log_comes_in_pages(store: Store) -> None:
    await store.append("log", [str(number) for number in range(1_234)], keep=60)
    after, texts, pages = "0", [], 0
    while page := await store.read("log", after):
        after, pages = page[-1][0], pages + 1
        texts += [text for _, text in page]
    assert texts == [str(number) for number in range(1_234)]
    assert pages == 3


async def test_a_read_that_waits_ends_with_the_first_news(store: Store, redis: RedisServer) -> None:
    reading = asyncio.create_task(store.read("log", "0", wait=20))
    other = Store(redis.url, "test:", timeout=PATIENT)
    await asyncio.sleep(0.1)  # it waits by now, or finds the entry there: both are right
    began = time.monotonic()
    await other.append("log", ["news"], keep=60)
    assert [text for _, text in await reading] == ["news"]
    assert time.monotonic() - began < 2
    began = time.monotonic()
    assert await store.read("quiet", "0", wait=0.2) == []
    assert 0.15 < time.monotonic() - began < 0.2 + PATIENT
    await other.close()


async def test_the_log_ends_with_its_keep_by_the_stores_own_clock(store: Store) -> None:
    await store.append("log", ["short"], keep=0.3)
    assert await store.read("log", "0")
    deadline = time.monotonic() + 5
    while await store.read("log", "0"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_old_entries_leave_a_log_that_is_still_written(store: Store) -> None:
    await store.append("log", ["old"] * 1_000, keep=60)
    await asyncio.sleep(2.1)  # the store's clock is read in whole seconds
    await store.append("log", ["new"], keep=1)
    texts = [text for _, text in await store.read("log", "0")]
    assert texts.count("old") < 200  # whole nodes go at once, the last one stays
    assert texts[-1] == "new"


async def test_a_name_is_claimed_once_while_the_claim_is_good(store: Store) -> None:
    claims = await asyncio.gather(*(store.claim("one", 60) for _ in range(20)))
    assert claims.count(True) == 1
    assert await store.claim("two", 0.1)
    deadline = time.monotonic() + 5
    while not await store.claim("two", 60):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_tally_counts_members_and_all_and_ends_as_a_whole(store: Store) -> None:
    assert (await store.tally("t", "ann", 60))[:2] == (1, 1)
    assert (await store.tally("t", "ann", 60))[:2] == (2, 2)
    of_bob, of_all, remaining = await store.tally("t", "bob", 60)
    assert (of_bob, of_all) == (1, 3)
    assert 55 < remaining <= 60
    await store.remove_from_tally("t", "ann")
    assert (await store.tally("t", "bob", 60))[:2] == (2, 2)
    await store.tally("short", "ann", 0.2)
    await asyncio.sleep(0.1)
    assert (await store.tally("short", "ann", 0.2))[2] <= 0.11  # it is not put off by what comes later


async def test_a_value_is_kept_for_its_time_and_the_last_one_counts(store: Store) -> None:
    assert await store.recall("value") is None
    await store.keep("value", "first", 60)
    await store.keep("value", "second", 0.2)
    assert await store.recall("value") == "second"
    await asyncio.sleep(0.25)
    assert await store.recall("value") is None


async def test_what_was_counted_can_be_taken_back(store: Store) -> None:
    await store.tally("failures", "ann", 60)
    assert (await store.tally("failures", "ann", 60))[:2] == (2, 2)
    assert (await store.tally("failures", "ann", 60, by=-1))[:2] == (1, 1)


async def test_nothing_is_kept_without_an_end_and_all_stands_under_the_prefix(store: Store) -> None:
    await store.append("log", ["entry"], keep=60)
    await store.claim("one", 60)
    await store.tally("t", "ann", 60)
    keys = await store._client.keys("*")
    assert sorted(keys) == ["test:log", "test:one", "test:t"]
    assert all(await asyncio.gather(*(store._client.pttl(key) for key in keys)))
    assert -1 not in await asyncio.gather(*(store._client.pttl(key) for key in keys))


async def test_a_store_that_went_away_is_said_to_be_and_is_used_again_when_it_is_back(
    store: Store, redis: RedisServer
) -> None:
    assert await store.claim("one", 60)
    redis.stop()
    with pytest.raises(StoreUnavailable) as problem:
        await store.claim("one", 60)
    assert PASSWORD not in str(problem.value)
    redis.start()
    assert await store.claim("one", 60)


async def test_a_restart_that_nobody_noticed_is_not_noticed_later(store: Store, redis: RedisServer) -> None:
    await asyncio.gather(*(store.tally("t", "ann", 60) for _ in range(10)))  # ten connections, idle from here on
    redis.stop()
    redis.start()
    await asyncio.sleep(0.1)  # the loop stood still meanwhile, as it does only in a test
    for number in range(20):
        assert (await store.tally("t", "ann", 60))[0] == number + 1


async def test_a_store_that_is_gone_costs_no_time(store: Store, redis: RedisServer) -> None:
    redis.stop()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.claim("one", 60)
    assert time.monotonic() - began < PATIENT / 2


async def test_a_store_that_does_not_answer_is_waited_for_a_bounded_time(redis: RedisServer) -> None:
    store = Store(redis.url, "test:")
    assert await store.claim("one", 60)
    redis.freeze()
    began = time.monotonic()
    results = await asyncio.gather(*(store.claim(str(n), 60) for n in range(50)), return_exceptions=True)
    assert all(isinstance(one, StoreUnavailable) for one in results)
    assert time.monotonic() - began < TIMEOUT + 3
    with pytest.raises(StoreUnavailable):
        await store.append("log", ["entry"], keep=60)
    redis.thaw()
    # no connection is used again on which the answer to another question may still come
    tallies = [await store.tally("t", "ann", 60) for _ in range(40)]
    assert [count for count, _, _ in tallies] == list(range(1, 41))
    await store.close()


async def test_a_cancelled_wait_leaves_no_answer_behind_for_the_next(store: Store) -> None:
    for number in range(20):
        reading = asyncio.create_task(store.read("log", "0", wait=5))
        await asyncio.sleep(0.01)
        reading.cancel()
        assert (await store.tally("t", "ann", 60))[0] == number + 1


@pytest.mark.parametrize("password", ["wrong-password-7Q", "p@ss:w/rd"])
async def test_a_wrong_password_is_a_problem_without_the_password(redis: RedisServer, password: str) -> None:
    store = Store(f"redis://:{password.replace('@', '%40').replace('/', '%2F')}@127.0.0.1:{redis.port}", "test:")
    with pytest.raises(StoreUnavailable) as problem:
        await store.claim("one", 60)
    assert "AuthenticationError" in str(problem.value)
    assert password not in str(problem.value) + repr(store)
    assert problem.value.__cause__ is None
    await store.close()


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter2@host:hunter2/0", "http://:hunter2@host", "redis://:hunter2@[::1/0", "redis://h?db=hunter2"],
)
def test_a_url_that_means_nothing_is_an_error_at_the_start_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(StoreError, match="expected redis://") as problem:
        Store(url, "test:")
    assert "hunter2" not in str(problem.value)
    assert problem.value.__suppress_context__


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(StoreError, match=r"pip install 'prefect-forward-auth\[redis\]'"):
        Store("redis://127.0.0.1", "test:")


async def test_nobody_there_is_unavailable() -> None:
    store = Store(f"redis://:{PASSWORD}@127.0.0.1:{free_port()}", "test:")
    for call in (
        store.claim("a", 1),
        store.tally("a", "b", 1),
        store.remove_from_tally("a", "b"),
        store.read("a", "0"),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    with pytest.raises(StoreUnavailable):
        await store.append("a", ["b"], 1)
    await store.close()
