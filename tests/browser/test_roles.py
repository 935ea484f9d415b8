"""What a viewer sees: both UIs, page by page, and nothing that says it was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import KEY
from tests.browser.people import sign_in_with_password
from tests.browser.seed import UI, V1, V2
from tests.browser.traffic import Traffic
from tests.support.parts import TRAEFIK, require
from tests.support.prefect import Server
from tests.support.site import Site

TOASTS = ".p-toast--error, [data-sonner-toast][data-type=error]"  # of the older UI, and of the newer one
BLIND = {"blind": {"capabilities": ["slots"]}}  # may open the pages, and read nothing


@pytest.fixture(scope="module")
def roles_site(folder: Path, prefect_server: Server, users_file: Path) -> Iterator[Site]:
    require(TRAEFIK)
    settings = {
        "FORWARD_AUTH_USERS__FILE": str(users_file),
        "FORWARD_AUTH_USERS__ROLE": "viewer",
        "FORWARD_AUTH_SESSION__KEYS": KEY,
        "FORWARD_AUTH_SIGN_IN__HELP": "Ask the data team.",
    }
    with Site(folder / "roles-site", prefect_server.url, settings) as site:
        yield site


@dataclass(frozen=True)
class Things:
    """Ids of what stands on the server."""

    flow: str
    deployment: str
    run: str
    block: str


@pytest.fixture(scope="module")
def things(prefect_server: Server) -> Things:
    def first(what: str) -> str:
        return str(prefect_server.ask("POST", f"/{what}/filter", {})[0]["id"])

    return Things(first("flows"), first("deployments"), first("flow_runs"), first("block_documents"))


# fmt: off
def pages_of(ui: UI, one: Things) -> list[str]:
    runs = "/flow-runs" if ui is V1 else "/runs"
    return [
        "/dashboard", "/runs", f"{runs}/flow-run/{one.run}", "/flows", f"/flows/flow/{one.flow}", "/deployments",
        f"/deployments/deployment/{one.deployment}", "/work-pools", "/work-pools/work-pool/crimson-pool",
        "/work-pools/work-pool/crimson-pool/queue/default", "/blocks", f"/blocks/block/{one.block}", "/variables",
        "/blocks/catalog", "/automations", "/automations/create", "/artifacts", "/concurrency-limits", "/events",
        "/settings",
    ]
# fmt: on


def sign_in(page: Page, site: Site) -> None:
    page.goto(f"{site.people_url}/_auth/login")
    sign_in_with_password(page)
    page.wait_for_url(lambda url: "/_auth/" not in url)


@pytest.mark.parametrize("ui", [pytest.param(V1, marks=pytest.mark.long), V2], ids=str)
def test_a_viewer_opens_every_page_and_nothing_is_refused(
    roles_site: Site, things: Things, ui: UI, context: BrowserContext, page: Page
) -> None:
    sign_in(page, roles_site)
    version = {"name": "prefect_ui_version", "value": ui.name, "url": roles_site.people_url}
    context.add_cookies([version])  # type: ignore[list-item]
    traffic = Traffic(context, roles_site.people_url)
    toasted: list[str] = []
    for path in pages_of(ui, things):
        page.goto(f"{roles_site.people_url}{ui.base}{path}")
        traffic.wait_until_quiet(page)
        toasted += [f"{path}: {text}" for text in page.locator(TOASTS).all_inner_texts()]
    assert not [one for one in traffic.failed if one.startswith(("401", "403"))]
    assert not toasted
    assert len(traffic.to("/api/")) > 60
    page.goto(f"{roles_site.people_url}{ui.base}/blocks")
    expect(page.get_by_text("crimson-secret").first).to_be_visible()


def test_who_has_no_role_is_led_to_a_page_that_says_whom_to_ask(roles_site: Site, page: Page) -> None:
    viewing = roles_site.settings
    sign_in(page, roles_site)
    try:
        roles_site.restart_service({**viewing, "FORWARD_AUTH_USERS__ROLE": ""})
        page.goto(f"{roles_site.people_url}/v2/runs")
        expect(page.get_by_text("without a role here")).to_be_visible()
        page.get_by_role("link", name="whom can I ask").click()
        expect(page.get_by_text("Ask the data team.")).to_be_visible()
        expect(page.get_by_text("no role", exact=True)).to_be_visible()
        page.get_by_role("link", name="Use another account").click()
        expect(page.get_by_label("User name")).to_be_visible()
    finally:
        roles_site.restart_service(viewing)


def test_what_may_not_be_read_is_seen_to_be_refused(roles_site: Site, page: Page) -> None:
    viewing = roles_site.settings
    try:
        blind = {"FORWARD_AUTH_USERS__ROLE": "blind", "FORWARD_AUTH_ROLES": json.dumps(BLIND)}
        roles_site.restart_service({**viewing, **blind})
        sign_in(page, roles_site)
        with page.expect_response(lambda response: response.status == 403 and "/api/" in response.url):
            page.goto(f"{roles_site.people_url}/v2/deployments")
    finally:
        roles_site.restart_service(viewing)
