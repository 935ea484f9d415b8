"""The pages as people meet them: in any light and width, by keyboard, with and without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from service.rendering.pages import Pages
from tests.support.sample_pages import every_page, headers_of

SITE = "https://prefect.test"
SHOTS = Path(__file__).resolve().parents[2] / "build" / "pages"
SIZES = {"phone": (360, 740), "desk": (1280, 800)}
JUDGED = {("light", "phone"), ("dark", "desk")}  # each light and each width, once
HELP = "Ask the data platform team in #help-prefect, or write to data@example.com."
NAMES = list(every_page(Pages("Prefect", HELP)))


class Stage:
    """Serves the pages to a browser, with all of their headers, and keeps what the browser complains of."""

    def __init__(self, page: Page, pages: Pages, say: Callable[[str], str] = str, groups: int = 3) -> None:
        self.page, self._pages, self.complaints = page, pages, list[str]()
        self._shown = every_page(pages, say, groups)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda problem: self.complaints.append(str(problem)))
        page.route("**/*", self._answer)

    def _answer(self, route: Route) -> None:
        place = urlsplit(route.request.url)
        directory, _, name = place.path.rpartition("/")
        if directory == "/_auth/static":
            found = self._pages.static(name, parse_qs(place.query)["v"][0])
        elif directory == "/shown":
            found = self._shown[name]
        else:
            # without an icon of its own the browser would look for one, past what is served here
            elsewhere = '<!doctype html><title>Elsewhere</title><link rel="icon" href="data:,">'
            route.fulfill(status=200, content_type="text/html", body=elsewhere)
            return
        # A browser reports a status such as 403 as an error of its own: here it is the page that is looked at.
        route.fulfill(status=200, headers=headers_of(found), body=found.body)

    def open(self, name: str, fragment: str = "") -> None:
        self.page.goto(f"{SITE}/shown/{name}{fragment}")


@pytest.fixture
def stage(page: Page) -> Iterator[Stage]:
    stage = Stage(page, Pages("Prefect", HELP))
    yield stage
    assert stage.complaints == []


def still(page: Page) -> None:
    """Keep a page that leads on at once where it is."""
    page.route("**/onward.js*", lambda route: route.fulfill(content_type="text/javascript", body=""))


@pytest.mark.parametrize("name", NAMES)
def test_each_page_is_for_everybody(stage: Stage, name: str, axe: Callable[[Page], list[dict[str, Any]]]) -> None:
    page = stage.page
    still(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.emulate_media(reduced_motion="reduce")
    stage.open(name)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=SHOTS / f"{name}-{size}-{scheme}.png", full_page=True)
            if (scheme, size) in JUDGED:
                assert axe(page) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_wider_than_a_narrow_screen(page: Page, name: str) -> None:
    title, ask = "Scheduler" * 6, "Donaudampfschifffahrt" * 14
    stage = Stage(page, Pages(title, ask), lambda text: text + "x" * 80, groups=40)
    still(page)
    page.set_viewport_size({"width": 320, "height": 568})
    stage.open(name)
    for more in page.locator("summary").all():
        more.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.locator("h1").is_visible()


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))


def test_the_keyboard_goes_from_top_to_bottom_and_is_seen(stage: Stage) -> None:
    page = stage.page
    stage.open("sign-in-either")
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(focused(page))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", order
    assert order == ["Continue with Acme SSO", "username", "password", "Show", "Sign in"]


def test_a_password_can_be_looked_at_and_is_sent_as_one(stage: Stage) -> None:
    page = stage.page
    stage.open("sign-in")
    expect(page.get_by_label("User name")).to_be_focused()
    password = page.get_by_label("Password", exact=True)
    password.fill("secret")
    show = page.get_by_role("button", name="Show password")
    show.click()
    expect(password).to_have_attribute("type", "text")
    expect(show).to_have_attribute("aria-pressed", "true")
    show.click()
    expect(password).to_have_attribute("type", "password")
    expect(show).to_have_attribute("aria-pressed", "false")


def test_a_form_takes_the_fragment_along(stage: Stage) -> None:
    page = stage.page
    stage.open("sign-in", "#tab=logs&q=a%20b")
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password", exact=True).fill("secret")
    with page.expect_request(lambda one: one.method == "POST") as sent:
        page.keyboard.press("Enter")
    form = parse_qs(sent.value.post_data or "")
    assert form["fragment"] == ["tab=logs&q=a%20b"]
    assert (form["username"], form["password"], form["return_to"]) == (["ada"], ["secret"], ["/runs"])
    page.wait_for_url("**/_auth/login#tab=logs&q=a%20b")  # where a form that is shown again finds it


def test_a_link_to_the_provider_takes_the_fragment_along(stage: Stage) -> None:
    stage.open("sign-in-either", "#tab=logs")
    link = stage.page.get_by_role("link", name="Continue with Acme SSO")
    expect(link).to_have_attribute("href", f"{SITE}/_auth/start?return_to=%2Fruns&fragment=tab%3Dlogs")


@pytest.mark.parametrize(
    ("fragment", "query"),
    [("", "return_to=%2Fruns"), ("#", "return_to=%2Fruns"), ("#tab=logs", "return_to=%2Fruns&fragment=tab%3Dlogs")],
)
def test_one_is_led_on_at_once_and_not_back_again(stage: Stage, fragment: str, query: str) -> None:
    page = stage.page
    page.goto(f"{SITE}/before")
    stage.open("redirecting", fragment)
    page.wait_for_url(f"{SITE}/_auth/start?{query}")
    page.go_back(wait_until="commit")  # a page out of the browser's memory is not loaded
    expect(page).to_have_url(f"{SITE}/before")


def test_without_scripts_one_is_led_on_too(new_context: Callable[..., Any]) -> None:
    stage = Stage(new_context(java_script_enabled=False).new_page(), Pages("Prefect", HELP))
    stage.page.goto(f"{SITE}/shown/redirecting", wait_until="commit")
    stage.page.wait_for_url(f"{SITE}/_auth/start?return_to=%2Fruns")


def test_without_scripts_the_form_is_whole(new_context: Callable[..., Any]) -> None:
    stage = Stage(new_context(java_script_enabled=False).new_page(), Pages("Prefect", HELP))
    stage.open("sign-in")
    expect(stage.page.locator(".peek")).to_be_hidden()  # it would do nothing
    stage.page.get_by_label("User name").fill("ada")
    stage.page.get_by_label("Password", exact=True).fill("secret")
    with stage.page.expect_request(lambda one: one.method == "POST") as sent:
        stage.page.get_by_role("button", name="Sign in").click()
    assert parse_qs(sent.value.post_data or "")["username"] == ["ada"]


def test_times_are_told_as_on_this_persons_clock(new_context: Callable[..., Any]) -> None:
    stage = Stage(new_context(timezone_id="Asia/Tokyo").new_page(), Pages("Prefect", HELP))
    stage.open("me")
    began = stage.page.locator("time").first
    expect(began).to_have_text("21 September 2026 at 20:13 GMT+9")
    expect(began).to_have_attribute("title", "21 September 2026, 11:13 UTC")


def test_a_script_that_got_into_a_page_would_not_run(page: Page) -> None:
    stage = Stage(page, Pages("Prefect", HELP))
    stage.open("sign-in")
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'run'";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<img src="data:," onerror="document.title = 1">');
    }""")
    page.wait_for_function("document.images[0].complete")
    assert page.title() == "Sign in · Prefect"
    assert any("Content Security Policy" in one for one in stage.complaints)
