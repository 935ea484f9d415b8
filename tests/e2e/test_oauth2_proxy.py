"""oauth2-proxy on the people's host: by a stand-in that does what its documentation says, or by the program itself.

The program runs in `make test-providers`, if it is installed.
"""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

import pytest

from tests.support.claimed_headers import CLAIMED
from tests.support.echo import Echo, Received
from tests.support.openid import OpenIDProvider, ProviderBrowser
from tests.support.parts import OAUTH2_PROXY, ROOT, TRAEFIK, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import Answer, basic, handshake, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, SHIPPED, USER, Site, add_user, replace_once
from tests.support.waiting import accepts, free_port, wait_until

PERSON = "alice"
NAME = "__Host-oauth2-proxy"
PAGE = ("Accept", "text/html,application/xhtml+xml")
PROVIDER = "https://idp.example/authorize"
CLIENT, SECRET = "prefect-ui", "prefect-ui-secret-0123456789"
GRANTS = ["authorization_code", "refresh_token"]
REAL = pytest.param("oauth2-proxy", marks=pytest.mark.by_hand)
SIDES = ["stand-in", REAL]


class Front(NamedTuple):
    """oauth2-proxy, or what stands in for it."""

    url: str
    provider: str  # where it sends people
    email: str
    browser: OpenIDProvider | None  # where somebody signs in, if it is real


