"""Keys are changed and replicas share the work, and nobody has to sign in anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.balancer import Balancer
from tests.browser.conftest import KEY, NewContext, oidc_settings
from tests.browser.people import by_password, by_provider, sign_in_at_provider
from tests.support.echo import Echo
from tests.support.openid import OpenIDProvider
from tests.support.parts import TRAEFIK, require
from tests.support.site import PEOPLE, Site
from tests.support.waiting import free_port

NEW_KEY = "another-one-of-no-worth-for-the-tests-alone"
STATE = "url => fetch(url).then(answer => answer.status)"


@dataclass
class Replicas:
    """A site whose service runs twice, sharing a session key and nothing else."""

    site: Site
    balancer: Balancer
    other_port: int


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    require(TRAEFIK)
    port, other_port, service_port = free_port(), free_port(), free_port()
    with (
        Echo() as echo,
        OpenIDProvider(tmp_path, sites=[f"http://{PEOPLE}:{port}"]) as provider,
        Balancer(service_port) as balancer,
        Site(
            tmp_path / "site",
            echo.url,
            oidc_settings(provider),
            port=port,
            service_port=service_port,
            auth_url=balancer.url,
        ) as site,
        site.start_replica(other_port),
    ):
        yield Replicas(site, balancer, other_port)


def test_a_sign_in_begun_at_one_replica_ends_at_another(replicas: Replicas, page: Page) -> None:
    site, balancer = replicas.site, replicas.balancer
    page.goto(f"{site.people_url}/x?y=1")
    expect(page.get_by_placeholder("Enter any login")).to_be_visible()

    balancer.use(replicas.other_port)
    sign_in_at_provider(page)
    page.wait_for_url(f"{site.people_url}/x?y=1")

    balancer.use(site.service_port)
    assert page.evaluate(STATE, f"{site.people_url}/api/flows") == 200
    balancer.use(site.service_port, replicas.other_port)
    statuses = page.evaluate(
        "url => Promise.all(Array.from({length: 12}, (_, n) => fetch(url + n).then(answer => answer.status)))",
        f"{site.people_url}/api/flows?",
    )
    assert set(statuses) == {200}


def test_a_new_session_key_in_front_ends_no_session(password_site: Site, page: Page, new_context: NewContext) -> None:
    way = by_password(password_site)
    way.sign_in(page)
    before = dict(password_site.settings)
    try:
        password_site.restart_service({**before, "FORWARD_AUTH_SESSION__KEYS": f"{NEW_KEY},{KEY}"})
        assert page.evaluate(STATE, "/api/health") == 200
        later = new_context().new_page()
        way.sign_in(later)
    finally:
        password_site.restart_service(before)
    assert page.evaluate(STATE, "/api/health") == 200
    assert later.evaluate(STATE, "/api/health") == 401, "the new key, gone again, had sealed this one"


def test_new_keys_at_the_provider_end_no_session(
    provider_site: Site, openid_provider: OpenIDProvider, page: Page, new_context: NewContext
) -> None:
    way = by_provider(provider_site)
    way.sign_in(page)

    openid_provider.rotate()
    openid_provider.drop_old()

    assert page.evaluate(STATE, "/api/health") == 200
    later = new_context().new_page()
    way.sign_in(later)  # with a token that the new keys have signed
    assert later.evaluate(STATE, "/api/health") == 200
