"""The throttle: guessing is slow, and nobody is locked out by a stranger (row 23 of the attacks)."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.store import Store
from service.state.throttle import MAX_SENDERS, FailedAttempts, GuessLimits, Throttle, sender_of
from tests.support.redis import PATIENT, RedisServer

pytestmark = pytest.mark.anyio

WINDOW = 300.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def throttle_of(
    *,
    attempts: int,
    window: float,
    per_name: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    capacity: int = MAX_SENDERS,
    store: Store | None = None,
) -> Throttle:
    limits = GuessLimits(attempts, window, attempts if per_name is None else per_name)
    return Throttle(FailedAttempts(clock, capacity), limits, store)


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return throttle_of(attempts=3, window=WINDOW, clock=clock)


async def fail(throttle: Throttle, address: str, *names: str) -> None:
    for name in names:
        await throttle.failed(address, name)


async def test_the_limit_and_when_it_ends(throttle: Throttle, clock: Clock) -> None:
    for _ in range(3):
        assert throttle.retry_after("192.0.2.1", "ann") == 0
        await throttle.failed("192.0.2.1", "ann")
        clock.now += 10
    assert throttle.retry_after("192.0.2.1", "ann") == 270
    clock.now += 269.5
    assert throttle.retry_after("192.0.2.1", "ann") == 1
    clock.now += 0.5
    assert throttle.retry_after("192.0.2.1", "ann") == 0  # the first has gone; the window slides
    await throttle.failed("192.0.2.1", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") == 10


@pytest.mark.parametrize(
    ("failures", "asks", "waits"),
    [
        pytest.param([("192.0.2.1", "ann")] * 3, ("192.0.2.1", "ann"), True, id="the same again"),
        pytest.param([("192.0.2.1", "ann")] * 2, ("192.0.2.1", "ann"), False, id="below the limit"),
        pytest.param([("192.0.2.1", "ann")] * 3, ("192.0.2.2", "ann"), False, id="the user from elsewhere"),
        pytest.param([("192.0.2.1", n) for n in "abc"], ("192.0.2.1", "d"), True, id="many names at one address"),
        pytest.param([(f"192.0.2.{n}", "ann") for n in range(9)], ("192.0.2.99", "ann"), False, id="many addresses"),
        pytest.param([(f"2001:db8::{n}", "ann") for n in range(3)], ("2001:db8::ffff", "ann"), True, id="one /64"),
        pytest.param([("2001:db8::1", "ann")] * 3, ("2001:db8:0:1::", "ann"), False, id="the next /64"),
        pytest.param([("::ffff:192.0.2.1", "ann")] * 3, ("192.0.2.1", "ann"), True, id="IPv4 in IPv6"),
        pytest.param([("::ffff:192.0.2.1", "ann")] * 3, ("::ffff:192.0.2.2", "ann"), False, id="another IPv4 in IPv6"),
        pytest.param([("", "ann")] * 3, ("", "ann"), True, id="no address"),
        pytest.param([("", "ann")] * 3, ("192.0.2.1", "ann"), False, id="an address beside those without"),
        pytest.param([("junk", "ann"), ("", "ann"), ("more junk", "ann")], ("", "bob"), True, id="no address at all"),
    ],
)
async def test_who_waits(
    throttle: Throttle,
    failures: list[tuple[str, str]],
    asks: tuple[str, str],
    waits: bool,  # noqa: FBT001
) -> None:
    for address, name in failures:
        await throttle.failed(address, name)
    assert (throttle.retry_after(*asks) > 0) is waits


async def test_success_clears_the_pair_and_no_other(throttle: Throttle) -> None:
    await fail(throttle, "192.0.2.1", "ann", "ann")
    await throttle.succeeded("192.0.2.1", "ann")
    await fail(throttle, "192.0.2.1", "ann", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") == 0


async def test_what_was_not_decided_is_taken_back_once(throttle: Throttle) -> None:
    await fail(throttle, "192.0.2.1", "ann", "ann", "bob")
    await throttle.undecided("192.0.2.1", "ann")
    await throttle.undecided("192.0.2.1", "nobody")
    assert throttle.retry_after("192.0.2.1", "ann") == 0
    await fail(throttle, "192.0.2.1", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0


async def test_an_account_of_ones_own_does_not_buy_more_guesses(throttle: Throttle) -> None:
    await fail(throttle, "192.0.2.1", "ann", "ann")
    await throttle.succeeded("192.0.2.1", "mallory")
    await fail(throttle, "192.0.2.1", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0
    await throttle.succeeded("192.0.2.1", "mallory")
    assert throttle.retry_after("192.0.2.1", "ann") > 0


async def test_a_limit_for_a_name_that_is_less_than_the_addresss(clock: Clock) -> None:
    """One worker with an old password does not stop the others behind the same address."""
    throttle = throttle_of(attempts=9, window=WINDOW, per_name=3, clock=clock)
    await fail(throttle, "192.0.2.1", "old", "old", "old")
    assert throttle.retry_after("192.0.2.1", "old") == 300
    assert throttle.retry_after("192.0.2.1", "new") == 0
    await fail(throttle, "192.0.2.1", *"abcdef")
    assert throttle.retry_after("192.0.2.1", "new") == 300
    await throttle.succeeded("192.0.2.1", "a")
    assert throttle.retry_after("192.0.2.1", "new") == 0
    assert throttle.retry_after("192.0.2.1", "old") == 300


@pytest.mark.parametrize("name", ["", "x" * 1_000_000, "a\0b", "lone \udc80 \ud800", "ü"])
async def test_any_user_name_is_counted(throttle: Throttle, name: str) -> None:
    await fail(throttle, "192.0.2.1", name, name, name)
    assert throttle.retry_after("192.0.2.1", name) == 300


async def test_row23_strangers_fill_the_memory_and_lock_nobody_out_nor_free_an_attacker() -> None:
    throttle = throttle_of(attempts=3, window=WINDOW, clock=Clock(), capacity=1_000)
    await fail(throttle, "192.0.2.1", "ann", "ann", "ann")
    for number in range(100_000):
        await throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0  # who has reached the limit is remembered
    assert throttle.retry_after("192.0.2.2", "ann") == 0  # ann herself signs in, from wherever she is
    await fail(throttle, "192.0.2.3", "bob", "bob")
    assert throttle.retry_after("192.0.2.3", "bob") == 0
    await fail(throttle, "192.0.2.3", "bob")
    assert throttle.retry_after("192.0.2.3", "bob") > 0  # and who comes later is counted all the same
    assert len(throttle.failures._few) + len(throttle.failures._many) <= 2_000


async def test_attackers_who_fill_both_memories_do_not_stop_the_counting() -> None:
    throttle = throttle_of(attempts=3, window=WINDOW, clock=Clock(), capacity=100)
    for number in range(500):
        await fail(throttle, f"10.0.{number >> 8}.{number & 255}", "ann", "ann", "ann")
    await fail(throttle, "192.0.2.1", "ann", "ann", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0
    assert throttle.retry_after("192.0.2.2", "ann") == 0
    assert throttle.retry_after("10.0.0.0", "ann") == 0  # the oldest of the attackers is forgotten, nobody refused


async def test_guesses_that_were_sent_all_at_once_take_no_more_memory_than_the_limit(throttle: Throttle) -> None:
    await fail(throttle, "192.0.2.1", *map(str, range(1_000)))
    assert len(throttle.failures._many["192.0.2.1"].failures) == 3


@pytest.mark.parametrize(
    ("around", "guesses"), [(lambda n: f"2001:db8:0:{n:x}::1", 4), (lambda n: f"2001:db8:0:{n << 8:x}::1", 16)]
)
async def test_who_has_many_networks_has_not_so_many_times_the_guesses(
    throttle: Throttle, around: Callable[[int], str], guesses: int
) -> None:
    """A /56 has 256 times a /64, and a /48 has 256 times a /56: the limits are 4 and 16 times those of one."""
    sent = 0
    for number in range(256):
        if not throttle.retry_after(around(number), "ann"):
            await throttle.failed(around(number), "ann")
            sent += 1
    assert sent == 3 * guesses
    assert throttle.retry_after("2001:db8:1::1", "ann") == 0  # the next /48
    assert throttle.retry_after("192.0.2.1", "ann") == 0


async def test_who_is_right_frees_its_own_network_alone_of_what_was_counted(throttle: Throttle) -> None:
    for number in range(11):
        await throttle.failed(f"2001:db8:0:{number:x}::1", "ann")
    await throttle.failed("2001:db8:0:ff::1", "ann")
    assert throttle.retry_after("2001:db8:0:fe::1", "ann") > 0
    await throttle.succeeded("2001:db8:0:ff::1", "ann")
    assert throttle.retry_after("2001:db8:0:fe::1", "ann") == 0
    await throttle.failed("2001:db8:0:fe::1", "ann")
    assert throttle.retry_after("2001:db8:0:ff::1", "ann") > 0  # those of the others still count


async def test_memory_is_given_back_after_the_window(throttle: Throttle, clock: Clock) -> None:
    await fail(throttle, "192.0.2.1", "ann", "ann", "ann")
    await fail(throttle, "192.0.2.2", "ann")
    clock.now += WINDOW
    await fail(throttle, "192.0.2.3", "ann", "ann", "ann")
    assert (len(throttle.failures._few), len(throttle.failures._many)) == (0, 1)


Step = tuple[float, str, str, bool]
STEPS = st.lists(
    st.tuples(st.floats(0, 200), st.sampled_from(["192.0.2.1", "192.0.2.2"]), st.sampled_from("abc"), st.booleans()),
    max_size=40,
)


@given(STEPS)
def test_it_agrees_with_counting_everything(steps: list[Step]) -> None:
    """The whole history, counted anew at each step, gives the same answers."""
    clock = Clock()
    throttle = throttle_of(attempts=3, window=WINDOW, per_name=2, clock=clock)
    history: list[tuple[float, str, str]] = []
    for pause, address, name, good in steps:
        clock.now += pause
        recent = [one for one in history if one[0] > clock.now - WINDOW and one[1] == address]
        ends = [when for when, _, _ in recent][-3:-2] + [when for when, _, whose in recent if whose == name][-2:-1]
        expected = math.ceil(max(ends) - (clock.now - WINDOW)) if ends else 0
        assert throttle.retry_after(address, name) == expected
        if expected == 0:
            if good:
                history = [one for one in history if one[1:] != (address, name)]
                run(throttle.succeeded(address, name))
            else:
                history.append((clock.now, address, name))
                run(throttle.failed(address, name))


def run(coroutine: object) -> None:
    """Run what, without a store, has nothing to wait for."""
    with pytest.raises(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]


# with a store ---------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


async def test_replicas_add_up_what_they_count(redis: RedisServer) -> None:
    stores = [Store(redis.url, "test:", timeout=PATIENT) for _ in range(2)]
    one, two = (throttle_of(attempts=4, window=WINDOW, store=store) for store in stores)
    await fail(one, "192.0.2.1", "ann", "bob", "bob")
    assert two.retry_after("192.0.2.1", "ann") == 0
    await fail(two, "192.0.2.1", "ann")
    assert 290 < two.retry_after("192.0.2.1", "ann") <= 300
    assert two.retry_after("192.0.2.2", "ann") == 0
    for store in stores:
        await store.close()


async def test_success_here_is_success_elsewhere(redis: RedisServer) -> None:
    stores = [Store(redis.url, "test:", timeout=PATIENT) for _ in range(2)]
    one, two = (throttle_of(attempts=4, window=WINDOW, store=store) for store in stores)
    await fail(one, "192.0.2.1", "ann", "ann", "ann")
    await two.succeeded("192.0.2.1", "ann")
    await fail(two, "192.0.2.1", "ann")
    assert two.retry_after("192.0.2.1", "ann") == 0
    for store in stores:
        await store.close()


async def test_a_limit_for_a_name_is_added_up_too(redis: RedisServer) -> None:
    stores = [Store(redis.url, "test:", timeout=PATIENT) for _ in range(2)]
    one, two = (throttle_of(attempts=9, window=WINDOW, per_name=3, store=store) for store in stores)
    await fail(one, "192.0.2.1", "old", "old", "bob")
    await fail(two, "192.0.2.1", "old")
    assert two.retry_after("192.0.2.1", "old") > 0
    assert two.retry_after("192.0.2.1", "bob") == 0
    for store in stores:
        await store.close()


async def test_what_was_counted_elsewhere_ends_when_it_ends_there(redis: RedisServer) -> None:
    stores = [Store(redis.url, "test:", timeout=PATIENT) for _ in range(2)]
    one, two = (throttle_of(attempts=4, window=20, store=store) for store in stores)
    await fail(one, "192.0.2.1", "ann", "ann", "ann")
    await asyncio.sleep(1.1)
    await fail(two, "192.0.2.1", "ann")
    assert two.retry_after("192.0.2.1", "ann") <= 19
    for store in stores:
        await store.close()


async def test_without_the_store_each_counts_alone(redis: RedisServer) -> None:
    store = Store(redis.url, "test:", timeout=PATIENT)
    throttle = throttle_of(attempts=3, window=WINDOW, store=store)
    await fail(throttle, "192.0.2.1", "ann")
    redis.stop()
    await fail(throttle, "192.0.2.1", "ann", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0
    await throttle.succeeded("192.0.2.1", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") == 0
    redis.start()
    await fail(throttle, "192.0.2.1", "ann", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") == 0
    await fail(throttle, "192.0.2.1", "ann")
    assert throttle.retry_after("192.0.2.1", "ann") > 0
    await store.close()


def test_an_address_is_a_bounded_name() -> None:
    assert sender_of("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::/64"
    assert sender_of("[2001:db8:1:2::1]:443") == "2001:db8:1:2::/64"
    assert sender_of("192.0.2.1") == "192.0.2.1"
    assert sender_of("x" * 100_000) == sender_of("") == ""
