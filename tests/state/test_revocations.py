"""Revocations: what has ended is refused here at once and elsewhere soon, whatever the store goes through."""

import asyncio
import time
import timeit
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.adapters.store import Store
from service.core.model import Session
from service.state import revocation_log
from service.state import revocations as module
from service.state.revocation_log import HEALED_WITHIN, RevocationLog
from service.state.revocations import (
    KEEP,
    Revocation,
    Revocations,
    of_provider_session,
    of_session,
    of_subject,
    of_subject_without_sid,
)
from tests.support.redis import PASSWORD, RedisServer

pytestmark = pytest.mark.anyio

AT_ONCE = 10.0  # the bound on "at once" where two cores are shared by many
ANN = Session("s1", "https://idp", "ann", "Ann", "", (), {}, began=1000.0, seen=1000.0, check_at=0.0, provider_sid="p1")


class Replica:
    """One service's revocations, with a connection of its own, and how often it was told of a change."""

    def __init__(self, redis: RedisServer | None) -> None:
        self.changes = 0
        self.store = Store(redis.url, "test:") if redis else None
        self.revocations = Revocations(on_change=self._changed)
        self.log = RevocationLog(self.revocations, self.store)

    def _changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def replica(redis: RedisServer | None, *, start: bool = True) -> AsyncIterator[Replica]:
    one = Replica(redis)
    if start:
        await one.log.start()
    yield one
    await one.log.stop()
    if one.store is not None:
        await one.store.close()


async def until(condition: Callable[[], bool], seconds: float = AT_ONCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


# what is revoked, and what is not -------------------------------------------------------------------------


async def test_signing_out_ends_this_session_alone() -> None:
    async with replica(None) as here:
        assert not here.revocations.revoked(ANN)
        assert await here.log.revoke(of_session("s1"))
        assert here.revocations.revoked(ANN)
        assert here.revocations.revoked(ANN._replace(began=9e12, seen=9e12))  # sealed anew, it is the same session
        assert not here.revocations.revoked(ANN._replace(id="s2"))


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        pytest.param({}, True, id="begun before"),
        pytest.param({"id": "s2", "provider_sid": ""}, True, id="another session of theirs"),
        pytest.param({"began": 2000.0}, True, id="begun at that very time"),
        pytest.param({"began": 2000.1}, False, id="begun after"),
        pytest.param({"began": 1.0, "seen": 3000.0}, True, id="used since"),
        pytest.param({"subject": "bob"}, False, id="of another"),
        pytest.param({"subject": "Ann"}, False, id="of another in upper case"),
        pytest.param({"issuer": "https://other"}, False, id="of another issuer's same subject"),
    ],
)
async def test_every_session_of_a_person_begun_before(changes: dict[str, object], ended: bool) -> None:  # noqa: FBT001
    async with replica(None) as here:
        await here.log.revoke(of_subject("https://idp", "ann", before=2000.0))
        assert here.revocations.revoked(ANN._replace(**changes)) is ended  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        pytest.param({}, True, id="its own"),
        pytest.param({"id": "s2", "subject": "bob"}, True, id="whoever it is"),
        pytest.param({"began": 2001.0}, False, id="begun after"),
        pytest.param({"provider_sid": "p2"}, False, id="another"),
        pytest.param({"provider_sid": ""}, False, id="none"),
        pytest.param({"issuer": "https://other"}, False, id="another provider's of the same name"),
        pytest.param({"subject": "p1", "provider_sid": ""}, False, id="a person whose name is the session's"),
    ],
)
async def test_every_session_of_a_providers_own(changes: dict[str, object], ended: bool) -> None:  # noqa: FBT001
    async with replica(None) as here:
        await here.log.revoke(of_provider_session("https://idp", "p1", before=2000.0))
        assert here.revocations.revoked(ANN._replace(**changes)) is ended  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        pytest.param({"provider_sid": ""}, True, id="without one"),
        pytest.param({"id": "s2", "provider_sid": ""}, True, id="another without one"),
        pytest.param({}, False, id="of a provider's own"),
        pytest.param({"provider_sid": "", "began": 2001.0}, False, id="begun after"),
        pytest.param({"provider_sid": "", "subject": "bob"}, False, id="of another"),
        pytest.param({"provider_sid": "", "issuer": "https://other"}, False, id="of another issuer's same subject"),
    ],
)
async def test_a_persons_sessions_without_a_providers_own(changes: dict[str, object], ended: bool) -> None:  # noqa: FBT001
    async with replica(None) as here:
        await here.log.revoke(of_subject_without_sid("https://idp", "ann", before=2000.0))
        assert here.revocations.revoked(ANN._replace(**changes)) is ended  # type: ignore[arg-type]