class StandIn(BaseHTTPRequestHandler):
    """Not oauth2-proxy: what its documentation says of `/oauth2/auth` and of `/` with `static://202`, and no more."""

    def do_GET(self) -> None:
        cookies = self.headers.get("Cookie") or ""
        if f"{NAME}=" in cookies and self.path in {"/", "/oauth2/auth"}:
            self.send_response(202)
            self.send_header("X-Auth-Request-User", PERSON)
            self.send_header("X-Auth-Request-Email", f"{PERSON}@example.com")
            if f"{NAME}=old" in cookies:
                self.send_header("Set-Cookie", f"{NAME}=refreshed; Path=/; HttpOnly; Secure; SameSite=Lax")
        elif self.path == "/oauth2/auth":
            self.send_response(401)
        else:
            self.send_response(302)
            self.send_header("Location", f"{PROVIDER}?state={self.headers.get('X-Forwarded-Uri') or self.path}")
            self.send_header("Set-Cookie", f"{NAME}_csrf=1; Path=/; HttpOnly; Secure; SameSite=Lax")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output quiet."""


@pytest.fixture(scope="module", params=SIDES)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    if request.param == "oauth2-proxy":
        with ExitStack() as stack:
            yield real_front(tmp_path_factory.mktemp("front"), stack)
        return
    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), StandIn)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield Front(f"http://127.0.0.1:{port}", PROVIDER, f"{PERSON}@example.com", None)
    server.shutdown()
    server.server_close()


def real_front(folder: Path, stack: ExitStack) -> Front:
    """Start oauth2-proxy from the shipped file, but for its addresses and whom it lets in."""
    program = require(OAUTH2_PROXY)
    callback = f"https://{PEOPLE}/oauth2/callback"
    client = {"client_id": CLIENT, "client_secret": SECRET, "redirect_uris": [callback], "grant_types": GRANTS}
    provider = stack.enter_context(OpenIDProvider(folder, clients=[client]))
    port, config = free_port(), folder / "oauth2-proxy.cfg"
    text = (ROOT / "deploy" / "oauth2-proxy" / "oauth2-proxy.cfg").read_text()
    for shipped, here in {
        "https://idp.example.com/realms/data": provider.url,
        "https://prefect.example.com/oauth2/callback": callback,
        "0.0.0.0:4180": f"127.0.0.1:{port}",
        'email_domains = ["example.com"]': 'email_domains = ["example.test"]',
    }.items():
        text = replace_once(text, shipped, here)
    config.write_text(text)
    env = {"OAUTH2_PROXY_CLIENT_SECRET": SECRET, "OAUTH2_PROXY_COOKIE_SECRET": "A" * 43 + "="}
    process = Process(
        "oauth2-proxy",
        [program, f"--config={config}"],
        env=clean_environment(folder / "home", env),
        log=folder / "oauth2-proxy.log",
    )
    stack.callback(process.stop)
    wait_until(lambda: accepts(port), timeout=30, what="oauth2-proxy listens", log=process.tail)
    return Front(f"http://127.0.0.1:{port}", f"{provider.url}/auth", f"{PERSON}@example.test", provider)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, front: Front) -> Iterator[int]:
    """Serve an echo behind Traefik, which reads two files: the gate's, and what puts oauth2-proxy before it."""
    folder = tmp_path_factory.mktemp("oauth2-proxy")
    dynamic, config, port = folder / "dynamic", folder / "http.yml", free_port()
    dynamic.mkdir()
    shutil.copy(SHIPPED / "dynamic" / "gate.yml", dynamic)
    shutil.copy(ROOT / "deploy" / "oauth2-proxy" / "oauth2-proxy.yml", dynamic)
    static = replace_once((SHIPPED / "http.yml").read_text(), '":8000"', f'"127.0.0.1:{port}"')
    verify = f"127.0.0.1:{free_port()}"
    static = replace_once(static, "127.0.0.1:8081", verify)
    config.write_text(replace_once(static, "filename: /etc/traefik/dynamic/gate.yml", f"directory: {dynamic}"))
    add_user(folder / "users", USER, PASSWORD)
    with Echo() as echo, ExitStack() as stack:
        users = {"FORWARD_AUTH_USERS__FILE": str(folder / "users"), "FORWARD_AUTH_USERS__ROLE": "admin"}
        site = Site(folder, echo.url, users)
        site.start_service()
        stack.callback(site.service.stop)
        env = {
            "GATE_MACHINES_HOST": MACHINES,
            "GATE_PEOPLE_HOST": PEOPLE,
            "GATE_PREFECT_URL": echo.url,
            "GATE_AUTH_URL": site.service_url,
            "GATE_VERIFY_URL": f"http://{verify}",
            "GATE_OAUTH2_PROXY_URL": front.url,
        }
        traefik = Process(
            "Traefik",
            [require(TRAEFIK), f"--configFile={config}"],
            env=clean_environment(folder / "home", env),
            log=folder / "traefik.log",
        )
        stack.callback(traefik.stop)
        wait_until(
            lambda: accepts(port) and send(port, PEOPLE, "/oauth2/auth").status == 401,
            timeout=20,
            what="routes in Traefik",
            log=traefik.tail,
        )
        assert '"level":"error"' not in traefik.text()
        assert "ERR" not in traefik.text(), traefik.tail()
        yield port


@pytest.fixture(scope="module")
def session(front: Front, port: int) -> tuple[str, str]:
    """Return the cookies of somebody who has signed in, through the proxy where oauth2-proxy is real."""
    if front.browser is None:
        return ("Cookie", f"theme=dark; {NAME}=good")
    page = send(port, PEOPLE, "/runs?x=1", [PAGE])
    with ProviderBrowser(front.browser) as browser:
        came_back = browser.sign_in(page.header("Location") or "", PERSON)
    query = "&".join(f"{name}={value}" for name, value in came_back.items())
    answer = send(port, PEOPLE, f"/oauth2/callback?{query}", [PAGE, ("Cookie", cookies_of(page))])
    assert (answer.status, answer.header("Location")) == (302, "/runs?x=1"), answer
    assert all("HttpOnly" in one and "Secure" in one for one in answer.values("Set-Cookie"))
    return ("Cookie", f"theme=dark; {cookies_of(answer)}")


def cookies_of(answer: Answer) -> str:
    return "; ".join(one.partition(";")[0] for one in answer.values("Set-Cookie"))


