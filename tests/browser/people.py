"""What people do at the pages: sign in, one way or the other, and sign out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from playwright.sync_api import Locator, Page, expect

from tests.support.site import PASSWORD, USER, Site

PERSON = "alice"  # at the provider, which takes any password


def sign_in_with_password(page: Page, user: str = USER, password: str = PASSWORD) -> None:
    """Fill in the sign-in page."""
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def sign_in_at_provider(page: Page, person: str = PERSON) -> None:
    """Fill in the provider's own page, and agree to what is asked for."""
    page.get_by_placeholder("Enter any login").fill(person)
    page.get_by_placeholder("and password").fill("any")
    with page.expect_navigation():
        page.get_by_role("button", name="Sign-in").click()
    agree = page.get_by_role("button", name="Continue")
    if agree.count():  # asked once in a browser
        agree.click()


def open_from_menu(page: Page, name: str) -> None:
    """Go to another page of Prefect's UI, which loads nothing but data."""
    page.locator("a", has=page.get_by_text(name, exact=True)).first.click()


def ask_to_sign_out(page: Page, site: Site) -> None:
    """Open the page for it, and confirm."""
    page.goto(f"{site.people_url}/_auth/logout")
    page.get_by_role("button", name="Sign out", exact=True).click()


@dataclass(frozen=True)
class Way:
    """A site, and how people sign in there."""

    name: str
    site: Site
    person: str
    fill_in: Callable[[Page], None]
    asks_provider: bool

    def __str__(self) -> str:
        return self.name

    def first_field(self, page: Page) -> Locator:
        """Return what a person sees who is to sign in."""
        return page.get_by_placeholder("Enter any login") if self.asks_provider else page.get_by_label("User name")

    def sign_in(self, page: Page, path: str = "/api/health") -> None:
        """Open a page of the site and sign in on the way there."""
        page.goto(self.site.people_url + path)
        self.fill_in(page)
        page.wait_for_url(lambda url: "/_auth/login" not in url and url.startswith(self.site.people_url))

    def sign_out(self, page: Page) -> None:
        """Sign out, at the provider too, where there is one."""
        ask_to_sign_out(page, self.site)
        if self.asks_provider:
            page.get_by_role("button", name="Yes, sign me out").click()
        expect(page.get_by_role("heading", name="You are signed out")).to_be_visible()


def by_provider(site: Site) -> Way:
    """Return the way in at a site with a provider."""
    return Way("provider", site, PERSON, sign_in_at_provider, asks_provider=True)


def by_password(site: Site) -> Way:
    """Return the way in at a site with a users file alone."""
    return Way("password", site, USER, sign_in_with_password, asks_provider=False)