async def test_a_replica_that_does_not_know_a_kind_passes_it_on(redis: RedisServer) -> None:
    """While replicas are replaced one by one, versions differ."""
    async with replica(redis) as one, replica(redis) as two:
        new = Revocation(("of-a-later-version", "https://idp", "ann"), 2000.0, time.time() + 60)
        await one.log.revoke(new, of_session("s9"))
        await until(lambda: two.revocations.revoked(ANN._replace(id="s9")))
        assert not two.revocations.revoked(ANN)
        assert new in two.revocations


async def test_an_empty_provider_session_ends_nobody() -> None:
    async with replica(None) as here:
        await here.log.revoke(of_provider_session("https://idp", "", before=2000.0))
        assert not here.revocations.revoked(ANN._replace(provider_sid=""))


async def test_an_earlier_time_does_not_give_a_session_back() -> None:
    async with replica(None) as here:
        await here.log.revoke(of_subject("https://idp", "ann", before=2000.0))
        await here.log.revoke(of_subject("https://idp", "ann", before=500.0))
        assert here.revocations.revoked(ANN)
        assert here.changes == 1


async def test_it_holds_before_anything_is_awaited(redis: RedisServer) -> None:
    async with replica(redis) as here:
        redis.freeze()
        telling = asyncio.create_task(here.log.revoke(of_session("s1")))
        await asyncio.sleep(0)
        assert here.revocations.revoked(ANN)
        assert here.changes == 1
        assert await telling is False
        redis.thaw()


async def test_what_has_ended_is_dropped_when_no_session_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(None) as here:
        await here.log.revoke(of_session("s1"))
        later = time.time() + KEEP
        monkeypatch.setattr(module.time, "time", lambda: later - 1)
        await here.log.revoke(of_session("s2"))
        assert here.revocations.revoked(ANN)
        monkeypatch.setattr(module.time, "time", lambda: later + 1)
        await here.log.revoke(of_session("s3"))
        assert [name for _, _, name in here.revocations._ended] == ["s2", "s3"]


async def test_one_persons_sign_outs_push_out_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 40)
    async with replica(None) as here:
        bob = ANN._replace(id="b1", subject="bob", provider_sid="")
        await here.log.end(bob)
        sessions = [ANN._replace(id=f"s{number}", began=1000.0 + number, provider_sid="") for number in range(200)]
        for one in sessions:
            await here.log.end(one)
            assert here.revocations.revoked(one)
        assert all(here.revocations.revoked(one) for one in (bob, *sessions))
        assert len(here.revocations) <= 1 + module.MAX_SESSIONS_OF_SUBJECT + 1
        assert not here.revocations.revoked(ANN._replace(id="s200", began=1200.0, provider_sid=""))  # signed in again


async def test_memory_is_bounded_and_the_oldest_goes_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 10)
    async with replica(None) as here:
        for number in range(11):
            await here.log.revoke(of_session(f"s{number}"))
        assert not here.revocations.revoked(ANN._replace(id="s0"))
        assert all(here.revocations.revoked(ANN._replace(id=f"s{number}")) for number in range(1, 11))
        assert "more than 10 revocations" in caplog.text


