"""One Chromium, one Prefect server, and two gated sites: people sign in at a provider here, with a password there.

Everything that lasts ends with this package: Playwright keeps an event loop while it runs, and the asynchronous tests
of other folders need their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.browser.people import Way, by_password, by_provider
from tests.browser.seed import seed
from tests.support.chromium import ARGUMENTS, TIMEOUT_MS, starter
from tests.support.echo import Echo
from tests.support.openid import OpenIDProvider
from tests.support.parts import AXE, SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Server
from tests.support.site import PASSWORD, PEOPLE, USER, Site, add_user
from tests.support.waiting import free_port

KEY = "of-no-worth-but-long-enough-for-the-tests"
FAILED = pytest.StashKey[bool]()

NewContext = Callable[..., BrowserContext]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="package")
def chromium(folder: Path) -> Iterator[Browser]:
    """Launch a browser as people have it; Playwright would switch off its memory of pages left behind."""
    program = starter(folder)
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=ARGUMENTS, ignore_default_args=["--disable-back-forward-cache"]
        )
        yield browser
        browser.close()


@pytest.fixture
def new_context(chromium: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewContext]:
    """Return what opens a browser profile of its own; if the test fails, what it showed is kept."""
    contexts: list[BrowserContext] = []

    def opened(**options: Any) -> BrowserContext:
        context = chromium.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        return context

    yield opened
    for number, context in enumerate(contexts):
        if request.node.stash.get(FAILED, False):
            for place, page in enumerate(context.pages):
                with suppress(PlaywrightError):  # a page in a loop holds still for nobody
                    page.screenshot(path=tmp_path / f"failed-{number}-{place}.png")
        context.close()


@pytest.fixture
def context(new_context: NewContext) -> BrowserContext:
    return new_context()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="package")
def axe() -> Callable[[Page], list[dict[str, Any]]]:
    """Return what judges a page by the accessibility rules of WCAG 2.2 AA: the violations, each with its nodes."""
    script = require(AXE).read_text()

    def violations(page: Page) -> list[dict[str, Any]]:
        page.evaluate(script)  # past the page's Content-Security-Policy, which permits no script of others
        result = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
        return list(result["violations"])

    return violations


def oidc_settings(provider: OpenIDProvider) -> dict[str, str]:
    """Return the settings of a service whose people sign in there."""
    return {
        "FORWARD_AUTH_OIDC__ISSUER": provider.url,
        "FORWARD_AUTH_OIDC__CLIENT_ID": "browser",
        "FORWARD_AUTH_OIDC__CLIENT_SECRET": "browser-secret",
        "FORWARD_AUTH_OIDC__ROLE": "admin",
        "FORWARD_AUTH_SESSION__KEYS": KEY,
    }


def file_settings(users: Path) -> dict[str, str]:
    """Return the settings of a service whose people stand in a file."""
    return {"FORWARD_AUTH_USERS__FILE": str(users), "FORWARD_AUTH_USERS__ROLE": "admin"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what waits for a session to grow old last: it grows old meanwhile."""
    items.sort(key=lambda item: "grown_old" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="package", autouse=True)
def begun_early(request: pytest.FixtureRequest) -> None:
    """Begin at once with what takes a minute, if it is asked for at all."""
    if any("grown_old" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("grown_old")


# the sites ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def prefect_server(folder: Path) -> Iterator[Server]:
    require(prefect_part(SERVER_VERSION))
    with Server(folder / "server") as server:
        seed(server)
        yield server


@pytest.fixture(scope="package")
def users_file(folder: Path) -> Path:
    users = folder / "users.htpasswd"
    add_user(users, USER, PASSWORD)
    return users


@pytest.fixture(scope="package")
def provider_site_port() -> int:
    return free_port()


@pytest.fixture(scope="package")
def openid_provider(folder: Path, provider_site_port: int) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(folder, sites=[f"http://{PEOPLE}:{provider_site_port}"]) as provider:
        yield provider


@pytest.fixture(scope="package")
def provider_site(
    folder: Path, prefect_server: Server, openid_provider: OpenIDProvider, provider_site_port: int
) -> Iterator[Site]:
    """Serve a site at which people sign in through the provider."""
    require(TRAEFIK)
    settings, port = oidc_settings(openid_provider), provider_site_port
    with Site(folder / "provider-site", prefect_server.url, settings, port=port) as site:
        yield site


@pytest.fixture(scope="package")
def password_site(folder: Path, prefect_server: Server, users_file: Path) -> Iterator[Site]:
    """Serve a site at which people sign in with a password, and that knows of no provider."""
    require(TRAEFIK)
    settings = {**file_settings(users_file), "FORWARD_AUTH_SESSION__KEYS": KEY}
    with Site(folder / "password-site", prefect_server.url, settings) as site:
        yield site


@dataclass(frozen=True)
class GrownOld:
    """Two pages of one site, open since a moment of time.monotonic()."""

    site: Site
    asking: Page  # for something, every few seconds
    silent: Page
    held: str  # the session that `asking` began with
    since: float


@pytest.fixture(scope="package")
def grown_old(folder: Path, chromium: Browser) -> Iterator[GrownOld]:
    """Sign in twice where a session, and the provider's word for it, last as short as they may."""
    require(TRAEFIK)
    port = free_port()
    with (
        Echo() as echo,
        OpenIDProvider(folder / "short", sites=[f"http://{PEOPLE}:{port}"]) as provider,
        Site(
            folder / "short-site",
            echo.url,
            {
                **oidc_settings(provider),
                "FORWARD_AUTH_OIDC__CHECK": "30",
                "FORWARD_AUTH_SESSION__IDLE": "60",
            },
            port=port,
        ) as site,
    ):
        way = by_provider(site)
        asking, silent = (chromium.new_page() for _ in range(2))
        way.sign_in(asking)
        way.sign_in(silent)
        asking.evaluate("() => { setInterval(() => fetch('/api/health'), 3000) }")
        provider.rotate()
        provider.drop_old()
        yield GrownOld(site, asking, silent, session_of(asking, site), time.monotonic())
        asking.context.close()
        silent.context.close()


def session_of(page: Page, site: Site) -> str:
    """Return the session that a page's browser holds."""
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies(site.people_url)}
    return cookies["__Host-prefect-gate"]


@pytest.fixture
def impatient_site(tmp_path: Path, users_file: Path) -> Iterator[Site]:
    """Serve a site that takes two wrong passwords."""
    require(TRAEFIK)
    settings = {**file_settings(users_file), "FORWARD_AUTH_SIGN_IN__ATTEMPTS": "2"}
    with Echo() as echo, Site(tmp_path / "site", echo.url, settings) as site:
        yield site


@pytest.fixture(params=[by_provider, by_password], ids=["provider", "password"])
def way(request: pytest.FixtureRequest) -> Way:
    """Return each way in."""
    how: Callable[[Site], Way] = request.param
    site: Site = request.getfixturevalue("provider_site" if how is by_provider else "password_site")
    return how(site)
