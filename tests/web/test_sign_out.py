"""Signing out: nobody against their will, and whoever wants to, wholly."""

import time
from pathlib import Path
from typing import Any

import pytest

from service.core.model import SessionCookie
from service.core.request.cookies import MAX_CHUNKS
from service.gate.application import ForwardAuth
from service.settings import Settings
from service.web.app import create_app
from tests.web.conftest import COOKIE, PASSWORD, Person, hidden, set_cookies, shown

pytestmark = pytest.mark.anyio
OUT = "/_auth/logout"


async def signed_in(site: ForwardAuth, username: str = "alice", password: str = PASSWORD) -> Person:
    person = Person(site)
    assert (await person.sign_in(username, password)).status_code == 303
    return person


async def is_in(person: Person) -> bool:
    return (await person.ask()).status_code == 200


async def test_to_open_the_page_is_to_be_asked(person: Person) -> None:
    await person.sign_in()
    page = await person.open(OUT, sec_fetch_site="cross-site")
    assert page.status_code == 200
    assert "alice" in shown(page)
    assert "Sign out?" in shown(page)
    assert not set_cookies(page)
    assert await is_in(person)


async def test_the_answer_ends_the_session_here_and_in_every_copy(person: Person, site: ForwardAuth) -> None:
    await person.sign_in()
    copied = f"{COOKIE}={person.cookies[COOKIE]}"
    answer = await person.submit(OUT, hidden(await person.open(OUT)))
    assert answer.status_code == 303
    assert answer.headers["location"] == "/_auth/signed-out"
    assert answer.headers["clear-site-data"] == '"cache"'  # the back button shows nothing
    cleared = [one for one in set_cookies(answer).values() if "Max-Age=0" in one and "attempt" not in one]
    assert len([one for one in cleared if "sign-ins" not in one]) == MAX_CHUNKS
    assert not [name for name in person.cookies if name.startswith(COOKIE) and "attempt" not in name]
    assert not await is_in(person)
    assert (await Person(site).ask(cookie=copied)).status_code == 302
    farewell = await person.open(answer.headers["location"])
    assert "You are signed out" in shown(farewell)
    assert 'href="/_auth/login"' in farewell.text


async def test_everywhere_ends_all_of_this_persons_and_nobody_elses(site: ForwardAuth) -> None:
    laptop, phone, bob = (
        await signed_in(site),
        await signed_in(site),
        await signed_in(site, "bob", "another pass phrase"),
    )
    assert [await is_in(one) for one in (laptop, phone, bob)] == [True] * 3
    answer = await laptop.submit(OUT, {**hidden(await laptop.open(OUT)), "everywhere": "1"})
    assert "all your devices" in shown(await laptop.open(answer.headers["location"]))
    assert [await is_in(one) for one in (laptop, phone, bob)] == [False, False, True]
    await phone.sign_in()
    assert await is_in(phone)


async def test_without_everywhere_other_devices_stay(site: ForwardAuth) -> None:
    laptop, phone = await signed_in(site), await signed_in(site)
    await laptop.submit(OUT, hidden(await laptop.open(OUT)))
    assert [await is_in(one) for one in (laptop, phone)] == [False, True]


