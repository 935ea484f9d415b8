"""Each real provider in turn, with everything that people, machines and administrators do there."""

from __future__ import annotations

import base64
import html
import re
import time
from asyncio import sleep, to_thread
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.core.model import Session, SessionCookie
from tests.support.canaille import Canaille
from tests.support.dex import Dex
from tests.support.glewlwyd import Glewlwyd
from tests.support.hydra import Hydra
from tests.support.keycloak import Keycloak
from tests.support.keycloak_in_matrix import KeycloakRealm
from tests.support.provider_pages import PageShownError, ProviderPages
from tests.support.real_provider import GROUP, ROWS, SECRET, RealProvider
from tests.support.relay_gate import Gate, served
from tests.support.waiting import free_port
from tests.web.conftest import COOKIE, ORIGIN, SESSION_KEY, Person, hidden, shown

pytestmark = [pytest.mark.anyio, pytest.mark.long]
BY_HAND: dict[str, type[Dex | Hydra | Glewlwyd | Canaille]] = {
    "dex": Dex,
    "hydra": Hydra,
    "glewlwyd": Glewlwyd,
    "canaille": Canaille,
}
NAMES = ["keycloak", *(pytest.param(name, marks=pytest.mark.by_hand) for name in BY_HAND)]
NEW_SECRET = "another-secret-0123456789"
ODD_SECRET = "a+secret/with%25 ~characters=&:"


def row(name: str) -> pytest.MarkDecorator:
    """Mark the test of a row."""
    assert name in ROWS
    return pytest.mark.row(name)


@pytest.fixture(scope="module")
def port() -> int:
    """Return the port at which providers reach the service."""
    return free_port()


@pytest.fixture(scope="module", params=NAMES)
def provider(
    request: pytest.FixtureRequest, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealProvider]:
    back_channel = f"http://127.0.0.1:{port}/_auth/backchannel-logout"
    if request.param == "keycloak":
        keycloak: Keycloak = request.getfixturevalue("keycloak")
        yield KeycloakRealm(keycloak, ORIGIN, back_channel)
        return
    with BY_HAND[request.param](tmp_path_factory.mktemp(request.param), ORIGIN, back_channel) as running:
        yield running


@pytest.fixture(autouse=True)
def limits(request: pytest.FixtureRequest, provider: RealProvider) -> None:
    """Leave out what a provider does not have."""
    marker = request.node.get_closest_marker("row")
    if marker is not None and marker.args[0] in provider.limits:
        pytest.skip(f"{provider.name}: {provider.limits[marker.args[0]]}")


def settings_of(provider: RealProvider, **people: Any) -> dict[str, Any]:
    with_machines = "machine-token" not in provider.limits
    return {
        "oidc": {**provider.people(), "role": "viewer", "keys": {"min_refresh": 1, "cooldown": 1}, **people},
        **({"issuer": provider.machines()} if with_machines else {}),
        "grants": [{"roles": ["admin"], "issuer": provider.issuer, "groups": [GROUP]}],
        "session": {"keys": SESSION_KEY},
    }


@pytest.fixture
async def gate(provider: RealProvider, port: int) -> AsyncIterator[Gate]:
    async with served(settings_of(provider), port) as running:
        yield running


@pytest.fixture
def pages(provider: RealProvider) -> Iterator[ProviderPages]:
    with ProviderPages(provider.home) as browser:
        yield browser


@pytest.fixture
async def alice(gate: Gate, provider: RealProvider, pages: ProviderPages) -> Person:
    """Return the browser of somebody who has just signed in."""
    person = Person(gate.app)
    await sign_in(person, provider, pages, "alice")
    return person


async def sign_in(
    person: Person, provider: RealProvider, pages: ProviderPages, name: str, start: str = "/_auth/start"
) -> None:
    """Sign in; without a name, the provider has to know who it is."""
    await sleep(provider.pause)
    leaves = await person.open(start, sec_fetch_site="same-origin")
    assert leaves.status_code == 302, leaves.text
    arrived = await person.open(provider.sign_in(pages, leaves.headers["location"], name), sec_fetch_site="cross-site")
    assert arrived.status_code == 303, shown(arrived)


def session_of(person: Person) -> Session:
    sessions = person.app.wiring.sessions
    assert sessions is not None
    chunks = [person.cookies.get(f"{COOKIE}-{number}", "") for number in range(1, 4)]
    return sessions.read(SessionCookie(person.cookies[COOKIE].partition(".")[2] + "".join(chunks)))


