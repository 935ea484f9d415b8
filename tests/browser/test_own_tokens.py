"""A person issues a token and revokes it, and ends the session of another device, as people do: by clicking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import KEY, NewContext, file_settings
from tests.browser.people import by_password
from tests.support.echo import Echo
from tests.support.parts import TRAEFIK, require
from tests.support.site import Site

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Safari/604.1"


@pytest.fixture
def issuing_site(tmp_path: Path, users_file: Path) -> Iterator[Site]:
    """Serve a site whose people may issue tokens for themselves."""
    require(TRAEFIK)
    settings = {
        **file_settings(users_file),
        "FORWARD_AUTH_SESSION__KEYS": KEY,
        "FORWARD_AUTH_TOKENS__FOLDER": str(tmp_path / "tokens"),
        "FORWARD_AUTH_TOKENS__PEOPLE": "admin",
    }
    with Echo() as echo, Site(tmp_path / "site", echo.url, settings) as site:
        yield site


def status(site: Site, token: str) -> int:
    """Return how the machines' host answers a program with this token."""
    sent = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{site.machines_url}/api/flows/filter", json={}, headers=sent).status_code


def test_a_token_is_issued_copied_used_and_revoked(
    issuing_site: Site, new_context: NewContext, axe: Callable[[Page], list[dict[str, Any]]]
) -> None:
    page = new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
    by_password(issuing_site).sign_in(page)
    page.goto(f"{issuing_site.people_url}/_auth/me")
    page.get_by_role("link", name="Your tokens").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("Role").select_option("worker")
    page.get_by_label("Expires in").select_option(label="7 days")
    page.get_by_role("button", name="Issue the token").click()
    token = page.get_by_label("Token", exact=True).input_value()
    assert axe(page) == []
    assert token not in page.url
    page.get_by_role("button", name="Copy the token").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == token
    assert status(issuing_site, token) == 200

    page.reload()  # sends the form again: it issues nothing
    expect(page.get_by_role("alert")).to_contain_text("sent before")
    page.goto(f"{issuing_site.people_url}/_auth/tokens")
    expect(page.get_by_role("heading", name="laptop")).to_have_count(1)
    expect(page.get_by_label("Token", exact=True)).to_have_count(0)

    page.get_by_text("Revoke laptop").click()
    page.get_by_role("button", name="Revoke this token").click()
    expect(page.get_by_text("The token is revoked.")).to_be_visible()
    expect(page.get_by_text("You have no tokens.")).to_be_visible()
    assert status(issuing_site, token) == 401


def test_the_session_of_another_device_is_ended(issuing_site: Site, page: Page, new_context: NewContext) -> None:
    way = by_password(issuing_site)
    phone = new_context(user_agent=PHONE).new_page()
    for one in (page, phone):
        way.sign_in(one)
    page.goto(f"{issuing_site.people_url}/_auth/me")
    page.get_by_role("link", name="Your sessions").click()
    expect(page.get_by_role("heading", name="Safari on iPhone")).to_be_visible()
    page.get_by_role("button", name="End this session").click()
    expect(page.get_by_text("That session has ended.")).to_be_visible()
    expect(page.get_by_role("heading", name="Safari on iPhone")).to_have_count(0)
    phone.goto(f"{issuing_site.people_url}/api/health")
    expect(way.first_field(phone)).to_be_visible()
    page.goto(f"{issuing_site.people_url}/api/health")
    expect(way.first_field(page)).to_have_count(0)