AGAINST_THEIR_WILL = {
    "row37-other-site": {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
    "row37-sibling": {"sec_fetch_site": "same-site", "origin": "https://x.example.com"},
    "row37-nothing-said": {"sec_fetch_site": "", "origin": ""},
    "row37-null-origin": {"sec_fetch_site": "", "origin": "null"},
}


@pytest.mark.parametrize("headers", AGAINST_THEIR_WILL.values(), ids=AGAINST_THEIR_WILL)
async def test_row37_another_site_signs_nobody_out(person: Person, headers: dict[str, str]) -> None:
    await person.sign_in()
    form = hidden(await person.open(OUT))
    answer = await person.submit(OUT, form, **headers)
    assert "Sign out?" in shown(answer)
    assert not set_cookies(answer)
    assert await is_in(person)


@pytest.mark.parametrize("headers", AGAINST_THEIR_WILL.values(), ids=AGAINST_THEIR_WILL)
async def test_row37_another_site_does_not_make_a_browser_drop_its_session(
    site: ForwardAuth, headers: dict[str, str]
) -> None:
    answer = await Person(site).submit(OUT, {"csrf": "x"}, **headers)  # without the cookie: that is SameSite=Lax
    assert answer.status_code == 303
    assert not set_cookies(answer)


async def test_row37_a_form_of_another_session_signs_nobody_out(site: ForwardAuth) -> None:
    alice, bob = await signed_in(site), await signed_in(site, "bob", "another pass phrase")
    of_bob = hidden(await bob.open(OUT))["csrf"]
    of_sign_in = hidden(await alice.open("/_auth/login"))["csrf"]
    for csrf in (of_bob, of_sign_in, "", "zoë", alice.cookies[COOKIE], "x" * 100):
        answer = await alice.submit(OUT, {"csrf": csrf, "everywhere": "1"})
        assert "Sign out?" in shown(answer)
        assert await is_in(alice)
    assert await is_in(bob)


async def test_without_a_session_one_is_signed_out_already(person: Person) -> None:
    for answer in (await person.open(OUT), await person.submit(OUT, {"csrf": "x"})):
        assert answer.status_code == 303
        assert answer.headers["location"] == "/_auth/signed-out"
    broken = await person.submit(OUT, {"csrf": "x"}, cookie=f"{COOKIE}=1.broken")
    assert "Max-Age=0" in set_cookies(broken)[COOKIE]


async def test_a_session_that_ended_ends_no_others(site: ForwardAuth) -> None:
    """Whoever finds an old cookie cannot sign its owner out, again and again."""
    thief, owner = await signed_in(site), await signed_in(site)
    form = {**hidden(await thief.open(OUT)), "everywhere": "1"}
    stolen = f"{COOKIE}={thief.cookies[COOKIE]}"
    await owner.submit(OUT, {**hidden(await owner.open(OUT)), "everywhere": "1"})
    await owner.sign_in()
    assert await is_in(owner)
    era = site.state.verdicts.era
    answer = await thief.submit(OUT, form, cookie=stolen)
    assert answer.headers["location"] == "/_auth/signed-out"
    assert await is_in(owner)
    assert site.state.verdicts.era == era  # and what is remembered of others stays


async def test_with_a_session_that_ended_one_is_signed_out_already(site: ForwardAuth) -> None:
    person = await signed_in(site)
    sessions = site.wiring.sessions
    assert sessions is not None
    session = sessions.read(SessionCookie(person.cookies[COOKIE].removeprefix("1.")))
    old = sessions.seal(session._replace(began=time.time() - 60_000))
    person.client.cookies.set(COOKIE, f"1.{old}", domain="prefect.example.com", path="/")
    assert (await person.open(OUT)).headers["location"] == "/_auth/signed-out"


# who am I -------------------------------------------------------------------------------------------------


async def test_me_tells_a_person_and_a_program_who_is_signed_in(person: Person) -> None:
    await person.sign_in()
    page = await person.open("/_auth/me")
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    assert "alice" in shown(page)
    assert "viewer" in shown(page)
    told = (await person.open("/_auth/me", accept="application/json")).json()
    assert (told["user"], told["issuer"], told["roles"]) == ("alice", "local", ["viewer"])
    assert told["ends"] - told["began"] == 57_600


async def test_me_without_a_session_leads_to_sign_in_and_tells_a_program_so(person: Person) -> None:
    page = await person.open("/_auth/me")
    assert (page.status_code, page.headers["location"]) == (303, "/_auth/login")
    told = await person.open("/_auth/me", accept="application/json")
    assert (told.status_code, told.json()["code"]) == (401, "session_ended")
    assert COOKIE not in set_cookies(told)


async def test_me_seals_a_session_anew_as_the_gate_does(person: Person, site: ForwardAuth) -> None:
    await person.sign_in()
    sessions = site.wiring.sessions
    assert sessions is not None
    session = sessions.read(SessionCookie(person.cookies[COOKIE].removeprefix("1.")))
    before = sessions.seal(session._replace(began=time.time() - 3_600, seen=time.time() - 301))
    for accept in ("text/html", "application/json"):
        answer = await person.open("/_auth/me", accept=accept, cookie=f"{COOKIE}=1.{before}")
        assert COOKIE in set_cookies(answer), accept


# what every page has in common ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["login", "logout", "me", "denied", "signed-out", "callback"])
async def test_row36_no_page_is_framed_kept_or_runs_what_is_not_ours(person: Person, name: str) -> None:
    await person.sign_in()
    page = await person.open(f"/_auth/{name}")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["x-content-type-options"] == "nosniff"
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in page.headers


async def test_sign_out_everywhere_outlasts_a_copy_but_not_new_keys(
    tmp_path: Path, people_settings: dict[str, Any]
) -> None:
    """Without a store, a restart forgets what was signed out; new keys make up for it."""
    app = create_app(Settings(**people_settings))
    await app.start()
    person = await signed_in(app)
    copied = f"{COOKIE}={person.cookies[COOKIE]}"
    await person.submit(OUT, hidden(await person.open(OUT)))
    assert (await Person(app).ask(cookie=copied)).status_code == 302
    await app.stop()
    for keys, status in ((people_settings["session"]["keys"], 200), ("a-new-secret-" + "x" * 40, 302)):
        again = create_app(Settings(**{**people_settings, "session": {"keys": keys}}))
        await again.start()
        assert (await Person(again).ask(cookie=copied)).status_code == status
        await again.stop()