async def test_looking_costs_next_to_nothing() -> None:
    async with replica(None) as here:
        assert timeit.timeit(lambda: here.revocations.revoked(ANN), number=10_000) / 10_000 < 5e-6
        for number in range(20_000):
            await here.log.revoke(of_session(f"x{number}"))
        best = min(timeit.repeat(lambda: here.revocations.revoked(ANN), number=10_000, repeat=5)) / 10_000
        assert best < 5e-6  # 0.7 µs on a quiet machine


# tokens that are good once --------------------------------------------------------------------------------


async def test_a_replayed_logout_token_is_known() -> None:
    async with replica(None) as here:
        assert await here.log.first_use("logout https://idp", "jti", 60)
        assert not await here.log.first_use("logout https://idp", "jti", 60)
        assert await here.log.first_use("logout https://other", "jti", 60)
        assert await here.log.first_use("logout https://idp", "jti2", 60)
        assert await here.log.first_use("logout", "https://idp jti", 60)
        assert await here.log.first_use("lone \udc80", "surrogate \ud800", 60)
        assert await here.log.first_use("short", "jti", 0.05)
        deadline = time.monotonic() + AT_ONCE
        while not await here.log.first_use("short", "jti", 0.05):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_a_token_replayed_at_several_replicas_at_once_is_used_once(redis: RedisServer) -> None:
    async with replica(redis) as one, replica(redis) as two, replica(redis) as three:
        uses = [each.log.first_use("logout", "jti", 60) for each in (one, two, three) for _ in range(10)]
        assert (await asyncio.gather(*uses)).count(True) == 1


async def test_without_the_store_a_replay_is_known_where_it_was_seen(redis: RedisServer) -> None:
    async with replica(redis) as one:
        redis.stop()
        assert await one.log.first_use("logout", "jti", 60)
        assert not await one.log.first_use("logout", "jti", 60)


# replicas -------------------------------------------------------------------------------------------------


async def test_replicas_know_each_others_revocations_at_once(redis: RedisServer) -> None:
    async with replica(redis) as one, replica(redis) as two:
        assert await one.log.revoke(of_session("s1"))
        await until(lambda: two.revocations.revoked(ANN))
        await two.log.revoke(of_subject("https://idp", "bob", before=2000.0))
        await until(lambda: one.revocations.revoked(ANN._replace(id="s9", subject="bob")))
        await one.log.revoke(of_provider_session("https://idp", "p7", before=2000.0))
        await until(lambda: two.revocations.revoked(ANN._replace(id="s9", provider_sid="p7")))
        await one.log.revoke(of_subject_without_sid("https://idp", "eve", before=2000.0))
        await until(lambda: two.revocations.revoked(ANN._replace(id="s9", subject="eve", provider_sid="")))
        assert (one.changes, two.changes) == (4, 4)  # one's own come back by the log, and are no news
        assert one.log.state() == two.log.state() == {"state": "connected", "problem": ""}


async def test_a_late_starter_knows_all_before_it_is_ready(redis: RedisServer) -> None:
    async with replica(redis) as one:
        for number in range(1_200):
            await one.log.revoke(of_session(f"s{number}"))
    async with replica(redis) as late:
        assert all(late.revocations.revoked(ANN._replace(id=f"s{number}")) for number in range(1_200))
        assert late.log.state()["state"] == "connected"


