"""What the presets `keycloak` promise: single sign-on stays, roles arrive, somebody else can sign in."""

from __future__ import annotations

import html
import re
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.core.model import Session, SessionCookie
from tests.support.keycloak import PASSWORD, Keycloak, Realm
from tests.support.provider_pages import ProviderPages
from tests.support.relay_gate import Gate, served
from tests.support.waiting import free_port
from tests.web.conftest import COOKIE, ORIGIN, SESSION_KEY, Person, hidden, shown

pytestmark = [pytest.mark.anyio, pytest.mark.long]
SECRET = "client-secret-0123456789"
MANY = [f"team-{number:03}-of-the-{'x' * 12}" for number in range(130)]


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak) -> Realm:
    """Return a realm with one client for people and one for machines, and no mapper but the audience's."""
    realm = keycloak.realm("presets")
    realm.add_client("prefect", SECRET, ORIGIN)
    realm.add_client("etl", SECRET)
    realm.add_audience_mapper("etl", "prefect-api")
    realm.add_person("alice", roles=["prefect-admin"])
    realm.add_person("bob")
    realm.add_person("carol", roles=["prefect-admin"], emailVerified=False)
    return realm


def configured(realm: Realm, **oidc: Any) -> dict[str, Any]:
    people = {"issuer": realm.issuer, "client_id": "prefect", "client_secret": SECRET, "timeout": 60}
    return {
        "oidc": {"preset": "keycloak", **people, **oidc},
        "issuer": {"preset": "keycloak", "url": realm.issuer, "audiences": "prefect-api", "role": "worker"},
        "grants": [{"roles": ["admin"], "issuer": realm.issuer, "groups": ["prefect-admin"]}],
        "session": {"keys": SESSION_KEY},
    }


@asynccontextmanager
async def gate_of(settings: dict[str, Any]) -> AsyncIterator[Gate]:
    async with served(settings, free_port()) as running:
        yield running


@pytest.fixture
async def gate(realm: Realm) -> AsyncIterator[Gate]:
    async with gate_of(configured(realm)) as running:
        yield running


@pytest.fixture
def pages(keycloak: Keycloak) -> Iterator[ProviderPages]:
    with ProviderPages(keycloak.url) as browser:
        yield browser


def filled_in(name: str) -> dict[str, str]:
    return {"username": name, "password": PASSWORD}


async def sign_in(person: Person, pages: ProviderPages, name: str = "", start: str = "/_auth/start") -> httpx.Response:
    """Sign in from a page of the service; without a name Keycloak has to know who it is."""
    leaves = await person.open(start, sec_fetch_site="same-origin")
    assert leaves.status_code == 302, leaves.text
    back = pages.walk(leaves.headers["location"], filled_in(name) if name else None)
    return await person.open(back, sec_fetch_site="cross-site")


def session_of(person: Person) -> Session:
    sessions = person.app.wiring.sessions
    assert sessions is not None
    chunks = [person.cookies.get(f"{COOKIE}-{number}", "") for number in range(1, 4)]
    return sessions.read(SessionCookie(person.cookies[COOKIE].partition(".")[2] + "".join(chunks)))


async def asked_again(person: Person) -> httpx.Response:
    """Let the session be due for a question to Keycloak, and use it."""
    sessions = person.app.wiring.sessions
    assert sessions is not None
    sealed = sessions.seal(session_of(person)._replace(check_at=time.time() - 90))
    person.client.cookies.set(COOKIE, f"1.{sealed}", domain=urlsplit(ORIGIN).netloc, path="/")
    return await person.ask()


async def test_a_role_of_the_realm_is_a_group_here_with_no_mapper(gate: Gate, pages: ProviderPages) -> None:
    person = Person(gate.app)
    assert (await sign_in(person, pages, "alice")).status_code == 303
    said = (await person.ask()).headers
    assert (said["x-auth-request-user"], said["x-auth-request-email"]) == ("alice", "alice@example.test")
    assert "prefect-admin" in said["x-auth-request-groups"].split(",")
    assert said["x-auth-request-roles"] == "admin"
    assert (await asked_again(person)).headers["x-auth-request-roles"] == "admin"


