"""Signing in with a user name and a password: who gets in, who does not, and what each is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.adapters.users_file import hash_password
from service.gate.application import ForwardAuth
from service.settings import Settings
from service.web.app import create_app
from service.web.attempts import ATTEMPT_SECONDS, MAX_ATTEMPTS, MAX_SIGN_INS_PER_PAGE
from tests.web.conftest import COOKIE, ORIGIN, PASSWORD, Person, hidden, set_cookies, shown

pytestmark = pytest.mark.anyio
DEEP = "/v2/runs/flow-run/0197?tab=Logs&q=a%20b"


@asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[ForwardAuth]:
    app = create_app(Settings(**settings))
    await app.start()
    yield app
    await app.stop()


def refused(answer: httpx.Response) -> str:
    """Return what the page says to somebody who is not signed in by this answer."""
    assert answer.status_code >= 400, answer.status_code
    assert COOKIE not in set_cookies(answer)
    assert answer.headers["content-type"].startswith("text/html")
    return shown(answer)


# in -------------------------------------------------------------------------------------------------------


async def test_a_person_signs_in_and_is_let_through_as_who_they_are(person: Person) -> None:
    sent_away = await person.ask(DEEP)
    assert sent_away.status_code == 302
    page = await person.open(sent_away.headers["location"])
    assert page.status_code == 200
    answer = await person.submit("/_auth/login", {"username": "alice", "password": PASSWORD, **hidden(page)})
    assert answer.status_code == 303
    assert answer.headers["location"] == DEEP
    assert answer.headers["cache-control"] == "no-store"
    entered = await person.ask(DEEP)
    assert entered.status_code == 200
    assert entered.headers["x-auth-request-user"] == "alice"
    assert entered.headers["x-auth-request-roles"] == "viewer"
    assert entered.headers["x-auth-request-issuer"] == "local"


async def test_the_session_is_kept_to_this_host_and_from_scripts(person: Person) -> None:
    answer = await person.sign_in()
    cookie = SimpleCookie(set_cookies(answer)[COOKIE])[COOKIE]
    assert (cookie["path"], cookie["domain"], cookie["samesite"]) == ("/", "", "Lax")
    assert cookie["secure"]
    assert cookie["httponly"]
    assert int(cookie["max-age"]) == pytest.approx(16 * 3600, abs=5)
    assert not [name for name in person.cookies if "attempt" in name]  # an attempt is good for one end


async def test_the_fragment_that_the_browser_kept_comes_back_too(person: Person) -> None:
    answer = await person.sign_in(return_to=DEEP, fragment="#logs-17")
    assert answer.headers["location"] == f"{DEEP}#logs-17"


ASTRAY = {
    "row35-two-slashes": ("//evil.example", ""),
    "row35-back-slash": ("/\\evil.example", ""),
    "row35-absolute": ("https://evil.example/", ""),
    "row35-header": ("/v2\r\nSet-Cookie: evil=1", ""),
    "row35-loop": ("/_auth/login", ""),
    "row35-header-in-fragment": ("//evil.example", "x\r\nSet-Cookie: evil=1"),
}


@pytest.mark.parametrize(("return_to", "fragment"), ASTRAY.values(), ids=ASTRAY)
async def test_row35_nobody_is_led_astray_after_signing_in(person: Person, return_to: str, fragment: str) -> None:
    page = await person.open(str(httpx.URL("/_auth/login", params={"return_to": return_to})))
    assert hidden(page)["return_to"] == "/"
    answer = await person.sign_in(return_to=return_to, fragment=fragment)
    assert answer.status_code == 303
    assert answer.headers["location"].partition("#")[0] == "/"
    assert "evil" not in "".join(set_cookies(answer))


async def test_row36_a_session_that_was_planted_is_replaced(person: Person, site: ForwardAuth) -> None:
    attacker = Person(site, address="198.51.100.9")
    await attacker.sign_in("bob", "another pass phrase")
    planted = attacker.cookies[COOKIE]
    person.client.cookies.set(COOKIE, planted, domain="prefect.example.com", path="/")
    await person.sign_in()
    assert COOKIE in person.cookies
    assert planted not in person.cookies.values()
    assert (await person.ask()).headers["x-auth-request-user"] == "alice"


# not in ---------------------------------------------------------------------------------------------------

WRONG = {
    "wrong-password": ("alice", "wrong"),
    "unknown-user": ("mallory", PASSWORD),
    "other-users-password": ("bob", PASSWORD),
    "other-case": ("Alice", PASSWORD),
    "no-password": ("alice", ""),
    "no-name": ("", PASSWORD),
    "nothing": ("", ""),
    "row25-over-72-bytes": ("alice", PASSWORD + "x" * 100),
    "row25-nul": ("alice", PASSWORD + "\x00"),
    "row25-nul-in-name": ("alice\x00", PASSWORD),
    "row25-4000-bytes": ("alice", "x" * 4_000),
    "row25-not-ascii": ("älice", "pässwörd"),
    "row16-line-break-in-name": ("alice\r\nX-Auth-Request-User: admin", PASSWORD),
    "jwt-shaped": ("alice", "eyJhbGciOiJub25lIn0.e30."),
}


@pytest.mark.parametrize(("username", "password"), WRONG.values(), ids=WRONG)
async def test_a_wrong_pair_is_told_the_same_whatever_was_wrong(person: Person, username: str, password: str) -> None:
    answer = await person.sign_in(username, password)
    assert "The user name or the password is wrong." in refused(answer)
    assert answer.status_code == 403
    assert (await person.ask()).status_code == 302


async def test_what_was_typed_as_a_name_is_shown_again_as_text_alone(person: Person) -> None:
    name = '"><script>alert(1)</script>'
    answer = await person.sign_in(name, "wrong")
    assert "<script>alert" not in answer.text
    assert "&#34;&gt;&lt;script&gt;" in answer.text


async def test_after_a_wrong_password_the_form_works_without_starting_over(person: Person) -> None:
    page = await person.sign_in(password="wrong", return_to=DEEP)
    again = await person.submit("/_auth/login", {**hidden(page), "username": "alice", "password": PASSWORD})
    assert again.status_code == 303
    assert again.headers["location"] == DEEP


CROSS_SITE = {
    "row36-other-site": {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
    "row36-sibling": {"sec_fetch_site": "same-site", "origin": "https://other.example.com"},
    "row36-typed": {"sec_fetch_site": "none"},
    "row36-no-fetch-metadata-and-other-origin": {"sec_fetch_site": "", "origin": "https://evil.example"},
    "row36-no-fetch-metadata-and-origin-null": {"sec_fetch_site": "", "origin": "null"},
    "row36-no-fetch-metadata-and-no-origin": {"sec_fetch_site": "", "origin": ""},
    "row36-look-alike-origin": {"sec_fetch_site": "", "origin": f"{ORIGIN}.evil.example"},
    "row36-other-scheme": {"sec_fetch_site": "", "origin": "http://prefect.example.com"},
    "row36-other-port": {"sec_fetch_site": "", "origin": f"{ORIGIN}:8443"},
    "row36-origin-contradicted": {"sec_fetch_site": "cross-site", "origin": ORIGIN},
}


@pytest.mark.parametrize("headers", CROSS_SITE.values(), ids=CROSS_SITE)
async def test_row36_another_site_signs_nobody_in(person: Person, headers: dict[str, str]) -> None:
    page = await person.open("/_auth/login")
    form = {"username": "alice", "password": PASSWORD, **hidden(page)}
    answer = await person.submit("/_auth/login", form, **headers)
    assert "This sign-in was not begun in this browser" in refused(answer)
    assert answer.status_code == 400


async def test_a_browser_without_fetch_metadata_signs_in_by_its_origin(person: Person) -> None:
    page = await person.open("/_auth/login")
    form = {"username": "alice", "password": PASSWORD, **hidden(page)}
    assert (await person.submit("/_auth/login", form, sec_fetch_site="")).status_code == 303


async def test_row36_a_form_that_another_browser_was_given_signs_nobody_in(person: Person, site: ForwardAuth) -> None:
    of_attacker = hidden(await Person(site, address="198.51.100.9").open("/_auth/login"))
    await person.open("/_auth/login")
    for csrf in (of_attacker["csrf"], "", "x" * 43, "zoë", "\x00", f"{of_attacker['csrf'][:12]}{'A' * 31}"):
        form = {"username": "alice", "password": PASSWORD, "csrf": csrf}
        assert "sign in again" in refused(await person.submit("/_auth/login", form))


async def test_a_form_without_its_cookie_signs_nobody_in_and_the_next_one_does(person: Person) -> None:
    page = await person.open("/_auth/login")
    person.client.cookies.clear()
    form = {"username": "alice", "password": PASSWORD}
    again = await person.submit("/_auth/login", {**form, **hidden(page)})
    assert "not begun in this browser" in refused(again)
    assert 'value="alice"' in again.text  # it need not be typed again
    assert (await person.submit("/_auth/login", {**form, **hidden(again)})).status_code == 303


async def test_a_form_is_good_for_one_sign_in(person: Person) -> None:
    page = await person.open("/_auth/login")
    form = {"username": "alice", "password": PASSWORD, **hidden(page)}
    assert (await person.submit("/_auth/login", form)).status_code == 303
    assert "was used already" in refused(await person.submit("/_auth/login", form))


async def test_a_form_that_was_left_open_for_too_long_asks_again(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await person.open("/_auth/login")
    form = {"username": "alice", "password": PASSWORD, **hidden(page)}
    kept = "; ".join(f"{name}={value}" for name, value in person.cookies.items())  # by a browser that forgets nothing
    now = time.time
    monkeypatch.setattr("service.web.attempts.time.time", lambda: now() + ATTEMPT_SECONDS - 5)
    assert (await person.submit("/_auth/login", form, cookie=kept)).status_code == 303
    monkeypatch.setattr("service.web.attempts.time.time", lambda: now() + ATTEMPT_SECONDS)
    assert "took too long" in refused(await person.submit("/_auth/login", form, cookie=kept))


async def test_several_tabs_sign_in_each_with_a_form_of_its_own(person: Person) -> None:
    pages = [await person.open("/_auth/login") for _ in range(MAX_ATTEMPTS + 1)]
    assert len([name for name in person.cookies if "attempt" in name]) == MAX_ATTEMPTS
    answers = [
        await person.submit("/_auth/login", {"username": "alice", "password": PASSWORD, **hidden(page)})
        for page in reversed(pages)
    ]
    assert [one.status_code for one in answers] == [303] * MAX_ATTEMPTS + [400]  # the oldest was let go


# forms that no browser sends ------------------------------------------------------------------------------

ODD = {
    "json": ("application/json", b'{"username": "alice", "password": "x"}'),
    "no-type": ("", b"username=alice"),
    "text": ("text/plain", b"username=alice"),
    "no-form": ("application/x-www-form-urlencoded", b"\x00\xff\xfe%%%&&&==="),
    "over-long-name": ("application/x-www-form-urlencoded", b"username=" + b"x" * 5_000),
    "repeated": ("application/x-www-form-urlencoded", b"username=alice&username=bob&csrf=a&csrf=b"),
    "very-many-fields": ("application/x-www-form-urlencoded", b"a=b&" * 2_000),
    "broken-multipart": ("multipart/form-data", b"--x"),
    "file": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="username"; filename="a"\r\n\r\nalice\r\n--x--\r\n',
    ),
    "odd-charset": (
        "multipart/form-data; boundary=x; charset=unicode_escape",
        b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n\\ud800\r\n--x--\r\n',
    ),
    "slow-charset": (
        "multipart/form-data; boundary=x; charset=punycode",
        b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\n-' + b"9" * 120_000 + b"\r\n--x--\r\n",
    ),
    "many-parameters": ("application/x-www-form-urlencoded" + ";a=b" * 100_000, b"username=alice"),
    "no-charset-at-all": (
        "multipart/form-data; boundary=x; charset=undefined",
        b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nalice\r\n--x--\r\n',
    ),
}


@pytest.mark.parametrize("path", ["/_auth/login", "/_auth/logout", "/_auth/backchannel-logout"])
@pytest.mark.parametrize(("content_type", "body"), ODD.values(), ids=ODD)
async def test_a_body_that_no_page_of_ours_sends_is_a_refusal_and_no_fault(
    person: Person, logged: Callable[[], str], content_type: str, body: bytes, path: str
) -> None:
    await person.sign_in()
    await person.open("/_auth/login")
    headers = {**person._routed(), "origin": ORIGIN, "sec-fetch-site": "same-origin", "content-type": content_type}
    began = time.process_time()
    answer = await person.client.post(path, content=body, headers=headers)
    assert time.process_time() - began < 2  # meanwhile, nobody else is answered
    assert answer.status_code < 500
    assert answer.status_code >= 400 or path == "/_auth/logout"  # which asks first
    assert COOKIE not in set_cookies(answer)
    assert "Traceback" not in logged()


@pytest.mark.parametrize("path", ["/_auth/login", "/_auth/logout", "/_auth/backchannel-logout"])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_body_without_end_is_not_read_to_its_end(person: Person, content_type: str, path: str) -> None:
    sent = 0
    await person.open("/_auth/login")

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        while sent < 64 * 1024 * 1024:
            sent += 65_536
            yield b"&a=" + b"x" * 65_533

    answer = await person.client.post(
        path, content=endless(), headers={**person._routed(), "content-type": content_type}
    )
    assert answer.status_code in {400, 413, 415}
    assert sent <= 1024 * 1024


# how often ------------------------------------------------------------------------------------------------


async def test_too_many_wrong_passwords_and_one_has_to_wait_even_with_the_right_one(
    people_settings: dict[str, Any],
) -> None:
    async with running(people_settings | {"sign_in": {"attempts": 3, "window": 60}}) as app:
        attacker, owner = Person(app, address="198.51.100.9"), Person(app)
        for _ in range(3):
            assert (await attacker.sign_in(password="wrong")).status_code == 403
        waits = await attacker.sign_in()
        assert waits.status_code == 429
        assert 1 <= int(waits.headers["retry-after"]) <= 60
        assert "too many wrong passwords" in refused(waits)
        assert (await owner.sign_in()).status_code == 303  # who is attacked from elsewhere is not locked out


async def test_guesses_that_come_all_at_once_are_no_more_guesses(people_settings: dict[str, Any]) -> None:
    async with running(people_settings | {"sign_in": {"attempts": 3, "window": 60}}) as app:
        attacker = Person(app)
        form = hidden(await attacker.open("/_auth/login"))
        guesses = [*(f"guess {number}" for number in range(20)), PASSWORD]
        answers = await asyncio.gather(
            *(attacker.submit("/_auth/login", {**form, "username": "alice", "password": guess}) for guess in guesses)
        )
        assert sorted(one.status_code for one in answers) == [403] * 3 + [429] * 18
        assert (await attacker.ask()).status_code == 302


async def test_a_password_that_was_not_looked_at_is_not_a_wrong_one(
    people_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(people_settings | {"sign_in": {"attempts": 3, "window": 60}}) as app:
        person, passwords = Person(app), app.wiring.passwords
        assert passwords is not None
        monkeypatch.setattr(passwords._limit, "_capacity", 0)  # as many wait as may
        for _ in range(4):
            assert "checked at once" in refused(await person.sign_in())
        monkeypatch.undo()
        assert (await person.sign_in()).status_code == 303


async def test_the_right_password_begins_the_count_anew(people_settings: dict[str, Any]) -> None:
    async with running(people_settings | {"sign_in": {"attempts": 3, "window": 60}}) as app:
        for _ in range(3):
            person = Person(app)
            assert (await person.sign_in(password="wrong")).status_code == 403
            assert (await person.sign_in(password="wrong")).status_code == 403
            assert (await person.sign_in()).status_code == 303


# where it does not work -----------------------------------------------------------------------------------


async def test_a_session_that_does_not_hold_stops_at_a_page_that_explains(person: Person) -> None:
    for _ in range(MAX_SIGN_INS_PER_PAGE):
        assert (await person.sign_in(return_to=DEEP)).status_code == 303
        del person.client.cookies[COOKIE]  # as a browser does that keeps some cookies and not others
    stopped = await person.open((await person.ask(DEEP)).headers["location"])
    assert stopped.status_code == 400
    assert "did not keep the session" in shown(stopped)
    assert "Cookies are allowed for this site" in shown(stopped)
    retry = next(href for href in stopped.text.split('"') if href.startswith("/_auth/login?return_to="))
    form = await person.open(retry)
    assert form.status_code == 200
    assert hidden(form)["return_to"] == DEEP


async def test_signing_out_and_in_again_is_no_circle(person: Person) -> None:
    for _ in range(MAX_SIGN_INS_PER_PAGE + 2):
        assert (await person.sign_in()).status_code == 303
        page = await person.open("/_auth/logout")
        await person.submit("/_auth/logout", hidden(page))


async def test_over_plain_http_the_page_says_what_to_do(site: ForwardAuth) -> None:
    person = Person(site, "http://prefect.example.com")
    page = await person.open("/_auth/login")
    assert "open it with https://" in refused(page)
    assert not set_cookies(page)


@pytest.mark.parametrize("origin", ["http://localhost:4200", "http://prefect.localhost", "http://127.0.0.1:8000"])
async def test_on_this_machine_plain_http_will_do(site: ForwardAuth, origin: str) -> None:
    person = Person(site, origin)
    answer = await person.submit(
        "/_auth/login", {"username": "alice", "password": PASSWORD}, cookie=""
    )  # no attempt yet
    assert answer.status_code == 400
    cookies = "; ".join(one.partition(";")[0] for one in set_cookies(answer).values())
    form = {"username": "alice", "password": PASSWORD, **hidden(answer)}
    signed_in = await person.submit("/_auth/login", form, cookie=cookies)
    assert "Secure" in set_cookies(signed_in)[COOKIE]


async def test_where_plain_http_is_permitted_people_sign_in_over_it(people_settings: dict[str, Any]) -> None:
    people_settings["session"] |= {"allow_http": True}
    async with running(people_settings) as app:
        person = Person(app, "http://prefect.lan")
        assert (await person.sign_in()).status_code == 303
        assert set(person.cookies) >= {"prefect-gate"}
        assert (await person.ask()).headers["x-auth-request-user"] == "alice"
        over_tls = Person(app, "https://prefect.lan")
        over_tls.client.cookies.set("prefect-gate", person.cookies["prefect-gate"], domain="prefect.lan", path="/")
        assert (await over_tls.ask()).status_code == 302  # there, a sibling could have planted it


async def test_where_nobody_can_sign_in_the_page_says_so(
    settings: dict[str, Any], people_settings: dict[str, Any]
) -> None:
    async with running({"issuer": settings["issuer"]}) as app:
        person = Person(app)
        assert (await person.ask()).status_code == 302
        assert "Sign-in is not set up here" in refused(await person.open("/_auth/login"))
        assert "not set up" in refused(await person.submit("/_auth/login", {"username": "a", "password": "b"}))
    async with running(people_settings | {"sign_in": {"local": False}}) as app:
        assert "not set up" in refused(await Person(app).open("/_auth/login"))


# while it lasts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "new-password"])
async def test_who_is_removed_or_has_a_new_password_is_out_at_once(
    tmp_path: Path, people_settings: dict[str, Any], what: str
) -> None:
    users = tmp_path / "users"
    kept = f"bob:{hash_password('another pass phrase', 4)}\n"
    users.write_text(f"{kept}alice:{hash_password(PASSWORD, 4)}\n")
    async with running(people_settings | {"users": {"file": users, "role": "viewer", "reload": 3_600}}) as app:
        alice, bob = Person(app), Person(app)
        await alice.sign_in()
        await bob.sign_in("bob", "another pass phrase")
        assert [(await one.ask()).status_code for one in (alice, bob)] == [200, 200]
        users.write_text(kept if what == "removed" else f"{kept}alice:{hash_password('brand new', 4)}\n")
        assert app.wiring.users is not None
        await app.wiring.users.reload_if_changed()
        assert (await alice.ask()).status_code == 302
        assert (await alice.fetch()).json()["code"] == "session_ended"
        assert (await bob.ask()).status_code == 200


async def test_new_keys_in_front_sign_nobody_out_and_removed_ones_do(people_settings: dict[str, Any]) -> None:
    old, new = people_settings["session"]["keys"], "another-secret-of-more-than-thirty-two-characters"
    async with running(people_settings) as app:
        person = Person(app)
        await person.sign_in()
        cookie = f"{COOKIE}={person.cookies[COOKIE]}"
    for keys, status in ((f"{new},{old}", 200), (new, 302)):
        async with running(people_settings | {"session": {"keys": keys}}) as app:
            assert (await Person(app).ask(cookie=cookie)).status_code == status


async def test_no_secret_is_ever_logged(person: Person, site: ForwardAuth, logged: Callable[[], str]) -> None:
    page = await person.open("/_auth/login")
    attempt = person.cookies.copy()
    await person.submit("/_auth/login", {"username": "alice", "password": "my wrong password", **hidden(page)})
    await person.submit("/_auth/login", {"username": "a name that is no user", "password": "x", "csrf": "forged-csrf"})
    await person.sign_in()
    await person.ask()
    session = person.cookies[COOKIE]
    await Person(site).ask(cookie=f"{COOKIE}={session[:-2]}")
    await Person(site).ask(cookie=f"{COOKIE}={session}; {COOKIE}={session}")
    sealed = site.wiring.sessions
    assert sealed is not None
    opened = site.wiring.seal.open("session", session.removeprefix("1."))
    assert opened is not None
    session_id = opened.decode().split('"')[1]
    text = logged()
    assert "signed in" in text
    assert "sign-in refused" in text
    secrets = [PASSWORD, "my wrong password", "a name that is no user", session_id, "forged-csrf", *attempt.values()]
    assert not [one for one in [*secrets, *person.cookies.values(), hidden(page)["csrf"]] if one in text]
