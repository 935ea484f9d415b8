"""Bounds on work that is dear: how many at once, how many wait, and how soon the others are refused."""

import asyncio
import time

import pytest

from service.core.errors import Throttled
from service.core.problems import Problem
from service.state import concurrency
from service.state.concurrency import ConcurrencyLimit, RefusalDelay

pytestmark = pytest.mark.anyio


def limit_of(running: int, waiting: int) -> ConcurrencyLimit:
    return ConcurrencyLimit(running, waiting, RefusalDelay(), Problem.PASSWORD_CHECKS_FULL, where="here")


async def test_so_many_work_so_many_wait_in_turn_and_the_others_are_told_when_to_come_back() -> None:
    limit, at_work, most, order = limit_of(2, 3), 0, 0, []
    go = asyncio.Event()

    async def enter(number: int) -> None:
        nonlocal at_work, most
        async with limit.slot():
            at_work += 1
            most = max(most, at_work)
            order.append(number)
            await go.wait()
            at_work -= 1

    inside = [asyncio.create_task(enter(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert limit.full
    with pytest.raises(Throttled) as refusal:
        async with limit.slot():
            pytest.fail("there was no room")
    assert refusal.value.cause == (Problem.PASSWORD_CHECKS_FULL, {"waiting": 5, "where": "here"})
    assert refusal.value.retry_after > 0
    go.set()
    await asyncio.gather(*inside)
    assert (most, order, limit.inside, limit.full) == (2, [0, 1, 2, 3, 4], 0, False)


async def test_room_that_appears_within_a_moment_is_taken() -> None:
    limit, go = limit_of(1, 0), asyncio.Event()

    async def enter() -> bool:
        async with limit.slot():
            await go.wait()
        return True

    first = asyncio.create_task(enter())
    await asyncio.sleep(0)
    second = asyncio.create_task(enter())
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(first, second) == [True, True]


async def test_a_caller_who_leaves_while_waiting_gives_its_place_back() -> None:
    limit, go = limit_of(1, 1), asyncio.Event()

    async def enter() -> None:
        async with limit.slot():
            await go.wait()

    first, leaver = (asyncio.create_task(enter()) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    assert limit.inside == 1
    go.set()
    await first
    assert limit.inside == 0


async def test_not_more_callers_are_held_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "MAX_DELAYED", 2)
    delay = RefusalDelay()
    began = time.monotonic()
    held = [asyncio.create_task(delay.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    await delay.wait()  # the third is not held
    assert time.monotonic() - began < concurrency.REFUSAL_DELAY
    assert not any(one.done() for one in held)
    await asyncio.gather(*held)
    assert time.monotonic() - began >= concurrency.REFUSAL_DELAY