def received(port: int, path: str, *headers: tuple[str, str]) -> Received:
    """Return what the upstream received."""
    answer = send(port, PEOPLE, path, headers)
    assert answer.status == 200, answer
    return Received.from_json(json.loads(answer.body))


def test_as_shipped_nobody_is_let_in() -> None:
    """Whoever is, may do everything: there are no roles behind oauth2-proxy."""
    config = tomllib.loads((ROOT / "deploy" / "oauth2-proxy" / "oauth2-proxy.cfg").read_text())
    assert config["email_domains"] == ["example.com"]  # nobody's (RFC 2606 §3)


def test_machines_keep_their_gate(port: int, session: tuple[str, str]) -> None:
    assert send(port, MACHINES, "/api/flows", [session]).status == 401
    answer = send(port, MACHINES, "/api/flows", [basic(USER, PASSWORD)])
    assert answer.status == 200
    assert Received.from_json(json.loads(answer.body)).values("X-Auth-Request-User") == [USER]


def test_pages_lead_to_the_provider_and_calls_are_401(port: int, front: Front) -> None:
    page = send(port, PEOPLE, "/runs?x=1", [PAGE])
    to, _, query = (page.header("Location") or "").partition("?")
    assert (page.status, to) == (302, front.provider)
    assert unquote(parse_qs(query)["state"][0]).endswith("/runs?x=1")
    assert page.values("Set-Cookie")
    for headers in ([], [("Accept", "application/json")], [basic(USER, PASSWORD)]):
        assert send(port, PEOPLE, "/api/flows", headers).status == 401
    assert send(port, PEOPLE, "/assets/x.js").status == 401
    assert handshake(port, PEOPLE, "/api/events/in", [basic(USER, PASSWORD)]).status == 401


def test_a_session_passes_and_ends_at_the_proxy(port: int, front: Front, session: tuple[str, str]) -> None:
    for path, headers in (("/runs", [PAGE]), ("/api/flows", []), ("/assets/x.js", [])):
        stale = basic("stale", "stale")
        claims = [(name, "mallory") for name in (*CLAIMED, "X_Auth_Request_Email")]
        request = received(port, path, session, stale, *claims, *headers)
        assert request.values("X-Auth-Request-User") == [PERSON]
        assert request.values("X-Auth-Request-Email") == [front.email]
        assert request.values("Cookie") == request.values("Authorization") == []
        assert [name for name, value in request.headers if "mallory" in value] == []


def test_a_refreshed_session_reaches_the_browser(port: int, front: Front) -> None:
    if front.browser is not None:
        pytest.skip("a session is refreshed after fifteen minutes")
    answer = send(port, PEOPLE, "/api/flows", [("Cookie", f"{NAME}=old")])
    assert answer.status == 200
    assert [one.split(";")[0] for one in answer.values("Set-Cookie")] == [f"{NAME}=refreshed"]


def test_pages_are_not_stored_and_files_are(port: int, session: tuple[str, str]) -> None:
    assert send(port, PEOPLE, "/runs", [session, PAGE]).values("Cache-Control") == ["no-store"]
    assert send(port, PEOPLE, "/assets/x.js", [session]).values("Cache-Control") == ["private"]


@pytest.mark.parametrize("front", [REAL], indirect=True)  # the stand-in knows no sign-out
def test_signing_out_ends_the_session(port: int, front: Front, session: tuple[str, str]) -> None:
    answer = send(port, PEOPLE, "/oauth2/sign_out", [session, PAGE])
    assert answer.status == 302
    ended = [one for one in answer.values("Set-Cookie") if one.startswith(f"{NAME}=;")]
    assert ended


def test_our_own_pages_are_off(port: int, session: tuple[str, str]) -> None:
    assert send(port, PEOPLE, "/_auth/login", [PAGE]).status == 302
    assert received(port, "/_auth/login", session, PAGE).path == "/_auth/login"
