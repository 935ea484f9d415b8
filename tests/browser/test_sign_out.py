"""After signing out nothing of Prefect is left in the browser, and no session goes on elsewhere."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.people import Way, ask_to_sign_out, by_password, by_provider
from tests.browser.seed import RUNS, UI, V1, V2
from tests.support.openid import OpenIDProvider
from tests.support.raw_http import send
from tests.support.site import PEOPLE, Site


@pytest.mark.parametrize(
    ("way", "ui"), [(by_provider, V2), (by_password, V1)], ids=["provider-v2", "password-v1"], indirect=["way"]
)
def test_the_back_button_shows_nothing_of_prefect(ui: UI, way: Way, page: Page) -> None:
    way.sign_in(page, f"{ui.base}/runs")
    expect(page.get_by_text(RUNS[0]).first).to_be_visible()
    place = page.evaluate("history.length")

    way.sign_out(page)

    steps = page.evaluate("history.length") - place
    assert steps > 0
    page.evaluate("steps => { setTimeout(() => history.go(-steps)) }", steps)
    expect(way.first_field(page)).to_be_visible()
    expect(page.get_by_text(RUNS[0])).to_have_count(0)


def test_every_page_leads_to_sign_in_again(way: Way, page: Page) -> None:
    way.sign_in(page)
    way.sign_out(page)

    page.goto(f"{way.site.people_url}/api/health?again=1")

    way.fill_in(page)  # the provider's own session has ended, too
    page.wait_for_url(f"{way.site.people_url}/api/health?again=1")


def test_staying_at_the_provider_still_ends_the_session_here(provider_site: Site, page: Page) -> None:
    """The provider asks whether to end its own session, and a person may say no."""
    way = by_provider(provider_site)
    way.sign_in(page)
    ask_to_sign_out(page, provider_site)
    page.get_by_role("button", name="No, stay signed in").click()

    answer = page.request.get(f"{provider_site.people_url}/_auth/me", headers={"Accept": "application/json"})

    assert answer.status == 401


def test_signing_out_at_the_provider_ends_the_session_here(
    provider_site: Site, openid_provider: OpenIDProvider, page: Page, context: BrowserContext
) -> None:
    """The provider tells this service over the back channel; the browser still holds its cookie."""
    way = by_provider(provider_site)
    way.sign_in(page)
    held = {cookie["name"]: cookie["value"] for cookie in context.cookies(provider_site.people_url)}

    page.goto(f"{openid_provider.url}/session/end")
    page.get_by_role("button", name="Yes, sign me out").click()
    page.wait_for_url(f"{openid_provider.url}/session/end/success**")

    assert held["__Host-prefect-gate"]
    page.goto(f"{provider_site.people_url}/api/health")
    expect(way.first_field(page)).to_be_visible()
    held_now = {cookie["name"]: cookie["value"] for cookie in context.cookies(provider_site.people_url)}
    assert held_now["__Host-prefect-gate"] == held["__Host-prefect-gate"]


def test_a_copied_cookie_ends_with_the_session(way: Way, page: Page, context: BrowserContext) -> None:
    """What a thief has copied is worth nothing once its owner has signed out."""
    way.sign_in(page)
    copied = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in context.cookies(way.site.people_url))
    assert send(way.site.port, PEOPLE, "/api/health", [("Cookie", copied)]).status == 200

    way.sign_out(page)

    answer = send(way.site.port, PEOPLE, "/api/health", [("Cookie", copied)])
    assert answer.status == 401
    assert json.loads(answer.body)["code"] == "session_ended"
