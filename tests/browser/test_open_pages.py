"""A page of Prefect is open while its session ends: it says so, and a reload signs in and comes back."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Page, Request, Route, expect

from tests.browser.people import Way, by_password, by_provider, open_from_menu
from tests.browser.seed import DEPLOYMENT, RUNS, UI, V1, V2
from tests.support.site import Site

UIS = pytest.mark.parametrize("ui", [V2, V1], ids=str)


@pytest.mark.parametrize(
    ("way", "ui"), [(by_provider, V1), (by_password, V2)], ids=["provider-v1", "password-v2"], indirect=["way"]
)
def test_an_open_page_says_that_the_session_has_ended(ui: UI, way: Way, page: Page, context: BrowserContext) -> None:
    """Prefect's first UI has no room for what it is told, and says at least that something is wrong."""
    way.sign_in(page, f"{ui.base}/deployments")
    expect(page.get_by_text(DEPLOYMENT).first).to_be_visible()
    open_from_menu(page, "Runs")
    expect(page.get_by_text(RUNS[0]).first).to_be_visible()
    way.sign_out(context.new_page())

    open_from_menu(page, "Deployments")

    expect(page.get_by_text(ui.refused).first).to_be_visible()
    expect(page.get_by_text(DEPLOYMENT)).to_have_count(0)
    page.reload()
    way.fill_in(page)
    expect(page.get_by_text(DEPLOYMENT).first).to_be_visible()
    page.wait_for_url(f"{way.site.people_url}{ui.base}/deployments*")


@UIS
def test_a_shell_that_finds_no_session_shows_no_blank_page(ui: UI, password_site: Site, page: Page) -> None:
    """The UI asks for its settings first: without an answer one shows nothing, the other a reason that is wrong."""
    way = by_password(password_site)
    way.sign_in(page, f"{ui.base}/deployments")
    expect(page.get_by_text(DEPLOYMENT).first).to_be_visible()

    def forget(route: Route) -> None:
        page.context.clear_cookies()
        route.continue_()

    page.route("**/ui-settings", forget)
    page.reload()

    expect(page.get_by_text(ui.refused).or_(way.first_field(page)).first).to_be_visible()


@UIS
def test_a_stale_password_in_the_browser_does_no_harm(ui: UI, password_site: Site, page: Page) -> None:
    """Prefect's UI keeps the password that it once asked for, and sends it along for ever."""
    by_password(password_site).sign_in(page)
    page.evaluate("localStorage.setItem('prefect-password', 'admin:stale')")
    sent: list[str] = []

    def note(request: Request) -> None:
        sent.append(request.headers.get("authorization", ""))

    page.on("request", note)
    page.goto(f"{password_site.people_url}{ui.base}/runs")

    expect(page.get_by_text(RUNS[0]).first).to_be_visible()
    assert any(one.startswith("Basic ") for one in sent), "the UI did send it"
