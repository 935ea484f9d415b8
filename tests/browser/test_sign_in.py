"""People sign in, land where they were going, and use both UIs as if there were no gate."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import NewContext, file_settings
from tests.browser.people import (
    Way,
    by_password,
    by_provider,
    open_from_menu,
    sign_in_at_provider,
    sign_in_with_password,
)
from tests.browser.seed import RUNS, UI, V1, V2
from tests.browser.traffic import Traffic, landed_at
from tests.support.certificates import write_certificate
from tests.support.echo import Echo
from tests.support.parts import TRAEFIK, require
from tests.support.site import PASSWORD, PEOPLE, USER, Site
from tests.support.waiting import free_port, wait_until


@pytest.mark.parametrize("ui", [V2, V1], ids=str)
def test_a_deep_link_is_where_one_lands_and_nothing_fails_there(
    ui: UI, way: Way, page: Page, context: BrowserContext
) -> None:
    traffic = Traffic(context, way.site.people_url)

    way.sign_in(page, ui.deep_link)

    expect(page.get_by_text(RUNS[0]).first).to_be_visible()
    assert landed_at(page) == way.site.people_url + ui.deep_link
    for name, text in ui.pages.items():
        open_from_menu(page, name)
        page.wait_for_url(f"**{ui.base}/{name.lower()}*")
        expect(page.get_by_text(text).first).to_be_visible()
    assert traffic.to("/api/"), "the pages have asked for something"
    assert traffic.failed == []
    assert traffic.prompts == []


def test_files_of_the_ui_are_asked_for_once(password_site: Site, page: Page, context: BrowserContext) -> None:
    by_password(password_site).sign_in(page, "/v2/runs")
    expect(page.get_by_text(RUNS[0]).first).to_be_visible()
    before = password_site.traefik.text()

    page.goto(f"{password_site.people_url}/v2/runs")
    expect(page.get_by_text(RUNS[0]).first).to_be_visible()

    asked = password_site.traefik.text().removeprefix(before)
    assert '"GET /v2/runs HTTP' in asked
    assert "/v2/assets/" in before
    assert "/v2/assets/" not in asked


def test_me_tells_who_one_is(way: Way, page: Page) -> None:
    way.sign_in(page)

    page.goto(f"{way.site.people_url}/_auth/me")

    expect(page.get_by_role("heading", name="You are signed in")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text(way.person)


def test_a_wrong_password_is_told_and_the_right_one_still_works(password_site: Site, page: Page) -> None:
    path = "/api/health?x=1"
    page.goto(password_site.people_url + path)
    for user, password in ((USER, PASSWORD + "!"), ("nobody", PASSWORD)):
        sign_in_with_password(page, user, password)
        expect(page.get_by_role("alert")).to_contain_text("The user name or the password is wrong.")
        expect(page.get_by_label("User name")).to_have_value(user)

    sign_in_with_password(page)

    page.wait_for_url(password_site.people_url + path)


def test_after_too_many_wrong_passwords_the_right_one_has_to_wait(impatient_site: Site, page: Page) -> None:
    page.goto(impatient_site.people_url)
    for _ in range(2):
        sign_in_with_password(page, password="wrong")
        expect(page.get_by_role("alert")).to_contain_text("is wrong")

    with page.expect_response(lambda answer: answer.request.method == "POST") as posted:
        sign_in_with_password(page)

    assert posted.value.status == 429
    assert int(posted.value.headers["retry-after"]) > 0
    expect(page.get_by_role("alert")).to_contain_text("try again in about")


def test_it_works_without_javascript(way: Way, new_context: NewContext) -> None:
    path = "/api/health?x=1"
    page = new_context(java_script_enabled=False).new_page()

    way.sign_in(page, path)

    assert page.url == way.site.people_url + path
    expect(page.get_by_text("true")).to_be_visible()


def test_tabs_sign_in_side_by_side(way: Way, context: BrowserContext) -> None:
    """Each tab has begun before any has ended."""
    paths = ["/api/health?tab=1", "/api/health?tab=2"]
    tabs = {path: context.new_page() for path in paths}
    for path, tab in tabs.items():
        tab.goto(way.site.people_url + path)

    for tab in reversed(tabs.values()):
        way.fill_in(tab)

    for path, tab in tabs.items():
        tab.wait_for_url(way.site.people_url + path)


def test_many_tabs_come_back_at_once(provider_site: Site, page: Page, context: BrowserContext) -> None:
    """As after a night: the session has ended, the provider still knows the person, a browser opens its tabs again."""
    address = f"{provider_site.people_url}/api/health"
    page.goto(address)
    sign_in_at_provider(page)
    page.wait_for_url(address)
    context.clear_cookies(domain="localhost")
    tabs = {f"{address}?tab={number}": context.new_page() for number in range(4)}

    for url, tab in tabs.items():
        tab.evaluate("url => { setTimeout(() => { location = url }) }", url)

    for url, tab in tabs.items():
        tab.wait_for_url(url)


def test_each_of_many_tabs_may_come_late(provider_site: Site, page: Page, context: BrowserContext) -> None:
    """A tab that was refused comes to sign in when the others have just done so, which is not going in circles."""
    by_provider(provider_site).sign_in(page)
    for number in range(5):
        context.clear_cookies(name="__Host-prefect-gate")
        url = f"{provider_site.people_url}/api/health?tab={number}"
        page.goto(url)
        page.wait_for_url(url)


def test_it_works_over_tls(tmp_path: Path, users_file: Path, new_context: NewContext) -> None:
    """The origin has a port of its own there, and a page's writes are held to it."""
    cert_file, key_file = write_certificate(tmp_path)
    env = {"GATE_TLS_CERT_FILE": str(cert_file), "GATE_TLS_KEY_FILE": str(key_file)}
    port, clear_port = free_port(), free_port()
    require(TRAEFIK)
    with (
        Echo() as echo,
        Site(tmp_path / "site", echo.url, file_settings(users_file)) as site,
        site.start_traefik("https.yml", {8443: port, 8000: clear_port}, env),
    ):
        wait_until(lambda: _routed(port), timeout=20, what="routes in Traefik over TLS")
        context = new_context(ignore_https_errors=True)
        page = context.new_page()
        page.goto(f"https://{PEOPLE}:{port}/x#y")

        sign_in_with_password(page)

        page.wait_for_url(f"https://{PEOPLE}:{port}/x#y")
        write = "fetch('/api/flows/', {method: 'POST', body: '{}'}).then(answer => answer.status)"
        assert page.evaluate(write) == 200
        assert all(cookie["secure"] and cookie["httpOnly"] for cookie in context.cookies())


def _routed(port: int) -> bool:
    try:
        return httpx.get(f"https://{PEOPLE}:{port}/x", verify=False).status_code == 401  # noqa: S501 - its own, just made
    except httpx.TransportError:
        return False
