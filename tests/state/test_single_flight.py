"""One piece of work for all who ask for it at the same time."""

import asyncio

import pytest

from service.state.single_flight import SingleFlight

pytestmark = pytest.mark.anyio


class Work:
    """Work that ends when it is told to, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        self.problem: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        if self.problem is not None:
            raise self.problem
        return number


async def test_callers_of_one_key_share_one_outcome_and_the_next_begins_anew() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    callers = [asyncio.create_task(flights.run("a", work)) for _ in range(10)]
    await asyncio.sleep(0)
    assert "a" in flights
    work.go.set()
    assert await asyncio.gather(*callers) == [1] * 10
    assert "a" not in flights
    assert await flights.run("a", work) == 2


async def test_another_key_is_other_work() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.go.set()
    assert sorted(await asyncio.gather(flights.run("a", work), flights.run("b", work))) == [1, 2]


async def test_all_get_the_failure_and_it_is_not_remembered() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.problem = ValueError("no")
    callers = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.go.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(one, ValueError) for one in outcomes)
    work.problem = None
    assert await flights.run("a", work) == 2


async def test_a_caller_who_leaves_does_not_end_the_work_of_the_others() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    leaver, stayer = (asyncio.create_task(flights.run("a", work)) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    work.go.set()
    assert await stayer == 1
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_what_is_under_way_can_be_ended() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    caller = asyncio.create_task(flights.run("a", Work()))
    await asyncio.sleep(0)
    await flights.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "a" not in flights
    await flights.cancel()  # nothing is left
