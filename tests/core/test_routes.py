"""The look-up of routes: as exact as the server's own, whatever way a path is written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import compile_path

from service.core.errors import MalformedRequest, UnusableError
from service.core.prefect.roles import BUILT_IN, Access, Granted, Lacking
from service.core.prefect.routes import Route, Routes, known_routes, parse_table, websocket_endpoint
from tests.support.forwarded_requests import ID, call, concrete, filled_in
from tests.support.refusals import refused

KNOWN = known_routes()
WORDS = sorted({segment for route in KNOWN for segment in route.path.split("/") if "{" not in segment})
ROUTES = Routes(KNOWN)
ACCESS = Access(BUILT_IN.values(), ROUTES)
SERVERS = [("GET" if route.method == "WS" else route.method, compile_path(route.path)[0], route) for route in KNOWN]


def as_the_server_matches(method: str, path: str) -> list[Route]:
    """Return what the router that Prefect is built on would match."""
    return [route for verb, pattern, route in SERVERS if verb == method and pattern.match(path)]


def test_no_two_routes_match_one_path() -> None:
    for route in KNOWN:
        request = concrete(route)
        assert as_the_server_matches(request.method, request.path) == [route]
        assert ROUTES.find(request.method, request.path) is route


paths = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from([ID, ID.replace("-", ""), ID.upper()]), st.text(max_size=6)),
    max_size=7,
).map(lambda segments: "/" + "/".join(segments))
spoiled = st.builds(
    lambda route, at, junk: filled_in(route.path)[:at] + junk + filled_in(route.path)[at:],
    st.sampled_from(KNOWN),
    st.integers(0, 80),
    st.text(alphabet="/.%;?#\\aA0-_ \u00e9\u2044", max_size=3),
)


@given(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]), paths | spoiled)
def test_the_table_finds_what_the_server_matches_and_all_else_is_the_admins(method: str, path: str) -> None:
    if "\n" in path:
        return  # never gets here: a path with control characters is refused
    found = ROUTES.find(method, path)
    assert as_the_server_matches(method, path) == ([] if found is None else [found])
    if found is None:
        request = call("GET", "/")._replace(method=method, path=path)
        opened = [role for role in BUILT_IN if isinstance(ACCESS.judge(request, (role,)), Granted)]
        assert opened == ["admin"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        pytest.param("GET", "/api/flow_runs/filter", id="row10-get-for-a-post"),
        pytest.param("DELETE", f"/api/work_pools/{ID}/queues", id="row10-delete-for-a-post"),
        pytest.param("OPTIONS", "/api/health", id="row10-options"),
        pytest.param("POST", "/api/health", id="row10-post-for-a-get"),
        pytest.param("GET", "/api/Health", id="row3-case"),
        pytest.param("GET", "/API/health", id="row3-case-of-the-base"),
        pytest.param("GET", "/api/health/", id="row3-trailing-slash"),
        pytest.param("POST", "/api/flows", id="row3-no-trailing-slash"),
        pytest.param("GET", "/api", id="base-alone"),
        pytest.param("GET", "/api/", id="base-with-slash"),
        pytest.param("GET", "/api/flows/not-a-uuid", id="not-a-uuid"),
        pytest.param("GET", f"/api/flows/{ID}0", id="more-than-a-uuid"),
        pytest.param("GET", f"/api/flows/%EF%BC%96{ID[1:]}", id="full-width-digit"),
        pytest.param("GET", "/api/work_pools/", id="empty-name"),
        pytest.param("GET", "/api/x/health", id="row9-suffix"),
        pytest.param("GET", "/x/api/health", id="row9-suffix-with-base"),
        pytest.param("GET", "/api/variables/name/x/health", id="row9-suffix-of-a-name"),
        pytest.param("GET", "/api/healthz", id="row9-prefix"),
        pytest.param("GET", "/prefect/api/flows/name/x", id="another-base"),
        pytest.param("GET", "/api2/flows/name/x", id="look-alike-base"),
        pytest.param("GET", "/grafana/", id="another-application"),
        pytest.param("GET", "/_auth/me", id="our-own-pages"),
        pytest.param("PUT", "/api/admin/storage%20", id="row3-trailing-blank"),
        pytest.param("GET", "/api/api/health", id="doubled-base"),
    ],
)
def test_what_is_written_otherwise_is_no_route(method: str, target: str) -> None:
    request = call(method, target)
    assert ROUTES.find(request.method, request.path) is None


@pytest.mark.parametrize(
    ("method", "target", "rule"),
    [
        pytest.param("GET", "/api/%68ealth", "GET /api/health", id="row3-needless-escape"),
        pytest.param("GET", "/%61pi/admin/settings", "GET /api/admin/settings", id="row3-escape-in-the-base"),
        pytest.param("PUT", "/api/%61dmin/storage", "PUT /api/admin/storage", id="row3-escape-of-a-write"),
        pytest.param("DELETE", f"/api/flows/{ID.upper()}", "DELETE /api/flows/{id}", id="uuid-in-capitals"),
        pytest.param("DELETE", f"/api/flows/{ID.replace('-', '')}", "DELETE /api/flows/{id}", id="uuid-without-dashes"),
        pytest.param("GET", "/api/work_pools/filter", "GET /api/work_pools/{work_pool}", id="a-pool-called-filter"),
        pytest.param("GET", "/api/work_pools/a%20b%3F", "GET /api/work_pools/{work_pool}", id="odd-name"),
        pytest.param("POST", "/api/variables/?x=/api/variables/filter", "POST /api/variables/", id="row2-query"),
        pytest.param("HEAD", "/api/flows/name/x", "GET /api/flows/name/{flow}", id="row10-head-is-get"),
        pytest.param("GET", "/api/events/in", "WS /api/events/in", id="a-websocket-looks-like-a-get"),
        pytest.param("GET", "/runs/flow-run/1", "GET /runs/{rest}", id="page"),
        pytest.param("GET", "/v2/", "GET /v2/{rest}", id="newer-ui"),
    ],
)
def test_what_the_server_reads_as_a_route_is_that_route(method: str, target: str, rule: str) -> None:
    request = call(method, target)
    route = ROUTES.find(request.method, request.path)
    assert route is not None
    assert route.rule == rule


@pytest.mark.parametrize(
    "target",
    [
        "/api/health/../admin/storage",
        "/api/health/%2e%2e/admin/storage",
        "/api/flows/filter/..%2fbulk_delete",
        "//api/flows/bulk_delete",
        "/api//flows/bulk_delete",
        "/api/flows;x=1/bulk_delete",
        "/api/flows\\bulk_delete",
        "/api/%2561dmin/storage",
        "/api/flows/bulk_delete%00",
        "/api/flows/%c0%afbulk_delete",
        "/api/flows/filter#/../bulk_delete",
        "/api/flows/bulk_delete%0a",
    ],
)
def test_rows3_and_4_what_has_two_readings_has_none(target: str) -> None:
    with pytest.raises(MalformedRequest):
        call("POST", target)


def test_the_bases_can_be_moved() -> None:
    routes = Routes(known_routes("/prefect/api", "/prefect"))
    rules = {
        "/prefect/api/health": "GET /prefect/api/health",
        "/prefect/ui-settings": "GET /prefect/ui-settings",
        "/prefect": "GET /prefect",
        "/prefect/": "GET /prefect/",
        "/prefect/runs/x": "GET /prefect/runs/{rest}",
        "/docs": "GET /docs",
    }
    for path, rule in rules.items():
        route = routes.find("GET", path)
        assert route is not None
        assert route.rule == rule
    assert routes.find("GET", "/api/health") is None
    assert routes.find("GET", "/runs") is None
    route = routes.find("POST", "/prefect/api/block_documents/filter")
    assert route is not None
    assert route.secrets_in_body


def test_what_a_body_may_ask_for_is_no_matter_of_what_a_route_is_said_to_need() -> None:
    for path in ("/api/block_documents/filter", "/api/block_documents/{x}", "/api/{x}/filter"):
        routes = Routes([*known_routes(), *parse_table(f"POST {path} any")])
        route = routes.find("POST", "/api/block_documents/filter")
        assert route is not None
        assert route.secrets_in_body
    access = Access(BUILT_IN.values(), Routes([*known_routes(), *parse_table("POST /api/block_documents/filter read")]))
    request = call("POST", "/api/block_documents/filter")
    assert isinstance(access.judge(request, ("viewer",), b"{}"), Granted)
    assert isinstance(access.judge(request, ("viewer",), b'{"include_secrets": true}'), Lacking)


@pytest.mark.parametrize("base", ["/v2/api", "/runs/api", "/assets/x", "/v2"])
def test_below_the_api_no_page_makes_up_for_a_route_that_is_not_known(base: str) -> None:
    routes = Routes(known_routes(base), base)
    for path in ("/brand/new", "/brand", "/", "/flows/filter"):
        assert routes.find("GET", base + path) is None
    assert routes.find("POST", f"{base}/flows/filter") is not None
    assert routes.find("GET", f"{base}/docs") is not None
    assert routes.find("GET", "/runs/x") is not None


@pytest.mark.parametrize(("api", "ui"), [("", ""), ("/", ""), ("api", ""), ("/api/", ""), ("/a{b}", ""), ("/x", "/x")])
def test_a_base_that_could_not_be_told_apart_is_refused(api: str, ui: str) -> None:
    with refused(UnusableError, "base path"):
        known_routes(api, ui)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("GET /x reed", "'reed' is not a capability: expected one of admin, any"),
        ("GET", "'GET' is not a route: expected METHOD /path"),
        ("GET /x", "'GET /x' is not a route"),
        ("GET x read", "'GET x read' is not a route"),
        ("GET /x/{a-b} read", "'{a-b}' is not a path parameter"),
        ("GET /x/{a:int}/y read", "'{a:int}' is not a path parameter"),
    ],
)
def test_a_line_that_is_no_row_is_refused(line: str, words: str) -> None:
    with refused(UnusableError, re.escape(words)):
        Routes(parse_table(line))


def test_each_row_has_a_method_a_path_and_what_opens_it() -> None:
    for route in KNOWN:
        assert route.method in {"GET", "POST", "PUT", "PATCH", "DELETE", "WS"}
        assert re.fullmatch(r"/[\w/{}:.-]*", route.path)
        assert route.capabilities
    assert len({route.shape for route in KNOWN}) == len(KNOWN)
    assert [route.rule for route in KNOWN if route.secrets_in_body] == ["POST /api/block_documents/filter"]


def test_a_route_finds_the_names_in_its_path() -> None:
    route = ROUTES.named("GET /api/deployments/name/{flow}/{deployment}")
    assert route is not None
    assert route.names_in("/api/deployments/name/a b/c") == {"flow": "a b", "deployment": "c"}


def test_websockets_are_named_from_a_closed_set() -> None:
    named = {websocket_endpoint(concrete(route).path) for route in KNOWN}
    assert named == {
        None,
        "events/in",
        "events/out",
        "logs/out",
        "task_runs/subscriptions/scheduled",
        "work_pools/{name}/workers/connect",
    }
    for path in ("/api/events/in/", "/api/work_pools/workers/connect", "/api/flows/in", "/in", ""):
        assert websocket_endpoint(path) is None