async def test_the_session_of_keycloak_stays_the_one_that_everything_ends_with(
    gate: Gate, realm: Realm, pages: ProviderPages
) -> None:
    person = Person(gate.app)
    await sign_in(person, pages, "alice")
    assert realm.sessions("alice", "prefect") == []  # no offline session
    person.client.cookies.clear()
    assert (await sign_in(person, pages)).status_code == 303  # without the password again
    realm.log_out("alice")
    assert (await asked_again(person)).status_code == 302


async def test_people_who_may_have_no_offline_session_sign_in_and_are_asked_about(
    keycloak: Keycloak, pages: ProviderPages
) -> None:
    realm = keycloak.realm("online")
    realm.add_client("prefect", SECRET, ORIGIN)
    realm.add_person("alice", roles=["prefect-admin"])
    role = realm.admin("GET", "/roles/offline_access").json()
    realm.admin("DELETE", "/roles/default-roles-online/composites", [role])
    scopes = {one["name"]: one["id"] for one in realm.admin("GET", "/client-scopes").json()}
    client = realm.admin("GET", "/clients?clientId=prefect").json()[0]["id"]
    realm.admin("DELETE", f"/clients/{client}/optional-client-scopes/{scopes['offline_access']}")  # it stays listed
    for preset in ("keycloak", ""):
        async with gate_of(configured(realm, preset=preset, role="viewer")) as gate:
            person = Person(gate.app)
            assert (await sign_in(person, pages, "alice")).status_code == 303
            assert (await asked_again(person)).status_code == 200
            realm.log_out("alice")
            assert (await asked_again(person)).status_code == 302


async def test_somebody_else_signs_in(gate: Gate, pages: ProviderPages) -> None:
    person = Person(gate.app)
    await sign_in(person, pages, "bob")
    denied = await person.open("/_auth/denied", accept="text/html")
    switch = re.search(r'href="([^"]+)"[^>]*>Use another account<', denied.text)
    assert switch
    leaves = await person.open(html.unescape(switch[1]), sec_fetch_site="same-origin")
    back = pages.walk(leaves.headers["location"])
    assert urlsplit(back).path == "/_auth/signed-out"
    again = await person.open(back, sec_fetch_site="cross-site")
    assert (await sign_in(person, pages, "alice", again.headers["location"])).status_code == 303
    assert (await person.ask()).headers["x-auth-request-user"] == "alice"


async def test_somebody_who_may_not_enter_can_come_back_as_somebody_else(realm: Realm, pages: ProviderPages) -> None:
    narrowed = configured(realm, required_claims={"realm_access.roles": ["prefect-admin"]})
    async with gate_of(narrowed) as gate:
        person = Person(gate.app)
        denied = await sign_in(person, pages, "bob")
        assert denied.status_code == 403
        switch = re.search(r'href="([^"]+)"[^>]*>Use another account<', denied.text)
        assert switch
        leaves = await person.open(html.unescape(switch[1]), sec_fetch_site="same-origin")
        again = await person.open(pages.walk(leaves.headers["location"]), sec_fetch_site="cross-site")
        assert (await sign_in(person, pages, "alice", again.headers["location"])).status_code == 303


async def test_who_has_no_groups_is_told_which_mapper_helps(
    realm: Realm, pages: ProviderPages, caplog: pytest.LogCaptureFixture
) -> None:
    async with gate_of(configured(realm, groups_claim="groups")) as gate:
        person = Person(gate.app)
        await sign_in(person, pages, "alice")
        page = shown(await person.open("/_auth/denied", accept="text/html"))
        assert "sent no groups for you (claim groups)" in page
        assert "Group Membership" in page
    assert "without any groups" in caplog.text
    assert "Group Membership" in caplog.text


async def test_a_person_with_very_many_roles_signs_out_and_comes_back(
    gate: Gate, realm: Realm, pages: ProviderPages
) -> None:
    """Their ID token fits beside the session no more, so the client alone says where they come back to."""
    realm.add_person("mary", roles=MANY)
    person = Person(gate.app)
    assert (await sign_in(person, pages, "mary")).status_code == 303
    session = session_of(person)
    assert (len(session.groups) >= len(MANY), session.id_token) == (True, "")
    page = await person.open("/_auth/logout")
    answer = await person.submit("/_auth/logout", hidden(page))
    leads = re.search(r'href="(http[^"]+)"', answer.text)
    assert leads, answer.text
    back = pages.walk(html.unescape(leads[1]))
    assert urlsplit(back).path == "/_auth/signed-out"
    assert realm.sessions("mary") == []


