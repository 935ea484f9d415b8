"""People issue tokens for themselves: with no more than they have, and nobody but they see or revoke them."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.core.identity.compact import decode_segment
from service.gate.application import ForwardAuth
from service.issuing import ledger as ledger_module
from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from service.settings import Settings
from service.web import own_tokens
from service.web.app import create_app
from tests.web.conftest import Caller, Person, hidden, shown
from tests.web.test_own_tokens import command

pytestmark = pytest.mark.anyio
PAGE = "/_auth/tokens"
DAY = 86_400
BOBS = "another pass phrase"


@pytest.fixture
def settings_of_tokens(people_settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        **people_settings,
        "tokens": {"folder": folder, "people": "deployer", "max_lifetime": 90 * DAY},
        "grants": [
            {"roles": ["deployer"], "issuer": "local", "users": ["alice"]},
            {"roles": ["admin"], "issuer": "prefect-forward-auth", "users": ["etl-worker", "**/etl-worker"]},
            {"roles": ["admin"], "issuer": "prefect-forward-auth", "clients": ["**"]},
        ],
    }


@pytest.fixture
async def issuing(settings_of_tokens: dict[str, Any]) -> AsyncIterator[ForwardAuth]:
    app = create_app(Settings(**settings_of_tokens))
    await app.start()
    yield app
    await app.stop()


@pytest.fixture
async def alice(issuing: ForwardAuth) -> Person:
    person = Person(issuing)
    await person.sign_in()
    return person


@pytest.fixture
async def bob(issuing: ForwardAuth) -> Person:
    person = Person(issuing)
    await person.sign_in("bob", BOBS)
    return person


def given(**fields: str) -> dict[str, str]:
    return {"name": "laptop", "role": "deployer", "lifetime": str(DAY), **fields}


async def issue(person: Person, says: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    """Open the page, and send its form filled in."""
    csrf = hidden(await person.open(PAGE))["csrf"]
    return await person.submit(PAGE, {"csrf": csrf, **given(**fields)}, **(says or {}))


async def revoke(person: Person, token_id: str, **says: str) -> httpx.Response:
    csrf = hidden(await person.open(PAGE))["csrf"]
    return await person.submit(f"{PAGE}/revoke", {"csrf": csrf, "token": token_id}, **says)


def token_of(page: httpx.Response) -> str:
    found = re.search(r"<textarea[^>]*>([^<]*)</textarea>", page.text)
    return html.unescape(found[1]) if found else ""


def offered(page: httpx.Response, field: str) -> list[str]:
    select = re.search(rf'<select id="{field}".*?</select>', page.text, re.DOTALL)
    return re.findall(r"<option(?: value=\"\d+\")?(?: selected)?>([^<]*)", select[0]) if select else []


def ids(folder: Path) -> dict[str, str]:
    """Return the ids of the tokens that are valid, by name."""
    with Ledger(SQLite(folder), rotate=DAY) as ledger:
        return {one.name: one.id for one in ledger.tokens() if one.revoked is None}


async def test_a_token_is_issued_used_and_revoked(
    alice: Person, issuing: ForwardAuth, folder: Path, logged: Callable[[], str]
) -> None:
    machine = Caller(issuing)
    page = await issue(alice)
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    token = token_of(page)
    assert json.loads(decode_segment(token.split(".")[1].encode()))["roles"] == ["deployer"]

    answer = await machine(f"Bearer {token}")

    assert answer.status == 200
    assert answer.header("x-auth-request-user") == "alice/laptop"
    assert answer.header("x-auth-request-roles") == "deployer"  # and no grant for machines counts
    assert answer.header("x-auth-request-issuer") == "prefect-forward-auth/people"
    again = await alice.open(PAGE)
    assert "laptop" in shown(again)
    assert not token_of(again)
    answer_to_revocation = await revoke(alice, ids(folder)["alice/laptop"])
    assert (answer_to_revocation.status_code, answer_to_revocation.headers["location"]) == (303, f"{PAGE}?revoked=1")
    assert (await machine(f"Bearer {token}")).status == 401  # in this process at once
    assert "You have no tokens" in shown(await alice.open(PAGE))
    assert token not in logged()
    for done in ("issued", "revoked"):
        (line,) = (json.loads(one) for one in logged().splitlines() if f"token {done} by its owner" in one)
        assert (line["user"], line["issuer"], line["role"]) == ("alice", "local", "deployer")


async def test_what_is_offered_is_not_above_ones_own(alice: Person) -> None:
    page = await alice.open(PAGE)
    assert offered(page, "role") == ["viewer", "runner", "deployer"]
    assert offered(page, "lifetime") == ["1 day", "7 days", "30 days", "90 days"]
    assert 'href="/_auth/tokens"' in (await alice.open("/_auth/me")).text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"role": "admin"}, "above your own"),
        ({"role": "worker"}, "above your own"),
        ({"role": ""}, "above your own"),
        ({"lifetime": str(365 * DAY)}, "times that are offered"),
        ({"lifetime": "-1"}, "times that are offered"),
        ({"lifetime": f"0{DAY}"}, "times that are offered"),
        ({"name": ""}, "A name has"),
        ({"name": "a/etl-worker"}, "A name has"),
        ({"name": "line\u2028break"}, "A name has"),
        ({"name": "right\u202eleft"}, "A name has"),
        ({"name": " laptop"}, "A name has"),
        ({"name": "x" * 61}, "A name has"),
        ({"csrf": "forged"}, "not valid any more"),
    ],
)
async def test_a_crafted_form_issues_nothing(alice: Person, folder: Path, fields: dict[str, str], told: str) -> None:
    page = await issue(alice, **fields)
    assert page.status_code == 400
    assert told in shown(page)
    assert not token_of(page)
    assert ids(folder) == {}


async def test_a_name_is_text_wherever_it_is_shown(alice: Person, folder: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    for page in (await issue(alice, name=name), await alice.open(PAGE)):
        assert page.status_code == 200
        assert "<img" not in page.text
        assert name in html.unescape(page.text)
    assert list(ids(folder)) == [f"alice/{name}"]


async def test_whoever_has_not_the_role_issues_nothing_but_sees_the_page(bob: Person, folder: Path) -> None:
    page = await bob.open(PAGE)
    assert page.status_code == 200
    assert "do not let you issue" in shown(page)
    csrf = bob.app.wiring.seal.seal("tokens", f"{session_id(bob)} x".encode())
    answer = await bob.submit(PAGE, {"csrf": csrf, **given(role="viewer")})
    assert (answer.status_code, ids(folder)) == (400, {})


def session_id(person: Person) -> str:
    sealed = person.cookies["__Host-prefect-gate"].partition(".")[2]
    return str(json.loads(person.app.wiring.seal.open("session", sealed) or b"")[0])


async def test_nobody_sees_or_revokes_the_tokens_of_somebody_else(
    issuing: ForwardAuth, alice: Person, bob: Person, folder: Path
) -> None:
    token = token_of(await issue(alice))
    (hers,) = ids(folder).values()
    assert "laptop" not in shown(await bob.open(PAGE))
    csrf = bob.app.wiring.seal.seal("tokens", f"{session_id(bob)} x".encode())
    for token_id in (hers, ""):
        await bob.submit(f"{PAGE}/revoke", {"csrf": csrf, "token": token_id})
    await revoke(alice, "")
    assert (await Caller(issuing)(f"Bearer {token}")).status == 200
    with Ledger(SQLite(folder), rotate=DAY) as ledger:
        _, operators = ledger.issue("etl", "worker", DAY, "prefect-forward-auth", "prefect")
    await revoke(alice, operators.id)
    assert "etl" in ids(folder)


async def test_a_form_of_another_site_does_nothing(alice: Person, folder: Path) -> None:
    await issue(alice, name="kept")
    for says in ({"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}, {"sec_fetch_site": ""}):
        elsewhere = {**says, "origin": "https://evil.example"}
        assert (await issue(alice, elsewhere, name="theirs")).status_code == 400
        assert (await revoke(alice, ids(folder)["alice/kept"], **elsewhere)).status_code == 400
    assert list(ids(folder)) == ["alice/kept"]


async def test_a_form_of_another_session_does_nothing(issuing: ForwardAuth, alice: Person, folder: Path) -> None:
    other = Person(issuing)
    await other.sign_in()
    csrf = hidden(await other.open(PAGE))["csrf"]
    assert (await alice.submit(PAGE, {"csrf": csrf, **given()})).status_code == 400
    assert ids(folder) == {}


async def test_a_form_works_once(alice: Person, folder: Path) -> None:
    csrf = hidden(await alice.open(PAGE))["csrf"]
    assert token_of(await alice.submit(PAGE, {"csrf": csrf, **given()}))
    again = await alice.submit(PAGE, {"csrf": csrf, **given()})
    assert (again.status_code, token_of(again)) == (409, "")
    assert len(ids(folder)) == 1


async def test_nobody_has_more_tokens_than_one_needs(
    alice: Person, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_OWNED", 2)
    answers = [(await issue(alice, name=f"laptop {number}")).status_code for number in range(4)]
    assert answers == [200, 200, 429, 429]
    assert len(ids(folder)) == 2


async def test_a_session_that_has_ended_leads_to_sign_in(issuing: ForwardAuth, alice: Person, folder: Path) -> None:
    csrf = hidden(await alice.open(PAGE))["csrf"]
    copied = f"__Host-prefect-gate={alice.cookies['__Host-prefect-gate']}"
    await alice.submit("/_auth/logout", hidden(await alice.open("/_auth/logout")))
    for answer in (
        await Person(issuing).open(PAGE),
        await Person(issuing).open(PAGE, cookie=copied),
        await Person(issuing).submit(PAGE, {"csrf": csrf, **given()}, cookie=copied),
        await Person(issuing).submit(f"{PAGE}/revoke", {"csrf": csrf, "token": "1"}, cookie=copied),
    ):
        assert (answer.status_code, answer.headers["location"]) == (303, "/_auth/login")
    assert ids(folder) == {}


@pytest.mark.parametrize("tokens", [None, {}])
async def test_without_the_setting_there_is_no_such_page(
    people_settings: dict[str, Any], folder: Path, tokens: dict[str, Any] | None
) -> None:
    more = {} if tokens is None else {"tokens": {"folder": folder}}
    app = create_app(Settings(**people_settings, **more))
    await app.start()
    person = Person(app)
    await person.sign_in()
    assert (await person.open(PAGE)).status_code == 404
    assert (await person.submit(PAGE, given())).status_code == 404
    assert (await person.submit(f"{PAGE}/revoke", {"token": "x"})).status_code == 404
    assert "/_auth/tokens" not in (await person.open("/_auth/me")).text
    await app.stop()


async def test_a_ledger_that_cannot_be_used_is_said_so(
    alice: Person, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_tokens, "MAX_WAITING", 0)
    assert (await alice.open(PAGE)).status_code == 503
    monkeypatch.undo()
    csrf = hidden(await alice.open(PAGE))["csrf"]
    await asyncio.to_thread(folder.chmod, 0o777)
    page = await alice.submit(PAGE, {"csrf": csrf, **given()})
    await asyncio.to_thread(folder.chmod, 0o700)
    assert page.status_code == 503
    assert str(folder) not in page.text


async def test_an_operator_sees_whose_tokens_they_are_and_revokes_them_all(
    alice: Person, issuing: ForwardAuth, folder: Path
) -> None:
    await issue(alice)
    await issue(alice, name="server")
    listed = command(folder, "list").stdout
    assert listed.count("local alice") == 2
    done = command(folder, "revoke", "--owner", "local alice")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    again = command(folder, "revoke", "--owner", "local alice")
    assert (again.returncode, "owner 'local alice'" in again.stderr) == (1, True)
    assert ids(folder) == {}


def test_only_roles_that_there_are_can_be_named(people_settings: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens\.people"):
        Settings(**people_settings, tokens={"folder": folder, "people": "no-such-role"})
