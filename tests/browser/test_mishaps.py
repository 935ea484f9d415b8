"""Signing in does not work out: no loop, no dead end, and the page says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import oidc_settings
from tests.browser.people import Way, by_provider, sign_in_at_provider
from tests.browser.traffic import Traffic
from tests.support.chromium import ARGUMENTS, starter
from tests.support.echo import Echo
from tests.support.openid import OpenIDProvider
from tests.support.parts import CHROMIUM, TRAEFIK, require
from tests.support.site import PEOPLE, SHIPPED, Site, replace_once
from tests.support.waiting import free_port, wait_until

AT_MOST = 30  # requests for pages, the provider's own left out


@pytest.fixture
def forgetful_browser(chromium: Browser, way: Way, tmp_path: Path) -> Iterator[BrowserContext]:
    """Open a browser whose owner has blocked the cookies of this site, and of no other: its engine has no owner."""
    program = starter(tmp_path, CHROMIUM)
    blocked = {f"{way.site.people_url},*": {"setting": 2}}
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": {"content_settings": {"exceptions": {"cookies": blocked}}}}))
    context = chromium.browser_type.launch_persistent_context(
        tmp_path / "profile", executable_path=program, args=ARGUMENTS
    )
    yield context
    context.close()


def test_blocked_cookies_are_no_loop(forgetful_browser: BrowserContext, way: Way) -> None:
    page = forgetful_browser.new_page()
    traffic = Traffic(forgetful_browser, way.site.people_url)
    page.goto(f"{way.site.people_url}/api/health")

    way.fill_in(page)

    expect(page.get_by_text("This sign-in was not begun in this browser")).to_be_visible()
    expect(page.get_by_role("link", name="Sign in again").or_(way.first_field(page))).to_be_visible()
    assert len(traffic.to("/")) < AT_MOST


@pytest.fixture
def dropping_site(tmp_path: Path) -> Iterator[Site]:
    """Serve a site whose Traefik withholds the cookies from the gate: every sign-in works, and none holds."""
    require(TRAEFIK)
    dynamic = tmp_path / "dynamic"
    shutil.copytree(SHIPPED / "dynamic", dynamic)
    gate = dynamic / "gate.yml"
    gate.write_text(replace_once(gate.read_text(), "          - Cookie\n          - Origin\n", "          - Origin\n"))
    port = free_port()
    with (
        Echo() as echo,
        OpenIDProvider(tmp_path, sites=[f"http://{PEOPLE}:{port}"]) as provider,
        Site(tmp_path / "site", echo.url, oidc_settings(provider), port=port, dynamic=dynamic) as site,
    ):
        yield site


def test_a_session_that_does_not_hold_is_no_loop(dropping_site: Site, page: Page, context: BrowserContext) -> None:
    """The provider knows the person after the first time, so nothing but this service could stop it."""
    traffic = Traffic(context, dropping_site.people_url)
    way = by_provider(dropping_site)
    page.goto(f"{dropping_site.people_url}/x")

    way.fill_in(page)

    expect(page.get_by_role("heading", name="This browser did not keep your session")).to_be_visible()
    expect(page.get_by_text("Cookies are allowed for this site")).to_be_visible()
    assert len(traffic.to("/")) < AT_MOST


def test_a_provider_that_is_down_can_be_tried_again(tmp_path: Path, page: Page) -> None:
    require(TRAEFIK)
    port = free_port()
    provider = OpenIDProvider(tmp_path, sites=[f"http://{PEOPLE}:{port}"])
    with Echo() as echo, Site(tmp_path / "site", echo.url, oidc_settings(provider), port=port, cold=True) as site:
        way = by_provider(site)
        with page.expect_response("**/_auth/start*") as asked:
            page.goto(f"{site.people_url}/x?y=1#z")
        assert asked.value.status == 503
        assert int(asked.value.headers["retry-after"]) > 0

        def tried_again() -> bool:
            with page.expect_response("**/_auth/start*") as asked:
                page.get_by_role("link", name="Try again").click()
            return asked.value.status == 302

        with provider:
            wait_until(tried_again, timeout=30, what="the provider found again")
            way.fill_in(page)
            page.wait_for_url(f"{site.people_url}/x?y=1#z")


def test_who_turns_back_at_the_provider_is_told_so(provider_site: Site, page: Page) -> None:
    page.goto(f"{provider_site.people_url}/api/health?x=1#y")

    page.get_by_role("link", name="Cancel").click()

    expect(page.get_by_text("The identity provider did not let you in")).to_be_visible()
    page.get_by_role("link", name="Try again").click()
    by_provider(provider_site).fill_in(page)
    page.wait_for_url(f"{provider_site.people_url}/api/health?x=1#y")


def test_a_sign_in_is_good_for_one_use(provider_site: Site, page: Page, context: BrowserContext) -> None:
    traffic = Traffic(context, provider_site.people_url)
    by_provider(provider_site).sign_in(page)
    (callback,) = traffic.to("/_auth/callback")

    page.goto(callback.split()[2])

    expect(page.get_by_role("heading", name="Signing in did not work")).to_be_visible()
    page.goto(f"{provider_site.people_url}/_auth/me")
    expect(page.get_by_role("heading", name="You are signed in")).to_be_visible()


def test_a_person_in_many_groups_has_a_session_in_several_cookies(
    provider_site: Site, openid_provider: OpenIDProvider, page: Page, context: BrowserContext
) -> None:
    openid_provider.set_groups("crowd", *(f"a-group-with-quite-a-long-name-{number}" for number in range(150)))
    way = Way("crowd", provider_site, "crowd", lambda page: sign_in_at_provider(page, "crowd"), asks_provider=True)

    way.sign_in(page)

    held = {cookie["name"] for cookie in context.cookies(provider_site.people_url) if "gate" in cookie["name"]}
    assert held >= {"__Host-prefect-gate", "__Host-prefect-gate-1"}
    assert page.evaluate("fetch('/api/health').then(answer => answer.status)") == 200
    way.sign_out(page)
    assert not any("prefect-gate" in cookie["name"] for cookie in context.cookies(provider_site.people_url))
