"""deploy/kubernetes/ingress-nginx: a real Nginx, set up as the controller would be by these annotations.

The controller itself is not run: what it makes of each annotation is written here from its template, and no more of it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from tests.support.claimed_headers import CLAIMED
from tests.support.echo import Echo, Received
from tests.support.issuer import Issuer
from tests.support.machine_socket import SOCKETS
from tests.support.parts import KUBECTL, NGINX, ROOT, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import UPGRADE, basic, bearer, send
from tests.support.site import PASSWORD, USER, Site, add_user
from tests.support.upstream import Upstream
from tests.support.waiting import accepts, free_port, wait_until

HERE = ROOT / "deploy" / "kubernetes" / "ingress-nginx"
MACHINES, PEOPLE = "prefect-m2m.example.com", "prefect.example.com"
OWN_ISSUER = f"https://{MACHINES}/_auth"
EVIL = "mallory"
PREFIX = "nginx.ingress.kubernetes.io/"
NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}


def annotations_of(ingress: dict[str, Any]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): text for name, text in ingress["metadata"].get("annotations", {}).items()}


def location(
    number: int, path: dict[str, Any], told: dict[str, str], maps: dict[str, Any], upstreams: dict[str, str]
) -> str:
    """Return what the controller writes for a path of an Ingress, as far as its annotations say."""
    lines = ["proxy_http_version 1.1;", f"proxy_pass {upstreams[path['backend']['service']['name']]};"]
    passed_on = ("Upgrade $http_upgrade", "Connection $connection_upgrade", "Host $http_host")
    seen = ["X-Forwarded-For $remote_addr", "X-Forwarded-Host $http_host", "X-Forwarded-Proto $scheme"]
    seen += ["X-Real-IP $remote_addr", "X-Forwarded-Port $server_port", "X-Forwarded-Scheme $scheme"]
    seen += ["X-Scheme $scheme", "X-Original-Forwarded-For $http_x_forwarded_for"]
    lines += [f"proxy_set_header {each};" for each in (*passed_on, *seen)]
    more = ""
    if "auth-url" in told:
        lines += [f"auth_request /_gate{number};", "auth_request_set $auth_cookie $upstream_http_set_cookie;"]
        always = " always" if told.get("auth-always-set-cookie") == "true" else ""
        lines.append(f"add_header Set-Cookie $auth_cookie{always};")
        for index, name in enumerate(re.split(r",\s*", told["auth-response-headers"])):
            variable = f"$upstream_http_{name.lower().replace('-', '_')}"
            lines += [f"auth_request_set $h{index} {variable};", f"proxy_set_header '{name}' $h{index};"]
        url = told["auth-url"].replace("http://forward-auth.prefect.svc.cluster.local:8080", upstreams["forward-auth"])
        asked = {"Content-Length": "", "X-Forwarded-Proto": "", "Host": "forward-auth.prefect.svc.cluster.local"}
        asked |= {"X-Original-URL": "$scheme://$http_host$request_uri", "X-Original-Method": "$request_method"}
        asked |= {"X-Forwarded-For": "$remote_addr", "X-Auth-Request-Redirect": "$request_uri"}
        pairs = list(asked.items())
        if "auth-proxy-set-headers" in told:
            pairs += maps[told["auth-proxy-set-headers"].removeprefix("prefect/")].items()
        headers = "".join(f"proxy_set_header '{name}' '{value}'; " for name, value in pairs)
        more = f"location = /_gate{number} {{ internal; proxy_pass_request_body off; {headers} proxy_pass {url}; }}\n"
    if "auth-signin" in told:
        lines.append(f"error_page 401 = /_sign-in{number};")
        target = told["auth-signin"].replace("$escaped_request_uri", "$request_uri")  # nothing to escape here
        more += f"location = /_sign-in{number} {{ internal; return 302 {target}; }}\n"
    if "rewrite-target" in told:
        lines.insert(0, f'rewrite "(?i){path["path"]}" {told["rewrite-target"]} break;')
    pattern = path["path"].rstrip("/") or "/"
    match = f"= {pattern}" if path["pathType"] == "Exact" else f"~ ^{pattern.rstrip('/')}(/|$)"  # in this order
    if path["pathType"] == "ImplementationSpecific":  # a regular expression, where one Ingress of the host uses them
        match = f'~* "^{path["path"]}"'
    return f"{more}location {match} {{ {' '.join(lines)} }}\n".replace("$scheme", "https")  # TLS is not what is tested


@dataclass
class Gated:
    port: int
    site: Site
    issuer: Issuer
    tokens: Path

    def get(self, host: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers={"Host": host, **(headers or {})})


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    folder = tmp_path_factory.mktemp("ingress-nginx")
    nginx, port = require(NGINX), free_port()
    add_user(folder / "users.htpasswd", USER, PASSWORD)
    argv: list[str | Path] = [require(KUBECTL), "kustomize", HERE]
    objects = list(yaml.safe_load_all(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout))
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    ingresses = [each for each in objects if each["kind"] == "Ingress"]
    paths = [
        (ingress["spec"]["rules"][0]["host"], path, annotations_of(ingress))
        for ingress in ingresses
        for path in ingress["spec"]["rules"][0]["http"]["paths"]
    ]
    paths.sort(key=lambda each: -len(each[1]["path"]))  # the longest wins
    regular = {host for host, path, told in paths if "use-regex" in told or "rewrite-target" in told}
    assert {path["pathType"] for host, path, _ in paths if host in regular} == {"ImplementationSpecific"}
    issuer = Issuer()
    with Echo() as echo, Upstream() as sockets:
        settings = {
            "FORWARD_AUTH_PREFECT__URL": sockets.url,
            "FORWARD_AUTH_WEBSOCKETS__VOUCHED": "false",  # all callers of the tests share one address
            "FORWARD_AUTH_USERS__FILE": str(folder / "users.htpasswd"),
            "FORWARD_AUTH_TOKENS__FOLDER": str(folder / "tokens"),
            "FORWARD_AUTH_TOKENS__ISSUER": OWN_ISSUER,
            "FORWARD_AUTH_ISSUER__URL": issuer.url,
            "FORWARD_AUTH_USERS__ROLE": "admin",
            "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect",
            "FORWARD_AUTH_ISSUER__ROLE": "viewer",
        }
        site = Site(folder, echo.url, settings)
        upstreams = {"prefect-server": echo.url, "forward-auth": site.service_url}
        servers: dict[str, str] = {}
        for number, (host, path, told) in enumerate(paths):
            servers[host] = servers.get(host, "location / { return 404; }\n") + location(
                number, path, told, maps, upstreams
            )
        blocks = (f"server {{ listen 127.0.0.1:{port}; server_name {host}; {text} }}" for host, text in servers.items())
        config = f"""
            daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}
            http {{
              access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
              fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
              map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
              {" ".join(blocks)}
              server {{ listen 127.0.0.1:{port} default_server; return 404; }}
            }}"""
        (folder / "nginx.conf").write_text(config)
        site.start_service()
        try:
            command: list[str | Path] = [nginx, "-e", "stderr", "-c", folder / "nginx.conf", "-p", folder]
            env = clean_environment(folder / "home", {})
            with Process("Nginx", command, env=env, log=folder / "nginx.log") as process:
                wait_until(lambda: accepts(port), timeout=10, what="Nginx", log=process.tail)
                yield Gated(port, site, issuer, folder / "tokens")
        finally:
            site.service.stop()


def claimed_by_the_caller(seen: Received) -> list[str]:
    """Return the headers of the caller that were passed on, without the one that the controller always copies."""
    return [name for name, value in seen.headers if EVIL in value and name != "X-Original-Forwarded-For"]


@pytest.mark.parametrize("more", [(), UPGRADE], ids=["http", "websocket"])
def test_machines_pass_with_a_credential_alone_and_prefect_sees_none(gated: Gated, more: tuple[Any, ...]) -> None:
    assert send(gated.port, MACHINES, "/api/hello", more).status == 401
    claims = [(name, EVIL) for name in (*CLAIMED, "X_Auth_Request_User")]
    cookie = ("Cookie", "a=1; __Host-prefect-gate=x")
    answer = send(gated.port, MACHINES, "/api/hello?x=1", [*claims, cookie, basic(USER, PASSWORD), *more])
    assert answer.status == 200, answer
    seen = Received.from_json(yaml.safe_load(answer.body))
    assert seen.path == "/api/hello?x=1"
    assert seen.values("X-Auth-Request-User") == [USER]
    assert claimed_by_the_caller(seen) == []
    assert not seen.values("Authorization")
    assert not seen.values("Cookie")


@contextmanager
def opened(
    gated: Gated, path: str, token: str | None, headers: dict[str, str] | None = None
) -> Iterator[ClientConnection]:
    """Open a WebSocket at the machines' host, as Prefect's clients do."""
    connection = socket.create_connection(("127.0.0.1", gated.port), 10)
    options: dict[str, Any] = {"additional_headers": headers, "subprotocols": [Subprotocol("prefect")]}
    with connect(f"ws://{MACHINES}{path}", sock=connection, **options) as socket_:
        socket_.send(json.dumps({"type": "auth", "token": token}))
        yield socket_


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("how", ["header", "first message"])
def test_websockets_of_machines_are_relayed(path: str, how: str, gated: Gated) -> None:
    headers = {**dict.fromkeys(CLAIMED, EVIL), "Cookie": "a=1"}
    headers |= dict([basic(USER, PASSWORD)]) if how == "header" else {}
    token = f"{USER}:{PASSWORD}" if how == "first message" else None
    with opened(gated, path, token, headers) as socket_:
        seen = Received.from_json(json.loads(socket_.recv(10)))
    assert (seen.path, seen.values("X-Auth-Request-User")) == (path, [USER])
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]
    assert EVIL not in json.dumps(seen.headers)
    assert not seen.values("Authorization")
    assert not seen.values("Cookie")


def test_a_websocket_without_a_token_is_closed(gated: Gated) -> None:
    with opened(gated, SOCKETS[0], None) as socket_, pytest.raises(ConnectionClosed):
        socket_.recv(10)
    assert socket_.close_code == 1008


def test_nothing_else_is_relayed(gated: Gated) -> None:
    for path in ("/api/new/feed", "/api/events", "/api/events/in/x", "/xapi/events/in", "/relay/api/api/events/in"):
        for host in (MACHINES, PEOPLE):
            assert send(gated.port, host, path, UPGRADE).status in {302, 401, 404}, path
    for path in SOCKETS:
        assert send(gated.port, MACHINES, path).status == 404, "no WebSocket"
        assert send(gated.port, PEOPLE, path, UPGRADE).status == 401


def test_the_machines_host_has_the_api_alone(gated: Gated) -> None:
    for path in ("/", "/apis", "/docs", "/_auth/login", "/_auth/", "/_auth/token/", "/_auth/tokens", "/x/_auth/token"):
        assert gated.get(MACHINES, path, dict([basic(USER, PASSWORD)])).status_code == 404, path


def test_machines_obtain_tokens_and_others_find_the_keys(gated: Gated) -> None:
    with Ledger(SQLite(gated.tokens), rotate=86_400) as ledger:
        secret = ledger.add_machine("etl", "admin")
    url, form = f"http://127.0.0.1:{gated.port}/_auth/token", {"grant_type": "client_credentials"}
    answer = httpx.post(url, data=form, headers={"Host": MACHINES}, auth=("etl", secret))
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    assert gated.get(MACHINES, "/api/hello", dict([bearer(token)])).status_code == 200
    for path in (
        "/_auth/.well-known/openid-configuration",
        "/_auth/.well-known/oauth-authorization-server",
        "/.well-known/oauth-authorization-server/_auth",
    ):
        assert gated.get(MACHINES, path).json()["issuer"] == OWN_ISSUER, path
    assert len(gated.get(MACHINES, "/_auth/.well-known/jwks.json").json()["keys"]) == 1


def test_an_outage_of_the_issuer_does_not_end_a_worker(gated: Gated) -> None:
    """Workers sit out a 5xx on a poll, and end at a 401 or 403."""
    answer = gated.get(MACHINES, "/api/hello", dict([bearer(gated.issuer.mint())]))  # it was never started
    assert answer.status_code == 500


def test_people_are_sent_to_sign_in_and_what_pages_call_is_not(gated: Gated) -> None:
    page = gated.get(PEOPLE, "/runs?x=1", NAVIGATION)
    assert (page.status_code, page.headers["location"]) == (302, f"https://{PEOPLE}/_auth/login?return_to=/runs?x=1")
    assert gated.get(PEOPLE, "/api/hello").status_code == 401
    assert gated.get(PEOPLE, "/api/hello", dict([basic(USER, PASSWORD)])).status_code == 401
    settings = gated.get(PEOPLE, "/ui-settings")
    assert settings.headers["location"] == f"https://{PEOPLE}/_auth/ui-settings?return_to=/"
    assert gated.get(PEOPLE, "/_auth/ui-settings?return_to=/").status_code == 200


def test_a_session_opens_the_pages_and_ends_at_the_gate(gated: Gated) -> None:
    host = {"Host": PEOPLE, "Origin": f"http://{PEOPLE}", "Sec-Fetch-Site": "same-origin"}
    form = gated.get(PEOPLE, "/_auth/login?return_to=/runs", NAVIGATION)
    csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', form.text)
    assert csrf is not None
    cookies = "; ".join(each.partition(";")[0] for each in form.headers.get_list("set-cookie"))
    data = {"username": USER, "password": PASSWORD, "csrf": csrf[1], "return_to": "/runs"}
    url = f"http://127.0.0.1:{gated.port}/_auth/login"
    signed_in = httpx.post(url, data=data, headers={**host, "Cookie": cookies})
    assert signed_in.status_code == 303, signed_in.text
    session = "; ".join(each.partition(";")[0] for each in signed_in.headers.get_list("set-cookie"))
    for path in ("/runs", "/api/hello", "/ui-settings"):
        claims = dict.fromkeys(CLAIMED, EVIL)
        more = {"Cookie": f"theme=dark; {session}", **dict([basic("x", "y")])}
        answer = gated.get(PEOPLE, path, {**claims, **host, **more})
        assert answer.status_code == 200, path
        seen = Received.from_json(answer.json())
        assert seen.values("Cookie") == ["theme=dark"]
        assert seen.values("X-Auth-Request-User") == [USER]
        assert claimed_by_the_caller(seen) == []
        assert not seen.values("Authorization")