async def checked(person: Person, provider: RealProvider) -> httpx.Response:
    """Let the session be due for a question to the provider, and use it."""
    await sleep(provider.pause)
    sessions = person.app.wiring.sessions
    assert sessions is not None
    sealed = sessions.seal(session_of(person)._replace(check_at=time.time() - 1, id_token=""))
    person.client.cookies.set(COOKIE, f"1.{sealed}", domain=urlsplit(ORIGIN).netloc, path="/")
    return await person.ask()


def led_to(page: httpx.Response) -> str:
    """Return where a page leads that sends its browser elsewhere."""
    href = re.search(r'data-href="([^"]+)"', page.text) or re.search(r'href="(http[^"]+)"', page.text)
    assert href, page.text
    return html.unescape(href[1])


async def as_machine(gate: Gate, authorization: str) -> httpx.Response:
    headers = {
        "authorization": authorization,
        "x-forwarded-method": "POST",
        "x-forwarded-uri": "/api/flows/filter",
        "x-forwarded-host": "prefect-m2m.example.com",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "203.0.113.7",
    }
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{gate.port}/forward-auth/api", headers=headers)


@row("sign-in")
async def test_people_sign_in(alice: Person) -> None:
    said = (await alice.ask()).headers
    assert said["x-auth-request-user"]
    assert said["x-auth-request-email"] in {"alice@example.test", ""}


@row("roles")
async def test_groups_give_roles(gate: Gate, alice: Person, provider: RealProvider, pages: ProviderPages) -> None:
    assert (await alice.ask()).headers["x-auth-request-roles"] == "viewer,admin"
    pages.forget()
    bob = Person(gate.app)
    await sign_in(bob, provider, pages, "bob")
    assert (await bob.ask()).headers["x-auth-request-roles"] == "viewer"


@row("refresh")
async def test_a_session_is_renewed(alice: Person, provider: RealProvider) -> None:
    for _ in range(3):  # each with the refresh token that the one before brought
        before = session_of(alice)
        assert before.refresh_token
        assert (await checked(alice, provider)).status_code == 200
        after = session_of(alice)
        assert after.check_at > time.time() + 600
        assert (after.name, after.email, after.groups) == (before.name, before.email, before.groups)


@row("groups")
async def test_groups_that_change_arrive_at_the_next_check(alice: Person, provider: RealProvider) -> None:
    assert (await checked(alice, provider)).headers["x-auth-request-roles"] == "viewer,admin"
    await to_thread(provider.leave_group, "alice")
    try:
        assert (await checked(alice, provider)).headers["x-auth-request-roles"] == "viewer"
    finally:
        await to_thread(provider.join_group, "alice")


@row("another-account")
async def test_somebody_else_signs_in(alice: Person, provider: RealProvider, pages: ProviderPages) -> None:
    alice_is = (await alice.ask()).headers["x-auth-request-user"]
    start = await alice.open("/_auth/start?switch=1", sec_fetch_site="same-origin")
    leaves = start.headers["location"]
    if "/_auth/" not in leaves and urlsplit(leaves).query.count("post_logout_redirect_uri"):
        back = provider.sign_out(pages, leaves)
        again = await alice.open(back, sec_fetch_site="cross-site")
        leaves = (await alice.open(again.headers["location"], sec_fetch_site="same-origin")).headers["location"]
    arrived = await alice.open(provider.sign_in(pages, leaves, "bob"), sec_fetch_site="cross-site")
    assert arrived.status_code == 303, shown(arrived)
    assert (await alice.open("/_auth/me")).status_code == 200
    assert (await alice.ask()).headers.get("x-auth-request-user") != alice_is


@row("sign-out")
async def test_signing_out_ends_the_session_of_the_provider(
    alice: Person, provider: RealProvider, pages: ProviderPages
) -> None:
    answer = await alice.submit("/_auth/logout", hidden(await alice.open("/_auth/logout")))
    back = provider.sign_out(pages, led_to(answer))
    assert urlsplit(back).path == "/_auth/signed-out"
    assert (await alice.ask()).status_code == 302
    leaves = await alice.open("/_auth/start")
    with pytest.raises(PageShownError):  # the provider asks who it is
        provider.sign_in(pages, leaves.headers["location"], "")


@row("back-channel")
async def test_the_provider_ends_a_session_behind_the_browsers_back(
    alice: Person, provider: RealProvider, pages: ProviderPages
) -> None:
    assert (await alice.ask()).status_code == 200
    await to_thread(provider.end_session, pages, "alice", session_of(alice).id_token)
    began = time.monotonic()
    while (await alice.ask()).status_code == 200:
        assert time.monotonic() - began < 20, "no logout token came"
        await sleep(0.05)  # the service gets to hear of it


