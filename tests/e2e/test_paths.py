"""Whatever way a path is written: what the table calls it is what the real server executes, or nothing is."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.core.errors import MalformedRequest
from service.core.prefect.routes import Route, Routes, known_routes
from service.core.prefect.table import PAGE_NAMES
from service.core.request.headers import parse_method, parse_target
from tests.support.forwarded_requests import concrete
from tests.support.parts import SERVER_VERSION, prefect_part, require
from tests.support.prefect import Server
from tests.support.raw_http import handshake

ROUTES = Routes(known_routes())
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes


class _Received(io.BytesIO):
    def makefile(self, *_: object) -> io.BytesIO:
        return self


def ask(server: Server, method: bytes, target: bytes, body: bytes = b"", *headers: bytes) -> Answer:
    """Send a request to the server byte by byte: no library tidies up what a caller may write."""
    head = [
        method + b" " + target + b" HTTP/1.1",
        b"Host: 127.0.0.1:" + str(server.port).encode(),
        b"Connection: close",
        b"Content-Type: application/json",
        b"Content-Length: " + str(len(body)).encode(),
        *headers,
    ]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    response = http.client.HTTPResponse(_Received(received), method="GET")  # type: ignore[arg-type]
    response.begin()
    content = b"" if method == b"HEAD" else response.read()
    return Answer(response.status, response.getheader("content-type", ""), content)


def judged(method: bytes, target: bytes) -> Route | None:
    """Return the route that the gate would judge, or None where it refuses to read, or does not know."""
    try:
        return ROUTES.find(parse_method(method), parse_target(target).path)
    except MalformedRequest:
        return None


WRITINGS = [  # of the path /api/variables/
    b"/api/variables/",
    b"/api/%76ariables/",
    b"/%61pi/variables/",
    b"/api/%76%61%72iables/",
    b"/api/variables",
    b"/api/variables//",
    b"//api/variables/",
    b"/api//variables/",
    b"/api/./variables/",
    b"/./api/variables/",
    b"/api/x/../variables/",
    b"/api/health/../variables/",
    b"/api/variables/x/..",
    b"/api/variables/.",
    b"/api/variables/%2e",
    b"/api/%2e/variables/",
    b"/api/x/%2e%2e/variables/",
    b"/api/x/.%2e/variables/",
    b"/api/x%2f..%2fvariables/",
    b"/api%2fvariables/",
    b"/api/variables%2f",
    b"/api/variables%2F",
    b"/api/variables%252f",
    b"/api/%2576ariables/",
    b"/api\\variables\\",
    b"/api/variables%5c",
    b"/api/variables;/",
    b"/api/variables/;x=1",
    b"/api;x/variables/",
    b"/API/variables/",
    b"/api/Variables/",
    b"/api/VARIABLES/",
    b"/api/variables/?x=1",
    b"/api/variables/?/api/health",
    b"/api/variables/?",
    b"/api/health?/../variables/",
    b"/api/variables/filter?x=/api/variables/",
    b"/api/variables/#x",
    b"/api/variables/#/api/health",
    b"/api/health#/../variables/",
    b"/api/variables/%23",
    b"/api/variables/%3f",
    b"/api/variables/%00",
    b"/api/variables/%0a",
    b"/api/variables/%0d%0a",
    b"/api/variables%0a/",
    b"/api/variables/%20",
    b"/api/variables/ ",
    b"/api/variables/\t",
    b"/api/%c0%afvariables/",
    b"/api/v%c3%a1riables/",
    b"/api/%ef%bd%96ariables/",
    b"/api/variables%c2%a0/",
    b"/api/variables/%ff",
    b"/api/variables/%",
    b"/api/variables/%2",
    b"/api/variables/%zz",
    b"/api/variables/\xff",
    b"/api/api/variables/",
    b"/x/api/variables/",
    b"/v2/api/variables/",
    b"/api/static/../variables/",
    b"/api/static/%2e%2e/variables/",
    b"/variables/",
    b"api/variables/",
    b"*",
    b"http://127.0.0.1/api/variables/",
    b"http://other.example/api/variables/",
    b"http:///api/variables/",
    b"//127.0.0.1/api/variables/",
]
METHODS = [b"POST", b"post", b"Post", b"PUT", b"PATCH", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PROPFIND", b"X-POST"]


def wrote(server: Server, method: bytes, target: bytes, *headers: bytes) -> bool:
    """Say whether the server made a variable when it was asked in this way."""
    name = f"written_{next(NUMBERS)}"
    ask(server, method, target, json.dumps({"name": name, "value": "x"}).encode(), *headers)
    return ask(server, b"GET", f"/api/variables/name/{name}".encode()).status == 200


@pytest.mark.parametrize("target", WRITINGS, ids=repr)
def test_row3_a_path_is_judged_as_what_the_server_executes(prefect_server: Server, target: bytes) -> None:
    route = judged(b"POST", target)
    executed = wrote(prefect_server, b"POST", target)
    if executed:  # then it is judged as that, or refused
        assert route is None or route.rule == "POST /api/variables/"
    else:
        assert route is None or route.rule != "POST /api/variables/"


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_row10_a_method_is_judged_as_what_the_server_executes(prefect_server: Server, method: bytes) -> None:
    route = judged(method, b"/api/variables/")
    assert wrote(prefect_server, method, b"/api/variables/") == (route is not None)


@pytest.mark.parametrize("header", [b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override"])
def test_row10_the_server_heeds_no_other_method_either(prefect_server: Server, header: bytes) -> None:
    assert not wrote(prefect_server, b"GET", b"/api/variables/", header + b": POST")
    assert wrote(prefect_server, b"POST", b"/api/variables/", header + b": GET")


@pytest.mark.parametrize(
    "alias", [b"X-Original-URL", b"X-Rewrite-URL", b"X-Original-URI", b"X-Forwarded-Uri", b"X-Forwarded-Prefix"]
)
def test_row8_the_server_heeds_no_other_path_either(prefect_server: Server, alias: bytes) -> None:
    assert not wrote(prefect_server, b"POST", b"/api/variables/count", alias + b": /api/variables/")


@pytest.mark.parametrize("target", [b"/api/admin/settings/", b"/api/flows/filter/", b"/api/variables", b"/api/logs"])
def test_a_slash_too_many_or_too_few_is_no_route_and_the_server_executes_none(
    prefect_server: Server, target: bytes
) -> None:
    for method in (b"GET", b"POST"):
        assert judged(method, target) is None
        assert ask(prefect_server, method, target).status in {307, 404, 405}


@pytest.mark.parametrize("route", [one for one in known_routes() if one.method == "WS"], ids=lambda route: route.path)
def test_a_websockets_path_opens_a_websocket_and_nothing_else(prefect_server: Server, route: Route) -> None:
    path = concrete(route).path
    assert handshake(prefect_server.port, "127.0.0.1", path).status == 101
    for method in (b"GET", b"HEAD"):
        assert ask(prefect_server, method, path.encode()).status in {404, 405}


def test_a_websocket_on_any_other_path_is_refused_by_the_server(prefect_server: Server) -> None:
    for path in ("/", "/v2/", "/api/health", "/api/events", "/api/events/in/", "/api/events/filter"):
        assert handshake(prefect_server.port, "127.0.0.1", path).status in {307, 403, 404}


def test_head_executes_what_get_does_or_nothing(prefect_server: Server) -> None:
    for path in (b"/api/health", b"/api/docs", b"/docs", b"/ui-settings", b"/"):
        assert judged(b"HEAD", path) is judged(b"GET", path)
        assert ask(prefect_server, b"HEAD", path).status in {200, 307, 405}


@pytest.mark.parametrize("page", ["", "v2/", "docs", "redoc", *PAGE_NAMES])
def test_pages_are_pages(prefect_server: Server, page: str) -> None:
    path = f"/{page}".encode()
    answer = ask(prefect_server, b"GET", path, b"", b"Accept: text/html")
    assert judged(b"GET", path) is not None
    assert answer.status in {200, 307}
    assert answer.status == 307 or answer.content_type.startswith("text/html")


def test_each_file_of_both_uis_is_in_the_table(prefect_server: Server) -> None:
    site_packages = next(require(prefect_part(SERVER_VERSION)).parents[1].glob("lib/python*/site-packages"))
    for folder, base in (("ui", ""), ("ui-v2", "/v2")):
        root = site_packages / "prefect" / "server" / folder
        files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
        assert len(files) > 20
        missing = [name for name in files if judged(b"GET", f"{base}/{name}".encode()) is None]
        assert missing == []
        assert ask(prefect_server, b"GET", f"{base}/{Path(files[0]).as_posix()}".encode()).status == 200