@pytest.fixture(scope="module")
def port() -> int:
    """Return the port at which Keycloak tells the service of logouts."""
    return free_port()


@pytest.fixture(scope="module")
def watched(keycloak: Keycloak, port: int) -> Realm:
    """Return a realm that tells the service of logouts."""
    realm = keycloak.realm("watched")
    realm.add_client("prefect", SECRET, ORIGIN, f"http://127.0.0.1:{port}/_auth/backchannel-logout")
    return realm


def key_of(realm: Realm, name: str) -> str:
    return str(realm.admin("GET", f"/users?exact=true&username={name}").json()[0]["id"])


def ends_one_session(realm: Realm, name: str) -> None:
    realm.delete_session(realm.sessions(name)[-1])


def ends_all_sessions(realm: Realm, _: str) -> None:
    realm.admin("POST", "/logout-all")


def takes_the_role(realm: Realm, name: str) -> None:
    role = realm.admin("GET", "/roles/prefect-admin").json()
    realm.admin("DELETE", f"/users/{key_of(realm, name)}/role-mappings/realm", [role])


def sets_a_password(realm: Realm, name: str) -> None:
    password = {"type": "password", "value": PASSWORD, "temporary": False}
    realm.admin("PUT", f"/users/{key_of(realm, name)}/reset-password", password)


@pytest.mark.parametrize(
    ("does", "at_once", "at_the_check"),
    [
        pytest.param(ends_one_session, 302, 302, id="ends-one-session"),
        pytest.param(ends_all_sessions, 200, 302, id="ends-all-sessions"),
        pytest.param(takes_the_role, 200, 403, id="takes-the-role"),
        pytest.param(sets_a_password, 200, 200, id="sets-a-password"),
    ],
)
async def test_what_an_administrator_does_is_seen_when_the_page_says(
    watched: Realm,
    port: int,
    pages: ProviderPages,
    does: Callable[[Realm, str], None],
    at_once: int,
    at_the_check: int,
) -> None:
    name = f"who-{does.__name__.replace('_', '-')}"
    watched.add_person(name, roles=["prefect-admin"])
    async with served(configured(watched), port) as gate:
        person = Person(gate.app)
        assert (await sign_in(person, pages, name)).status_code == 303
        await to_thread(does, watched, name)  # Keycloak may call the service meanwhile
        assert (await person.ask()).status_code == at_once
        assert (await (asked_again(person) if at_once == 200 else person.ask())).status_code == at_the_check


async def test_an_address_that_is_not_verified_is_not_handed_on(gate: Gate, pages: ProviderPages) -> None:
    person = Person(gate.app)
    await sign_in(person, pages, "carol")
    said = (await person.ask()).headers
    assert said["x-auth-request-user"] == "carol"
    assert said["x-auth-request-email"] == ""


async def test_a_person_who_cancels_may_try_again_or_use_another_account(
    gate: Gate, realm: Realm, pages: ProviderPages
) -> None:
    realm.change_client("prefect", consentRequired=True)
    try:
        person = Person(gate.app)
        leaves = await person.open("/_auth/start")
        back = pages.walk(leaves.headers["location"], {**filled_in("bob"), "cancel": "No"})
        answer = await person.open(back, sec_fetch_site="cross-site")
        assert "did not let you in" in shown(answer)
        assert "Use another account" in answer.text
        assert "Try again" in answer.text
    finally:
        realm.change_client("prefect", consentRequired=False)


async def test_a_machine_needs_the_audience_mapper(realm: Realm) -> None:
    realm.add_client("bare", SECRET)
    refusals = {}
    async with gate_of(configured(realm)) as gate, httpx.AsyncClient(timeout=60) as client:
        for name in ("etl", "bare"):
            headers = {
                "authorization": f"Bearer {realm.token(name, SECRET)}",
                "x-forwarded-method": "POST",
                "x-forwarded-uri": "/api/flows/filter",
                "x-forwarded-host": "prefect-m2m.example.com",
                "x-forwarded-proto": "https",
                "x-forwarded-for": "203.0.113.7",
            }
            answer = await client.get(f"http://127.0.0.1:{gate.port}/forward-auth/api", headers=headers)
            refusals[name] = answer.status_code
            if name == "bare":
                assert "Request it for 'prefect-api'" in answer.text
    assert refusals == {"etl": 200, "bare": 401}