@row("logged-out")
async def test_who_is_logged_out_there_is_out_at_the_check(provider: RealProvider, pages: ProviderPages) -> None:
    async with served(settings_of(provider)) as elsewhere:  # where no logout token arrives
        person = Person(elsewhere.app)
        await sign_in(person, provider, pages, "alice")
        assert (await checked(person, provider)).status_code == 200
        await to_thread(provider.log_out, "alice")
        assert (await person.ask()).status_code == 200
        assert (await checked(person, provider)).status_code == 302


@row("disabled")
async def test_who_is_disabled_there_is_out_at_the_check(alice: Person, provider: RealProvider) -> None:
    await to_thread(provider.disable, "alice")
    try:
        assert (await checked(alice, provider)).status_code == 302
    finally:
        await to_thread(provider.enable, "alice")


@row("secret")
async def test_a_secret_that_changed_there_ends_no_session(
    alice: Person, provider: RealProvider, pages: ProviderPages
) -> None:
    await to_thread(provider.change_secret, NEW_SECRET)
    try:
        assert (await checked(alice, provider)).status_code == 200
        told = (await alice.client.get("/readyz")).json()
        assert (told["status"], "its client" in told["provider"]["problem"]) == ("degraded", True)
        async with served(settings_of(provider, client_secret=NEW_SECRET)) as corrected:
            person = Person(corrected.app)
            await sign_in(person, provider, pages, "alice")
            assert (await checked(person, provider)).status_code == 200
    finally:
        await to_thread(provider.change_secret, SECRET)


@row("odd-secret")
async def test_a_secret_has_any_characters(
    provider: RealProvider, pages: ProviderPages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service")
    await to_thread(provider.change_secret, ODD_SECRET)
    try:
        if provider.for_odd_secrets:
            async with served(settings_of(provider, client_secret=ODD_SECRET)) as mistaken:
                with pytest.raises(AssertionError, match="Signing in did not work"):
                    await sign_in(Person(mistaken.app), provider, pages, "alice")
            told = [str(vars(one).get("fields", {}).get("reason")) for one in caplog.records]
            assert any('client_auth = "client_secret_post"' in one for one in told)
        settings = settings_of(provider, client_secret=ODD_SECRET, **provider.for_odd_secrets)
        async with served(settings) as gate:
            person = Person(gate.app)
            await sign_in(person, provider, pages, "alice")
            assert (await checked(person, provider)).status_code == 200
    finally:
        await to_thread(provider.change_secret, SECRET)


@row("keys")
async def test_keys_change_and_nobody_notices(
    gate: Gate, alice: Person, provider: RealProvider, pages: ProviderPages
) -> None:
    await to_thread(provider.rotate_keys)
    if "keys-renewal" not in provider.limits:
        assert (await checked(alice, provider)).status_code == 200
    person = Person(gate.app)
    await sign_in(person, provider, pages, "alice")
    if "machine-token" not in provider.limits:
        assert (await as_machine(gate, f"Bearer {await to_thread(provider.machine_token)}")).status_code == 200


@row("away")
async def test_while_the_provider_is_away_sessions_go_on_and_nobody_is_sent_there(
    gate: Gate, alice: Person, provider: RealProvider, pages: ProviderPages
) -> None:
    await to_thread(provider.stop)
    try:
        assert (await checked(alice, provider)).status_code == 200
        assert gate.app.wiring.provider_issuer is not None
        gate.app.wiring.provider_issuer.keys.fetched_at -= 2  # it was heard of two seconds ago
        page = await Person(gate.app).open("/_auth/start")
        assert (page.status_code, "cannot be reached" in shown(page)) == (503, True)
    finally:
        await to_thread(provider.start)
    gate.app.wiring.provider_issuer.keys._cool_until = 0  # as if it had passed
    await sign_in(Person(gate.app), provider, pages, "alice")


@row("machine-token")
async def test_a_machine_comes_with_a_token(gate: Gate, provider: RealProvider) -> None:
    answer = await as_machine(gate, f"Bearer {await to_thread(provider.machine_token)}")
    assert answer.status_code == 200, answer.text


@row("machine-secret")
async def test_a_machine_comes_with_its_id_and_secret(gate: Gate) -> None:
    right, wrong = (base64.b64encode(f"etl:{one}".encode()).decode() for one in (SECRET, "wrong"))
    answer = await as_machine(gate, f"Basic {right}")
    assert answer.status_code == 200, answer.text
    assert (await as_machine(gate, f"Basic {wrong}")).status_code == 401
