"""What the pages of Dex and Ory Hydra promise beyond the matrix; `make test-providers` tries it."""

from __future__ import annotations

import html
import logging
import re
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.support.dex import Dex
from tests.support.hydra import Hydra
from tests.support.provider_pages import PageShownError, ProviderPages
from tests.support.real_provider import SECRET, RealProvider
from tests.support.relay_gate import Gate, served
from tests.support.waiting import free_port
from tests.web.conftest import ORIGIN, SESSION_KEY, Person, hidden

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.by_hand,
]
MANY = [f"team-{number:03}-of-the-{'x' * 12}" for number in range(130)]


@pytest.fixture(scope="module")
def dex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dex]:
    with Dex(tmp_path_factory.mktemp("dex"), ORIGIN, "") as running:
        yield running


@pytest.fixture(scope="module")
def hydra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hydra]:
    with Hydra(tmp_path_factory.mktemp("hydra"), ORIGIN, "http://127.0.0.1:9/_auth/backchannel-logout") as running:
        yield running


@asynccontextmanager
async def gate_of(provider: RealProvider, **more: Any) -> AsyncIterator[Gate]:
    settings = {"oidc": {**provider.people(), "role": "viewer"}, "session": {"keys": SESSION_KEY}, **more}
    async with served(settings, free_port()) as gate:
        yield gate


async def sign_in(person: Person, provider: RealProvider, pages: ProviderPages, name: str) -> httpx.Response:
    leaves = await person.open("/_auth/start")
    back = await to_thread(provider.sign_in, pages, leaves.headers["location"], name)
    return await person.open(back, sec_fetch_site="cross-site")


async def test_people_of_dex_are_called_by_their_address(dex: Dex) -> None:
    async with gate_of(dex) as gate:
        person = Person(gate.app)
        with ProviderPages(dex.home) as pages:
            assert (await sign_in(person, dex, pages, "alice")).status_code == 303
        said = (await person.ask()).headers
        assert said["x-auth-request-user"] == said["x-auth-request-email"] == "alice@example.test"


async def test_a_person_with_very_many_groups_signs_out_of_hydra_and_sees_no_error(hydra: Hydra) -> None:
    """Hydra refuses to send anybody back without the ID token, which fits beside the session no more."""
    hydra.groups["mary"] = MANY
    async with gate_of(hydra) as gate:
        person = Person(gate.app)
        with ProviderPages(hydra.home) as pages:
            assert (await sign_in(person, hydra, pages, "mary")).status_code == 303
            answer = await person.submit("/_auth/logout", hidden(await person.open("/_auth/logout")))
            leads = re.search(r'href="(http[^"]+)"', answer.text)
            assert leads, answer.text
            with pytest.raises(PageShownError) as ends:
                await to_thread(pages.walk, html.unescape(leads[1]))
            assert ends.value.page.status_code == 200
            assert "error" not in f"{ends.value.page.url} {ends.value.page.text}".lower()
            with pytest.raises(PageShownError):  # Hydra does not know her any more
                await sign_in(person, hydra, pages, "")


async def test_a_token_of_hydra_without_an_audience_is_told_where_one_is_requested(
    hydra: Hydra, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    form = {"grant_type": "client_credentials"}
    async with gate_of(hydra, issuer=hydra.machines()) as gate, httpx.AsyncClient(timeout=60) as client:
        granted = await client.post(f"{hydra.issuer}/oauth2/token", auth=("etl", SECRET), data=form)
        headers = {
            "authorization": f"Bearer {granted.json()['access_token']}",
            "x-forwarded-method": "GET",
            "x-forwarded-uri": "/api/version",
            "x-forwarded-host": "prefect-m2m.example.com",
            "x-forwarded-proto": "https",
            "x-forwarded-for": "203.0.113.7",
        }
        answer = await client.get(f"http://127.0.0.1:{gate.port}/forward-auth/api", headers=headers)
    assert answer.status_code == 401
    assert "names no audience. Request it for 'prefect-api'" in answer.text
    reasons = [getattr(one, "fields", {}).get("reason", "") for one in caplog.records]
    assert any("issuer.client_credentials.audience" in reason for reason in reasons)
