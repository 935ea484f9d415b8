"""Pages of other sites can do nothing with a session, wherever they come from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, expect

from tests.browser.conftest import NewContext
from tests.browser.people import by_password
from tests.browser.traffic import Traffic
from tests.support.prefect import Server
from tests.support.site import MACHINES, PEOPLE, Site

MADE_UP = "mallory-was-here"

WRITE = """async ([url, name]) => {
    const body = new Blob([JSON.stringify({name})]);  // without a type Prefect takes it for JSON
    await fetch(url, {method: 'POST', body, mode: 'no-cors', credentials: 'include'}).catch(() => null);
}"""
FORM = """([url, name]) => {
    const form = document.createElement('form');
    Object.assign(form, {method: 'POST', action: url, enctype: 'text/plain', target: 'shot'});
    const field = document.createElement('input');
    Object.assign(field, {name: `{"name": "${name}", "x": "`, value: '"}'});
    const frame = document.createElement('iframe');
    frame.name = 'shot';
    form.append(field);
    document.body.append(form, frame);
    return new Promise(done => { frame.onload = done; form.submit(); });
}"""
READ = "url => fetch(url, {credentials: 'include'}).then(answer => answer.text(), () => null)"
CONNECT = """url => new Promise(done => {
    const socket = new WebSocket(url, 'prefect');
    socket.onopen = () => done('open');
    socket.onerror = () => done('refused');
})"""


class Blank(BaseHTTPRequestHandler):
    """Answers every GET with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><body>")

    def log_message(self, *_: object) -> None:
        """Keep the tests' output quiet."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """Serve blank pages; return the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(password_site: Site) -> Site:
    return password_site


@pytest.fixture(scope="module")
def signed_in(chromium: Browser, site: Site) -> StorageState:
    """Sign in once; each test continues with these cookies in a browser of its own."""
    context = chromium.new_context()
    by_password(site).sign_in(context.new_page())
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def context(new_context: NewContext, signed_in: StorageState) -> BrowserContext:
    return new_context(storage_state=signed_in)


# The first is sent SameSite cookies, too: another port is the same site.
@pytest.fixture(params=[PEOPLE, MACHINES], ids=["same-site", "cross-site"])
def hostile(request: pytest.FixtureRequest, elsewhere: int, site: Site, page: Page) -> Page:
    """Return a page of another site in a browser with a session."""
    page.goto(f"{site.people_url}/api/health")
    assert page.url == f"{site.people_url}/api/health", "there is a session"
    host: str = request.param
    page.goto(f"http://{host}:{elsewhere}/")
    return page


def flows(server: Server) -> set[str]:
    return {row["name"] for row in server.ask("POST", "/flows/filter", {})}


def test_a_page_of_the_site_itself_may_write_and_connect(site: Site, page: Page, prefect_server: Server) -> None:
    """The counterpart, without which a gate that refuses everything would pass."""
    page.goto(f"{site.people_url}/api/health")
    url = f"{site.people_url}/api/flows/"

    page.evaluate(WRITE, [url, "our-own-page"])

    assert "our-own-page" in flows(prefect_server)
    assert page.evaluate(CONNECT, f"{site.people_url.replace('http', 'ws')}/api/events/in") == "open"


@pytest.mark.parametrize("attack", [WRITE, FORM], ids=["fetch", "form"])
def test_another_site_writes_nothing(
    attack: str, hostile: Page, site: Site, context: BrowserContext, prefect_server: Server
) -> None:
    traffic = Traffic(context, site.people_url)

    hostile.evaluate(attack, [f"{site.people_url}/api/flows/", MADE_UP])

    assert [words.split()[:2] for words in traffic.to("/api/flows/")] in ([["403", "POST"]], [["401", "POST"]])
    assert MADE_UP not in flows(prefect_server)


def test_another_site_reads_nothing(hostile: Page, site: Site) -> None:
    assert hostile.evaluate(READ, f"{site.people_url}/api/admin/version") is None


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_another_site_opens_no_websocket(path: str, hostile: Page, site: Site) -> None:
    assert hostile.evaluate(CONNECT, site.people_url.replace("http", "ws") + path) == "refused"


@pytest.mark.parametrize("attack", [WRITE, FORM], ids=["fetch", "form"])
def test_another_site_signs_nobody_out(attack: str, hostile: Page, site: Site) -> None:
    hostile.evaluate(attack, [f"{site.people_url}/_auth/logout", MADE_UP])

    hostile.goto(f"{site.people_url}/_auth/me")
    expect(hostile.get_by_role("heading", name="You are signed in")).to_be_visible()


def test_another_site_frames_no_page_of_the_service(hostile: Page, site: Site) -> None:
    frame = """url => new Promise(done => {
        const frame = document.createElement('iframe');
        frame.src = url;
        frame.onload = () => done(frame.contentDocument === null);
        document.body.append(frame);
    })"""
    assert hostile.evaluate(frame, f"{site.people_url}/_auth/logout")
    assert all("Sign out" not in one.content() for one in hostile.frames)
