"""Keycloak as people and machines meet it behind the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.keycloak import PASSWORD, Keycloak, Realm
from tests.support.provider_pages import ProviderPages
from tests.support.relay_gate import Gate, served
from tests.support.waiting import free_port
from tests.web.conftest import ORIGIN, SESSION_KEY, Person

pytestmark = pytest.mark.anyio
SECRET = "client-secret-0123456789"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak, port: int) -> Realm:
    realm = keycloak.realm("people")
    realm.add_client("prefect", SECRET, ORIGIN, f"http://127.0.0.1:{port}/_auth/backchannel-logout")
    realm.add_groups_mapper("prefect")
    realm.add_person("alice", groups=["operators"])
    realm.add_client("etl", SECRET)
    realm.add_audience_mapper("etl", "prefect-api")
    return realm


@pytest.fixture
def settings(realm: Realm) -> dict[str, Any]:
    return {
        "oidc": {"issuer": realm.issuer, "client_id": "prefect", "client_secret": SECRET},
        "issuer": {"url": realm.issuer, "audiences": "prefect-api", "role": "worker"},
        "grants": [{"roles": ["runner"], "issuer": realm.issuer, "groups": ["operators"]}],
        "session": {"keys": SESSION_KEY},
    }


@pytest.fixture
async def gate(settings: dict[str, Any], port: int) -> AsyncIterator[Gate]:
    async with served(settings, port) as running:
        yield running


@pytest.fixture
def pages(keycloak: Keycloak) -> Iterator[ProviderPages]:
    with ProviderPages(keycloak.url) as browser:
        yield browser


async def test_a_person_signs_in(gate: Gate, pages: ProviderPages) -> None:
    person = Person(gate.app)
    leaves = await person.open("/_auth/start")
    callback = pages.walk(leaves.headers["location"], {"username": "alice", "password": PASSWORD})
    arrived = await person.open(callback, sec_fetch_site="cross-site")
    assert arrived.status_code == 303, arrived.text
    assert (await person.ask()).headers["x-auth-request-user"]


async def test_a_machine_comes_with_its_token(gate: Gate, realm: Realm) -> None:
    headers = {
        "authorization": f"Bearer {realm.token('etl', SECRET)}",
        "x-forwarded-method": "POST",
        "x-forwarded-uri": "/api/flows/filter",
        "x-forwarded-host": "prefect-m2m.example.com",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "203.0.113.7",
    }
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{gate.port}/forward-auth/api", headers=headers)
    assert answer.status_code == 200, answer.text
