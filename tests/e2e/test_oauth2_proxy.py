"""oauth2-proxy on the people's host: Traefik's side for real, oauth2-proxy's by a stand-in, for want of the program."""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.claimed_headers import CLAIMED
from tests.support.echo import Echo, Received
from tests.support.parts import ROOT, TRAEFIK, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import basic, handshake, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, SHIPPED, USER, Site, add_user, replace_once
from tests.support.waiting import accepts, free_port, wait_until

PERSON = "alice"
NAME = "__Host-oauth2-proxy"
SESSION = ("Cookie", f"theme=dark; {NAME}=good")
PAGE = ("Accept", "text/html,application/xhtml+xml")
PROVIDER = "https://idp.example/authorize"


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


@pytest.fixture(scope="module")
def stand_in() -> Iterator[str]:
    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), StandIn)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, stand_in: str) -> Iterator[int]:
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
            "GATE_OAUTH2_PROXY_URL": stand_in,
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


def received(port: int, path: str, *headers: tuple[str, str]) -> Received:
    """Return what the upstream received."""
    answer = send(port, PEOPLE, path, headers)
    assert answer.status == 200, answer
    return Received.from_json(json.loads(answer.body))


def test_as_shipped_nobody_is_let_in() -> None:
    """Whoever is, may do everything: there are no roles behind oauth2-proxy."""
    config = tomllib.loads((ROOT / "deploy" / "oauth2-proxy" / "oauth2-proxy.cfg").read_text())
    assert config["email_domains"] == ["example.com"]  # nobody's (RFC 2606 §3)


def test_machines_keep_their_gate(port: int) -> None:
    assert send(port, MACHINES, "/api/flows", [SESSION]).status == 401
    answer = send(port, MACHINES, "/api/flows", [basic(USER, PASSWORD)])
    assert answer.status == 200
    assert Received.from_json(json.loads(answer.body)).values("X-Auth-Request-User") == [USER]


def test_pages_lead_to_the_provider_and_calls_are_401(port: int) -> None:
    page = send(port, PEOPLE, "/runs?x=1", [PAGE])
    assert (page.status, page.header("Location")) == (302, f"{PROVIDER}?state=/runs?x=1")
    assert page.values("Set-Cookie")
    for headers in ([], [("Accept", "application/json")], [basic(USER, PASSWORD)]):
        assert send(port, PEOPLE, "/api/flows", headers).status == 401
    assert send(port, PEOPLE, "/assets/x.js").status == 401
    assert handshake(port, PEOPLE, "/api/events/in", [basic(USER, PASSWORD)]).status == 401


def test_a_session_passes_and_ends_at_the_proxy(port: int) -> None:
    for path, headers in (("/runs", [PAGE]), ("/api/flows", []), ("/assets/x.js", [])):
        stale = basic("stale", "stale")
        claims = [(name, "mallory") for name in (*CLAIMED, "X_Auth_Request_Email")]
        request = received(port, path, SESSION, stale, *claims, *headers)
        assert request.values("X-Auth-Request-User") == [PERSON]
        assert request.values("X-Auth-Request-Email") == [f"{PERSON}@example.com"]
        assert request.values("Cookie") == request.values("Authorization") == []
        assert [name for name, value in request.headers if "mallory" in value] == []


def test_a_refreshed_session_reaches_the_browser(port: int) -> None:
    answer = send(port, PEOPLE, "/api/flows", [("Cookie", f"{NAME}=old")])
    assert answer.status == 200
    assert [one.split(";")[0] for one in answer.values("Set-Cookie")] == [f"{NAME}=refreshed"]


def test_pages_are_not_stored_and_files_are(port: int) -> None:
    assert send(port, PEOPLE, "/runs", [SESSION, PAGE]).values("Cache-Control") == ["no-store"]
    assert send(port, PEOPLE, "/assets/x.js", [SESSION]).values("Cache-Control") == ["private"]


def test_our_own_pages_are_off(port: int) -> None:
    assert send(port, PEOPLE, "/_auth/login", [PAGE]).status == 302
    assert received(port, "/_auth/login", SESSION, PAGE).path == "/_auth/login"