async def test_a_start_without_the_store_is_bounded_degraded_and_healed(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(redis) as one:
        await one.log.revoke(of_session("s1"))
        redis.freeze()
        began = time.monotonic()
        async with replica(redis) as late:
            assert time.monotonic() - began < revocation_log.START + 5
            assert late.log.state()["state"] == "unreachable"
            assert late.log.state()["problem"]
            assert not late.revocations.revoked(ANN)
            redis.thaw()
            await until(lambda: late.revocations.revoked(ANN), HEALED_WITHIN + AT_ONCE)
            await until(lambda: late.log.state()["state"] == "connected")
            assert late.changes == 1
    assert "store: out of reach" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_store_that_crashed_and_forgot_all_is_told_again(redis: RedisServer) -> None:
    async with replica(redis) as one, replica(redis) as two:
        assert await one.log.revoke(of_session("before"))
        await until(lambda: two.revocations.revoked(ANN._replace(id="before")))
        redis.stop()
        assert await one.log.revoke(of_session("during")) is False
        assert await two.log.revoke(of_subject("https://idp", "bob", before=2000.0)) is False
        assert one.revocations.revoked(ANN._replace(id="during"))  # here, now
        await until(lambda: two.log.state()["state"] == "unreachable")
        redis.start()
        bound = HEALED_WITHIN + AT_ONCE
        await until(lambda: two.revocations.revoked(ANN._replace(id="during")), bound)
        await until(lambda: one.revocations.revoked(ANN._replace(id="x", subject="bob")), bound)
        await until(lambda: one.log.state()["state"] == two.log.state()["state"] == "connected", bound)
        async with replica(redis) as late:
            for session_id in ("before", "during"):
                assert late.revocations.revoked(ANN._replace(id=session_id))
        assert await one.log.revoke(of_session("after"))
        await until(lambda: two.revocations.revoked(ANN._replace(id="after")))


async def test_what_a_healed_store_does_not_know_is_written_by_one_who_does(redis: RedisServer) -> None:
    """The write failed, and its replica heals by itself though nobody revokes anything again."""
    async with replica(redis) as one, replica(redis) as two:
        redis.freeze()
        assert await one.log.revoke(of_session("s1")) is False
        assert not two.revocations.revoked(ANN)
        redis.thaw()
        await until(lambda: two.revocations.revoked(ANN), HEALED_WITHIN + AT_ONCE)


async def test_a_log_that_is_lost_while_connected_is_written_again(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation_log, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(revocation_log, "WAIT", 0.1)
    async with replica(redis) as one:
        assert one.store is not None
        await one.log.revoke(of_session("s1"))
        await one.store._client.flushall()

        async def a_late_one_knows() -> bool:
            async with replica(redis) as late:
                return late.revocations.revoked(ANN)

        deadline = time.monotonic() + AT_ONCE
        while not await a_late_one_knows():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_looking_again_writes_nothing_that_is_there(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation_log, "LOOK_AGAIN", 0.0)
    monkeypatch.setattr(revocation_log, "WAIT", 0.01)
    async with replica(redis, start=False) as one:
        for number in range(5):
            await one.log.revoke(of_session(f"s{number}"))
        async with replica(redis) as two, replica(redis) as three:
            for each in (two, three):
                began = each.log._look_at
                await until(lambda each=each, began=began: each.log._look_at > began + 0.1)  # type: ignore[misc]
        assert one.store is not None
        assert len(await one.store.read("revocations", "0")) == 5


async def test_entries_that_mean_nothing_stop_nobody(redis: RedisServer) -> None:
    async with replica(redis) as one, replica(redis) as two:
        assert one.store is not None
        nonsense = [
            "",
            "null",
            "[]",
            "{}",
            "[1,2,3,4]",
            '["session","","s1","x",1]',
            "[" * 5_000,
            '["a","b","c",NaN,NaN]',
        ]
        await one.store.append("revocations", nonsense, KEEP)
        await one.log.revoke(of_session("s2"))
        await until(lambda: two.revocations.revoked(ANN._replace(id="s2")))
        assert not two.revocations.revoked(ANN)
        assert len(two.revocations._ended) == 1


async def test_stop_ends_what_start_began(redis: RedisServer) -> None:
    before = asyncio.all_tasks()
    async with replica(redis):
        pass
    redis.stop()
    async with replica(redis):
        pass
    assert asyncio.all_tasks() == before
