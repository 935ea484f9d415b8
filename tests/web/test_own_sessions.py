"""A person sees the sessions of one's own by device, and ends each; nobody else's."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.gate import shared_sightings
from service.gate.application import ForwardAuth
from service.settings import Settings
from service.state import sightings
from service.web.app import create_app
from tests.support.redis import RedisServer
from tests.web.conftest import PASSWORD, SESSION_KEY, Person, hidden, shown

pytestmark = pytest.mark.anyio
PAGE = "/_auth/sessions"
LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Safari/604.1"
WITHIN = 20.0  # seconds, on a busy machine
BOBS = "another pass phrase"


async def signed_in(
    app: ForwardAuth, agent: str = LAPTOP, user: str = "alice", password: str = PASSWORD, address: str = "203.0.113.7"
) -> Person:
    person = Person(app, address=address)
    person.client.headers["user-agent"] = agent
    assert (await person.sign_in(user, password)).status_code == 303
    assert await is_in(person)
    return person


async def is_in(person: Person) -> bool:
    return (await person.ask()).status_code == 200


def listed(page: httpx.Response) -> dict[str, str]:
    """Return the other sessions that a page lists: their ids, by device."""
    devices = re.findall(r"<h2>([^<]*)</h2>(.*?)</li>", page.text, re.DOTALL)
    found = ((device, re.search(r'name="session" value="([^"]*)"', text)) for device, text in devices)
    return {device: one[1] for device, one in found if one}


async def end(person: Person, says: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    csrf = hidden(await person.open(PAGE))["csrf"] if "csrf" not in fields else ""
    return await person.submit(PAGE, {"csrf": csrf, **fields}, **(says or {}))


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_each_device_is_listed_and_ended(site: ForwardAuth, logged: Callable[[], str]) -> None:
    laptop = await signed_in(site)
    phone = await signed_in(site, PHONE, address="2001:db8::7")

    page = await laptop.open(PAGE)

    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert list(listed(page)) == ["Safari on iPhone"]
    assert "Firefox on Linux" in shown(page)
    assert "2001:db8::7" in shown(page)
    answer = await end(laptop, session=listed(page)["Safari on iPhone"])
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}?ended=one")
    assert not await is_in(phone)
    assert await is_in(laptop)
    after = await laptop.open(answer.headers["location"])
    assert "That session has ended." in shown(after)
    assert listed(after) == {}
    (line,) = (json.loads(one) for one in logged().splitlines() if "signed out" in one)
    assert line["session"] != line["by_session"]


async def test_all_others_are_ended_at_once(site: ForwardAuth) -> None:
    laptop = await signed_in(site)
    phones = [await signed_in(site, PHONE) for _ in range(3)]
    bob = await signed_in(site, user="bob", password=BOBS)
    await end(laptop, others="1")
    assert [await is_in(one) for one in (*phones, laptop, bob)] == [False] * 3 + [True] * 2
    assert "Your other sessions have ended." in shown(await laptop.open(f"{PAGE}?ended=others"))


async def test_nobody_sees_or_ends_the_session_of_somebody_else(site: ForwardAuth) -> None:
    alice, bob = await signed_in(site), await signed_in(site, PHONE, "bob", BOBS)
    phone = await signed_in(site, PHONE)
    hers = listed(await alice.open(PAGE))["Safari on iPhone"]
    assert listed(await bob.open(PAGE)) == {}
    await signed_in(site, LAPTOP, "bob", BOBS)
    for session in (hers, "", "no-such-session"):
        await end(bob, session=session)
    assert await is_in(phone)


@pytest.mark.parametrize(
    "says",
    [
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
        {"sec_fetch_site": "same-site", "origin": "https://evil.example"},
        {"sec_fetch_site": "", "origin": "https://evil.example"},
    ],
)
async def test_a_form_of_another_site_ends_nothing(site: ForwardAuth, says: dict[str, str]) -> None:
    laptop, phone = await signed_in(site), await signed_in(site, PHONE)
    page = await end(laptop, says, others="1")
    assert (page.status_code, "not valid any more" in shown(page)) == (400, True)
    assert (await end(laptop, others="1", csrf="forged")).status_code == 400
    assert await is_in(phone)


async def test_ones_own_session_is_ended_by_signing_out(site: ForwardAuth) -> None:
    laptop = await signed_in(site)
    phone = await signed_in(site, PHONE)
    own = listed(await phone.open(PAGE))["Firefox on Linux"]
    answer = await end(laptop, session=own)
    assert answer.headers["location"] == "/_auth/logout"
    assert await is_in(laptop)


async def test_a_session_that_has_ended_is_not_listed_and_lists_nothing(site: ForwardAuth) -> None:
    laptop, phone = await signed_in(site), await signed_in(site, PHONE)
    copied = f"__Host-prefect-gate={phone.cookies['__Host-prefect-gate']}"
    await phone.submit("/_auth/logout", hidden(await phone.open("/_auth/logout")))
    assert listed(await laptop.open(PAGE)) == {}
    for answer in (
        await Person(site).open(PAGE),
        await Person(site).open(PAGE, cookie=copied),
        await Person(site).submit(PAGE, {"others": "1"}, cookie=copied),
    ):
        assert (answer.status_code, answer.headers["location"]) == (303, "/_auth/login")
    assert await is_in(laptop)


async def test_after_a_restart_a_session_is_listed_when_it_is_used(people_settings: dict[str, Any]) -> None:
    app = create_app(Settings(**people_settings))
    await app.start()
    laptop, phone = await signed_in(app), await signed_in(app, PHONE)
    await app.stop()
    again = create_app(Settings(**people_settings))
    await again.start()
    for one in (laptop, phone):
        one.client._transport = httpx.ASGITransport(again, client=("127.0.0.1", 4711))
    page = await laptop.open(PAGE)
    assert listed(page) == {}
    assert "since this service started" in shown(page)
    assert await is_in(phone)
    assert list(listed(await laptop.open(PAGE))) == ["Safari on iPhone"]
    await again.stop()


async def test_what_is_remembered_is_bounded(site: ForwardAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sightings, "MAX_OF_PERSON", 3)
    laptop = await signed_in(site)
    for _ in range(4):
        await signed_in(site, PHONE)
    assert (await laptop.open(PAGE)).text.count("<h2>") == 3
    monkeypatch.setattr(sightings, "MAX_PEOPLE", 1)
    await signed_in(site, PHONE, "bob", BOBS)
    assert (await laptop.open(PAGE)).text.count("<h2>") == 1


# replicas -------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


async def test_replicas_list_and_end_what_others_have_seen(
    people_file: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_sightings, "WRITE_SECONDS", 0.02)
    monkeypatch.setattr(shared_sightings, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(shared_sightings, "MAX_OF_PERSON", 3)
    settings = Settings(
        users={"file": people_file, "role": "viewer"}, session={"keys": SESSION_KEY}, store={"url": redis.url}
    )
    here, there = create_app(settings), create_app(settings)
    for app in (here, there):
        await app.start()
    laptop, phone = await signed_in(here), await signed_in(there, PHONE)

    async def phone_is_listed() -> bool:
        return list(listed(await laptop.open(PAGE))) == ["Safari on iPhone"]

    await until(phone_is_listed, "the session that the other replica saw is listed")
    await end(laptop, session=listed(await laptop.open(PAGE))["Safari on iPhone"])

    async def phone_is_out() -> bool:
        return not await is_in(phone)

    await until(phone_is_out, "the session ends at the other replica")
    for _ in range(7):
        await signed_in(there, PHONE)

    async def some_are_left() -> bool:
        return there.wiring.state.sightings.news.maxlen is not None and not there.wiring.state.sightings.news

    await until(some_are_left, "all was written")
    assert 1 < (await laptop.open(PAGE)).text.count("<h2>") <= 7
    redis.stop()
    page = await laptop.open(PAGE)
    assert (page.status_code, page.text.count("<h2>")) == (200, 1)  # its own, without the store
    redis.start()
    late = await signed_in(there, PHONE)

    async def late_is_listed() -> bool:
        return "Safari on iPhone" in listed(await laptop.open(PAGE))

    await until(late_is_listed, "sightings are shared again")
    assert await is_in(late)
    for app in (here, there):
        await app.stop()
