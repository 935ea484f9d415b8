"""One table of requests, the same outcome at every proxy, with the configuration that is shipped for it.

Where a proxy cannot be made to do the same, the row says what it does instead, and why.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_plus, urlencode

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.certificates import write_certificate
from tests.support.claimed_headers import HOW, IDENTITY, WHERE_FROM, WHO
from tests.support.cookie_client import SAME_ORIGIN, CookieClient
from tests.support.credential_forms import CUSTOM_HEADERS
from tests.support.echo import Received
from tests.support.machine_socket import SOCKETS
from tests.support.parts import SERVER_VERSION
from tests.support.prefect import FLOWS, Client, Server
from tests.support.proxies import PROXIES, Certificate, Proxy, start
from tests.support.proxy_sites import AUDIENCE, ONLOOKER, OWN_ISSUER, SESSION, ProxySites
from tests.support.raw_http import Answer, basic, bearer, handshake, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, USER, Site
from tests.support.steady_load import SteadyLoad
from tests.support.upstream import PARTS_OF_STREAM
from tests.support.waiting import wait_until

EVIL = "mallory"
PAGE = ("Accept", "text/html,application/xhtml+xml")
NAVIGATION = [PAGE, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Site", "none")]
XHR = [("Accept", "application/json"), ("Sec-Fetch-Mode", "cors"), SAME_ORIGIN]

Header = tuple[str, str]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxySites]:
    with ExitStack() as stack:
        yield ProxySites(tmp_path_factory.mktemp("proxies") / "sites", stack)


@pytest.fixture(params=list(PROXIES))
def proxy(request: pytest.FixtureRequest) -> Proxy:
    return PROXIES[request.param]


# the table ----------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a caller gets; a `code` stands in the JSON that every refusal of the service is."""

    status: int
    code: str = ""


class Instead(NamedTuple):
    """What some proxies do instead, and why they cannot do as the others."""

    proxies: str
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Row:
    """One request, and its outcome."""

    name: str
    host: str
    outcome: Outcome
    path: str = "/api/flows/x?y=%2F"
    method: str = "GET"
    headers: Callable[[ProxySites], list[Header]] = field(default=lambda _: [])
    body: int = 0
    site: str = "well"
    instead: tuple[Instead, ...] = ()

    def expected(self, proxy: Proxy) -> Outcome:
        """Return the outcome at this proxy."""
        found = (one.outcome for one in self.instead if proxy.name in one.proxies.split())
        return next(found, self.outcome)


def user(_: ProxySites) -> list[Header]:
    return [basic(USER, PASSWORD)]


def jwt(sites: ProxySites) -> list[Header]:
    return [bearer(sites.issuer.mint(aud=AUDIENCE))]


def always(*headers: Header) -> Callable[[ProxySites], list[Header]]:
    return lambda _: list(headers)


OK = Outcome(200)
NOT_FOUND = Outcome(404)
NEEDED = Outcome(401, "credential_required")
INVALID = Outcome(401, "invalid_token")
MALFORMED = Outcome(400, "invalid_request")
DETOURS = ["/_auth/..{}", "/_auth/%2e%2e{}", "/_auth/..%2f{}", "/_auth/..;{}", "//_auth/../{}"]
RELAY = "/relay/api/api/events/in"
# Of the pages, machines reach none, and of what concerns tokens, only that.
NO_TOKENS = ("/_auth", "/_auth/", "/_auth/login", "/_auth/token/", "/_auth/.well-known/", "/.well-known/jwks.json")
PUBLISHED = (
    "/_auth/.well-known/openid-configuration",
    "/_auth/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/_auth",
)
TO_TOKENS = ("{}/../_auth/token", "{}/%2e%2e/_auth/token", "/_auth/token/..{}", "/_auth/token/%2e%2e/..{}")
OTHER_METHODS = ("HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

TABLE = [
    # who
    Row("nobody", MACHINES, NEEDED),
    Row("a wrong password", MACHINES, INVALID, headers=always(basic(USER, PASSWORD + "!"))),
    Row("an unknown user", MACHINES, INVALID, headers=always(basic("nobody", PASSWORD))),
    Row("rubbish", MACHINES, INVALID, headers=always(bearer("rubbish"))),
    Row("a token for another service", MACHINES, INVALID, headers=lambda w: [bearer(w.issuer.mint(aud="other"))]),
    Row("user and password", MACHINES, OK, headers=user),
    Row("a JWT", MACHINES, OK, headers=jwt),
    Row("a JWT as password", MACHINES, OK, headers=lambda w: [basic("jwt", w.issuer.mint(aud=AUDIENCE))]),
    Row("another scheme", MACHINES, MALFORMED, headers=always(("Authorization", "Digest x"))),
    Row("base64 of nothing", MACHINES, MALFORMED, headers=always(("Authorization", "Basic !"))),
    Row(
        "two credentials",
        MACHINES,
        MALFORMED,
        headers=lambda w: [*user(w), *jwt(w)],
        instead=(Instead("nginx nginx-of-debian", Outcome(400), "refuses it by itself, with a page of its own"),),
    ),
    # how
    *(Row(f"{method} by nobody", MACHINES, NEEDED, method=method) for method in OTHER_METHODS),
    *(Row(f"{method} with a credential", MACHINES, OK, method=method, headers=user) for method in OTHER_METHODS),
    Row(
        "a method of no API",
        MACHINES,
        MALFORMED,
        method="BREW",
        headers=user,
        instead=(Instead("envoy", Outcome(400), "knows the standard's methods alone, and refuses by itself"),),
    ),
    Row("100 kB by nobody", MACHINES, NEEDED, method="POST", body=100_000),
    # where
    *(
        Row(f"{path} of the machines' host", MACHINES, NOT_FOUND, path=path, headers=user)
        for path in ("/", "/v2/", "/docs", "/apix", "/forward-auth/api", "/metrics", "/-/api", RELAY, *NO_TOKENS)
    ),
    *(
        Row(f"{path} of the people's host", PEOPLE, NEEDED, path=path)
        for path in ("/api/flows/x", "/docs", "/_auth", "/forward-auth/ui", "/ext-authz/ui/x", "/metrics", "/readyz")
    ),
    Row("the API itself", MACHINES, OK, path="/api", headers=user),
    Row("another host", "other.example", NOT_FOUND, headers=user),
    # not decided
    Row(
        "a JWT while its issuer is out of reach",
        MACHINES,
        Outcome(503, "issuer_unavailable"),
        headers=lambda w: [bearer(w.silent.mint(aud=AUDIENCE))],
        site="cold",
        instead=(Instead("envoy", Outcome(503, "internal_error"), "drops what a 5xx of the gate says"),),
    ),
    Row(
        "no Prefect",
        MACHINES,
        Outcome(502),
        headers=user,
        site="cold",
        instead=(Instead("envoy", Outcome(503), "says so of an upstream that cannot be reached"),),
    ),
    # people
    Row("a machine's credential at the people's host", PEOPLE, NEEDED, headers=user),
    Row("an XHR without a session", PEOPLE, NEEDED, headers=always(*XHR)),
    Row("a session of no key", PEOPLE, Outcome(401, "session_ended"), headers=always(("Cookie", f"{SESSION}=1.x"))),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_table(row: Row, proxy: Proxy, sites: ProxySites) -> None:
    port, received = sites.port(proxy, row.site), len(sites.upstream.received)

    answer = send(port, row.host, row.path, row.headers(sites), method=row.method, body=b"x" * row.body)

    expected = row.expected(proxy)
    assert answer.status == expected.status, answer
    if expected.code and row.method != "HEAD":
        assert_refusal(answer, expected.code)
    if answer.status == 503:
        assert int(answer.header("Retry-After") or 0) > 0 or not expected.code
    if answer.status == 401:
        schemes = [word for value in answer.values("WWW-Authenticate") for word in re.findall(r"(\w+) realm", value)]
        told = ["Bearer"] if proxy.name == "nginx-of-debian" else ["Bearer", "Basic"]  # before 1.23, one of several
        assert schemes == (told if row.host == MACHINES else [])
    if answer.status == 200:
        (request,) = sites.upstream.received[received:]
        assert (request.method, request.path) == (row.method, row.path)
        assert request.values("Authorization") == request.values("Proxy-Authorization") == []
        assert request.values("X-Auth-Request-User") == [USER if row.headers is user else "svc"]
    else:
        assert len(sites.upstream.received) == received, "nothing reached Prefect"


def assert_refusal(answer: Answer, code: str) -> None:
    body = json.loads(answer.body)
    assert (body["code"], set(body)) == (code, {"code", "detail", "request_id"})
    assert body["detail"]
    assert body["request_id"]
    assert (answer.header("Content-Type") or "").startswith("application/json")
    assert answer.values("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("way", ["basic", "post"])
def test_a_machine_obtains_a_token_at_the_machines_host(proxy: Proxy, sites: ProxySites, way: str) -> None:
    """Its secret is sent in either way."""
    name, port, received = f"{proxy.name}-{way}", sites.port(proxy, "well"), len(sites.upstream.received)
    secret = sites.new_machine(name)
    form = {"grant_type": "client_credentials"} | (
        {"client_id": name, "client_secret": secret} if way == "post" else {}
    )
    headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Cookie", "a=b")]
    sent = [basic(quote_plus(name), secret)] if way == "basic" else []
    answer = send(port, MACHINES, "/_auth/token", [*headers, *sent], method="POST", body=urlencode(form).encode())
    assert answer.status == 200, answer
    assert answer.values("Cache-Control") == ["no-store"]
    token = json.loads(answer.body)["access_token"]
    assert len(sites.upstream.received) == received
    accepted = send(port, MACHINES, "/api/flows/x", [bearer(token)])
    assert accepted.status == 200, accepted
    assert sites.upstream.received[received].values("X-Auth-Request-User") == [name]
    refused = send(port, MACHINES, "/_auth/token", [*headers, basic(name, secret + "x")], method="POST", body=b"x=1")
    assert (refused.status, json.loads(refused.body)["error"]) == (400, "invalid_request")
    assert send(port, MACHINES, "/_auth/token").status == 405


def test_others_find_the_keys_at_the_machines_host(proxy: Proxy, sites: ProxySites) -> None:
    port = sites.port(proxy, "well")
    for path in PUBLISHED:
        answer = send(port, MACHINES, path)
        assert answer.status == 200, answer
        assert json.loads(answer.body)["issuer"] == OWN_ISSUER
        assert answer.values("Cache-Control") == ["public, max-age=300"]
    keys = json.loads(send(port, MACHINES, "/_auth/.well-known/jwks.json").body)["keys"]
    assert [(key["kty"], "d" in key) for key in keys] == [("OKP", False)]


@pytest.mark.parametrize("detour", TO_TOKENS)
@pytest.mark.parametrize("path", ["/forward-auth/api", "/ext-authz/api", "/relay/api", "/metrics", "/_auth/login"])
def test_no_detour_by_the_tokens_reaches_what_is_inside(
    path: str, detour: str, proxy: Proxy, sites: ProxySites
) -> None:
    answer = send(sites.port(proxy, "well"), MACHINES, detour.format(path))
    inside = answer.status == 200 or b"forward_auth_" in answer.body or b"text/html" in answer.body
    assert not inside, answer
    assert answer.status in {400, 401, 404, 405}, answer


def test_without_the_service_nothing_passes(proxy: Proxy, sites: ProxySites) -> None:
    """Some proxies wait for it before they answer."""
    port, received = sites.port(proxy, "down"), len(sites.upstream.received)
    asks = [
        partial(send, port, MACHINES, "/api/x", user(sites)),
        partial(handshake, port, MACHINES, SOCKETS[0]),
        partial(send, port, PEOPLE, "/runs"),
        partial(send, port, PEOPLE, "/_auth/login"),
        partial(send, port, MACHINES, "/_auth/token", method="POST"),
    ]
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [one.result() for one in [pool.submit(ask) for ask in asks]]
    for answer in answers:
        assert answer.status == 503, answer
        assert int(answer.header("Retry-After") or 0) > 0
        if proxy.name != "traefik":  # which has no body of its own
            assert_refusal(answer, "internal_error")
    assert len(sites.upstream.received) == received


def test_a_service_that_restarts(proxy: Proxy, sites: ProxySites, tmp_path: Path) -> None:
    """Most proxies wait for it. Nginx answers 503, after which Prefect's clients try again."""
    site = Site(tmp_path, sites.upstream.url, sites.by_state["well"].settings)
    site.start_service()
    port, process = start(proxy, site)
    name, value = basic(USER, PASSWORD)
    head = f"POST /api/x HTTP/1.1\r\nHost: {MACHINES}\r\nContent-Length: 0\r\n{name}: {value}"
    load = SteadyLoad(port, head, rate=20)
    try:
        with process, load:
            wait_until(lambda: len(load.answers.seconds) >= 20, timeout=20, what="answers")
            site.service.kill()
            sent = load.sent
            wait_until(lambda: load.sent >= sent + 20, timeout=20, what="requests without the service")
            site.start_service()
            answered = len(load.answers.seconds)
            wait_until(lambda: len(load.answers.seconds) >= answered + 40, timeout=20, what="answers again")
    finally:
        site.service.stop()
    told = {failure.partition(" at ")[0] for failure in load.answers.failures}
    assert told == ({"status 503"} if "nginx" in proxy.name else set()), load.answers


def test_too_many_passwords_at_once(proxy: Proxy, sites: ProxySites) -> None:
    port = sites.port(proxy, "cold")
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(send, port, MACHINES, "/api/x", [basic(USER, f"wrong {number}")]) for number in range(8)]
        answers = [one.result() for one in tries]
    assert {answer.status for answer in answers} <= {401, 429}
    throttled = [answer for answer in answers if answer.status == 429]
    assert throttled
    assert_refusal(throttled[0], "throttled")
    assert int(throttled[0].header("Retry-After") or 0) > 0


# people -------------------------------------------------------------------------------------------------------


def test_a_page_leads_to_sign_in_and_back(proxy: Proxy, sites: ProxySites) -> None:
    answer = send(sites.port(proxy, "well"), PEOPLE, "/runs?x=1&y=%20", NAVIGATION)
    assert answer.status == 302
    assert answer.header("Location") == "/_auth/login?return_to=%2Fruns%3Fx%3D1%26y%3D%2520"
    assert answer.values("Cache-Control") == ["no-store"]
    # The UI asks for its settings before it shows anything.
    settings = send(sites.port(proxy, "well"), PEOPLE, "/ui-settings", XHR)
    assert (settings.status, settings.header("Location")) == (302, "/_auth/ui-settings")


def test_a_session_passes_and_ends_at_the_proxy(proxy: Proxy, sites: ProxySites) -> None:
    person = CookieClient(sites.port(proxy, "well"))
    person.cookies = {"theme": "dark", **sites.signed_in(proxy).cookies, "other": "1"}
    stale = ("Authorization", "Basic c3RhbGU6c3RhbGU=")
    for method, path in (("GET", "/runs"), ("GET", "/api/flows/x"), ("POST", "/api/flows/filter")):
        answer = person.send(path, [*XHR, stale], method=method)
        assert answer.status == 200, answer
        request = Received.from_json(json.loads(answer.body))
        assert request.values("Cookie") == ["theme=dark; other=1"]
        assert request.values("Authorization") == []
        assert request.values("X-Auth-Request-User") == [USER]
        assert request.values("Host") == [f"{PEOPLE}:{person.port}"]
        assert answer.values("Set-Cookie") == ["theme=dark; Path=/"], "Prefect's own, and nothing more"


def test_a_session_alone_is_no_cookie_at_all(proxy: Proxy, sites: ProxySites) -> None:
    person = sites.signed_in(proxy)
    request = Received.from_json(json.loads(send(person.port, PEOPLE, "/runs", [person.cookie]).body))
    assert request.values("Cookie") in ([], [""])


def test_another_site_cannot_write_with_a_session(proxy: Proxy, sites: ProxySites) -> None:
    person = sites.signed_in(proxy)
    for foreign in (("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")):
        answer = person.send("/api/flows/x", [foreign], method="DELETE")
        assert answer.status == 403
        assert_refusal(answer, "cross_origin")
    own = ("Origin", f"http://{PEOPLE}:{person.port}")
    assert person.send("/api/flows/x", [own], method="DELETE").status == 200


def test_another_site_cannot_write_with_a_password_that_a_browser_remembers(proxy: Proxy, sites: ProxySites) -> None:
    port, password = sites.port(proxy, "well"), basic(USER, PASSWORD)
    for foreign in (("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")):
        answer = send(port, MACHINES, "/api/flows/x", [password, foreign], method="DELETE")
        assert answer.status == 403
        assert_refusal(answer, "cross_origin")
    assert send(port, MACHINES, "/api/flows/x", [password], method="DELETE").status == 200


def test_a_browser_is_not_made_to_ask_for_a_password(proxy: Proxy, sites: ProxySites) -> None:
    port = sites.port(proxy, "well")
    for browser in ([PAGE], [("Accept", "*/*"), ("Sec-Fetch-Mode", "cors")]):
        answer = send(port, MACHINES, "/api/flows/x", browser)
        assert answer.status == 401
        assert [one.split()[0] for one in answer.values("WWW-Authenticate")] == ["Bearer"]


@pytest.mark.parametrize(
    "groups",
    [pytest.param(0, id="one-cookie"), pytest.param(400, id="several-cookies")],
)
def test_a_renewed_session_reaches_the_browser(groups: int, proxy: Proxy, sites: ProxySites) -> None:
    if groups and proxy.name == "nginx-of-debian":
        pytest.xfail("before 1.23 Nginx knows the first Set-Cookie alone")
    person = CookieClient(sites.port(proxy, "well"))
    person.keep(sites.session_as(proxy, seen=1_000, groups=groups))
    before = dict(person.cookies)
    assert len(before) == (3 if groups else 1)

    answer = person.send("/api/flows/x", XHR)

    assert answer.status == 200, answer
    assert Received.from_json(json.loads(answer.body)).values("Cookie") in ([], [""])
    renewed = answer.values("Set-Cookie")
    assert renewed.count("theme=dark; Path=/") == 1
    assert len(renewed) == 1 + len(before)
    assert all("HttpOnly" in one and "Secure" in one for one in renewed if one.startswith(SESSION))
    person.cookies.pop("theme")
    assert person.cookies.keys() == before.keys()
    assert person.cookies != before
    again = person.send("/api/flows/x", XHR)
    assert (again.status, again.values("Set-Cookie")) == (200, ["theme=dark; Path=/"])


def test_a_page_that_is_refused_is_a_page(proxy: Proxy, sites: ProxySites) -> None:
    """A WebSocket's address, opened as a page by a link from elsewhere: what acts takes more than a session."""
    answer = sites.signed_in(proxy).send("/api/events/in", NAVIGATION)
    assert answer.status == 403
    assert (answer.header("Content-Type") or "").startswith("text/html")
    assert b"This page was refused" in answer.body
    assert "default-src 'none'" in (answer.header("Content-Security-Policy") or "")


@pytest.mark.parametrize("path", ["/_auth", "/_auth/"])
def test_the_address_of_the_pages_leads_to_who_one_is(path: str, proxy: Proxy, sites: ProxySites) -> None:
    visitor = sites.signed_in(proxy)
    for answer in (visitor.send(path, NAVIGATION), send(visitor.port, PEOPLE, path, NAVIGATION)):
        assert answer.status in {302, 303}
        assert answer.header("Location") == "/_auth/me"


def test_an_unknown_page_is_a_page(proxy: Proxy, sites: ProxySites) -> None:
    answer = sites.signed_in(proxy).send("/_auth/nix", NAVIGATION)
    assert answer.status == 404
    assert b"There is nothing here" in answer.body


@pytest.mark.parametrize(
    ("path", "headers", "storage"),
    [
        ("/runs", [PAGE], "no-store"),
        ("/api/flows/x", XHR, "no-store"),
        ("/assets/index-abc.js", [("Accept", "*/*")], "private"),
        ("/v2/assets/index-abc.js", [], "private"),
        ("/assets/index-abc.js", [PAGE], "no-store"),
        ("/assets/a/b.js", [], "no-store"),
    ],
)
def test_what_browsers_keep(path: str, headers: list[Header], storage: str, proxy: Proxy, sites: ProxySites) -> None:
    answer = sites.signed_in(proxy).send(path, headers)
    assert (answer.status, answer.values("Cache-Control")) == (200, [storage])


@pytest.mark.parametrize("detour", DETOURS)
@pytest.mark.parametrize("path", ["/forward-auth/api", "/metrics", "/healthz"])
def test_no_detour_through_the_pages(detour: str, path: str, proxy: Proxy, sites: ProxySites) -> None:
    answer = send(sites.port(proxy, "well"), PEOPLE, detour.format(path), [basic(USER, PASSWORD)])
    assert answer.status in {400, 401, 404}, answer
    assert b"forward_auth_" not in answer.body
    assert b"alive" not in answer.body


# headers ------------------------------------------------------------------------------------------------------

ALIASES = [name.replace("-", instead) for name in IDENTITY for instead in "_."] + [
    "X-Auth_Request-User",
    "x.auth-request_user",
]
CLAIMS = [  # in parts, because Envoy takes a hundred headers
    pytest.param(WHO, id="who"),
    pytest.param(WHERE_FROM, id="where-from"),
    pytest.param(HOW, id="how"),
    pytest.param((*IDENTITY, *ALIASES, *(alias.lower() for alias in ALIASES)), id="other-spellings"),
]


def via(how: str, port: int, host: str, headers: list[Header]) -> Received:
    """Send a request, plain or as a WebSocket, and return what the upstream received."""
    if how == "http":
        return Received.from_json(json.loads(send(port, host, "/api/flows/x", headers).body))
    url, protocols = f"ws://{host}:{port}/api/events/in", [Subprotocol("prefect")]
    with connect(url, additional_headers=headers, subprotocols=protocols, proxy=None) as socket_:
        assert socket_.subprotocol == "prefect"
        received = Received.from_json(json.loads(socket_.recv(10)))
        socket_.send("again")
        assert socket_.recv(10) == "again"
    return received


@pytest.mark.parametrize("how", ["http", "websocket"])
@pytest.mark.parametrize("host", [MACHINES, PEOPLE], ids=["machines", "people"])
@pytest.mark.parametrize("names", CLAIMS)
def test_what_a_caller_claims_goes_no_further(
    names: Sequence[str], how: str, host: str, proxy: Proxy, sites: ProxySites
) -> None:
    person = sites.signed_in(proxy)
    credentials = [person.cookie, *([basic(USER, PASSWORD)] if host == MACHINES else [])]
    claims = [(name, EVIL) for name in names]
    more = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"), ("Proxy-Authorization", "Basic eA==")]

    request = via(how, person.port, host, [*credentials, SAME_ORIGIN, *claims, *more])

    assert [name for name, value in request.headers if EVIL in value] == []
    assert request.values("X-Auth-Request-User") == [USER]
    assert request.values("X-Auth-Request-Email") in ([], [""]), "a user of the file has no address"
    assert len(request.values("X-Forwarded-For")) == 1
    # Envoy names one of the machine's own addresses for what comes from the machine itself.
    assert request.values("X-Forwarded-For") == ["127.0.0.1"] or proxy.name == "envoy"
    assert "203.0.113.9" not in json.dumps(request.headers)
    assert request.values("X-Forwarded-Proto") in (["http"], ["ws"])
    assert request.values("Authorization") == request.values("Proxy-Authorization") == []
    assert host == PEOPLE or request.values("Cookie") in ([], [""]), "machines bring no cookie at all"
    assert SESSION not in json.dumps(request.headers)
    assert PASSWORD not in json.dumps(request.headers)


def test_a_made_up_header_of_the_family(proxy: Proxy, sites: ProxySites) -> None:
    request = via(
        "http", sites.port(proxy, "well"), MACHINES, [basic(USER, PASSWORD), ("X-Auth-Request-Made-Up", EVIL)]
    )
    # Nginx deletes headers by name alone; Prefect reads none of them.
    assert request.values("X-Auth-Request-Made-Up") == ([EVIL] if "nginx" in proxy.name else [])


@pytest.mark.parametrize("named", ["X-Forwarded-Uri", "X-Forwarded-Host", "X-Auth-Request-User", "Authorization"])
def test_hop_by_hop_trick_drops_no_header_of_ours(named: str, proxy: Proxy, sites: ProxySites) -> None:
    """`Connection: X-Forwarded-Uri` asks a proxy to drop that header; it must not drop the ones that it adds."""
    headers = [basic(USER, PASSWORD), ("X-Auth-Request-User", EVIL), ("Connection", f"close, {named}")]
    received = len(sites.upstream.received)
    answer = send(sites.port(proxy, "well"), MACHINES, "/api/flows/x", headers)
    if answer.status == 200:
        request = Received.from_json(json.loads(answer.body))
        assert (request.path, request.values("X-Auth-Request-User")) == ("/api/flows/x", [USER])
        assert request.values("Authorization") == []
    else:
        assert answer.status in {400, 401}, answer
        assert len(sites.upstream.received) == received


# paths --------------------------------------------------------------------------------------------------------

# Traefik and Envoy tidy a path up before anybody reads it; Nginx and Caddy pass it on as it came, and the gate refuses.
TIDY = {"traefik", "envoy"}


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("/api/a/../flows", "/api/flows"),
        ("/api//flows", "/api/flows"),
        ("/api/./flows?x=../y", "/api/flows?x=../y"),
        ("/x/../api/flows", "/api/flows"),
    ],
)
def test_gate_and_upstream_see_one_path(sent: str, arrives: str, proxy: Proxy, sites: ProxySites) -> None:
    received = len(sites.upstream.received)
    answer = send(sites.port(proxy, "well"), MACHINES, sent, [basic(USER, PASSWORD)])
    if proxy.name in TIDY:
        assert [request.path for request in sites.upstream.received[received:]] == [arrives]
    else:
        assert answer.status == 400
        assert_refusal(answer, "invalid_request")
        assert len(sites.upstream.received) == received


def test_an_escaped_letter_is_that_letter(proxy: Proxy, sites: ProxySites) -> None:
    answer = send(sites.port(proxy, "well"), MACHINES, "/api/%66lows", [basic(USER, PASSWORD)])
    assert json.loads(answer.body)["path"] in {"/api/flows", "/api/%66lows"}


@pytest.mark.parametrize(
    "path",
    ["/api/a%2fb", "/api/a%5cb", "/api/a%00b", "/api/../x", "/api/..%2fx", "/api/a;b", "/api/%2e%2e/x", "/api/a%252fb"],
)
def test_ambiguous_paths_go_nowhere(path: str, proxy: Proxy, sites: ProxySites) -> None:
    received = len(sites.upstream.received)
    answer = send(sites.port(proxy, "well"), MACHINES, path, [basic(USER, PASSWORD)])
    assert answer.status in {400, 404}, answer
    assert len(sites.upstream.received) == received


# what travels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [MACHINES, PEOPLE], ids=["machines", "people"])
def test_websockets(host: str, proxy: Proxy, sites: ProxySites) -> None:
    person = sites.signed_in(proxy)
    good = basic(USER, PASSWORD) if host == MACHINES else person.cookie
    bad = bearer("rubbish") if host == MACHINES else ("Cookie", f"{SESSION}=1.x")
    assert via("websocket", person.port, host, [good, SAME_ORIGIN]).path == "/api/events/in"
    received = len(sites.upstream.received)
    for headers in ([], [bad], [bad, SAME_ORIGIN]):
        if host == MACHINES and not headers:
            continue  # the relay's, below
        answer = handshake(person.port, host, "/api/events/in", headers)
        assert answer.status == 401
        assert_refusal(answer, json.loads(answer.body)["code"])
        with pytest.raises(InvalidStatus):
            via("websocket", person.port, host, headers)
    assert len(sites.upstream.received) == received


@contextmanager
def opened(port: int, path: str, token: str, headers: Sequence[Header] = ()) -> Iterator[ClientConnection]:
    """Open a WebSocket as Prefect's clients do, with a token in the first message."""
    url, protocols = f"ws://{MACHINES}:{port}{path}", [Subprotocol("prefect")]
    with connect(url, additional_headers=headers, subprotocols=protocols, proxy=None) as socket_:
        socket_.send(json.dumps({"type": "auth", "token": token}))
        yield socket_


def relayed(request: Received, sites: ProxySites) -> bool:
    """Tell a request of the service from a request of the proxy, which keeps the caller's Host."""
    return request.values("Host") == [f"127.0.0.1:{sites.upstream.port}"]


@pytest.mark.parametrize("path", SOCKETS)
def test_a_token_in_the_first_message_opens_a_websocket(path: str, proxy: Proxy, sites: ProxySites) -> None:
    claims = [*((name, EVIL) for name in IDENTITY), ("X-Forwarded-For", "203.0.113.9"), ("Cookie", "theme=dark")]
    with opened(sites.port(proxy, "well"), path, f"{USER}:{PASSWORD}", claims) as socket_:
        request = Received.from_json(json.loads(socket_.recv(10)))
        assert json.loads(socket_.recv(10)) == {"type": "auth", "token": None}
        socket_.send("again")
        assert socket_.recv(10) == "again"
    assert (request.path, request.values("X-Auth-Request-User")) == (path, [USER])
    assert relayed(request, sites)
    assert request.values("X-Forwarded-For") == ["127.0.0.1"] or proxy.name == "envoy"
    assert EVIL not in json.dumps(request.headers)
    assert "203.0.113.9" not in json.dumps(request.headers)
    assert request.values("Authorization") == request.values("Cookie") == []


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param("", "No credential on this WebSocket", id="none"),
        pytest.param(f"{USER}:wrong", "The user name or the password is wrong", id="wrong"),
    ],
)
def test_a_websocket_without_a_good_token_is_closed(token: str, reason: str, proxy: Proxy, sites: ProxySites) -> None:
    received = len(sites.upstream.received)
    with opened(sites.port(proxy, "well"), SOCKETS[0], token) as socket_, pytest.raises(ConnectionClosed):
        socket_.recv(10)
    assert socket_.close_code == 1008
    assert (socket_.close_reason or "").startswith(reason)
    assert len(sites.upstream.received) == received


@pytest.mark.parametrize("path", SOCKETS)
def test_a_websocket_with_a_header_goes_to_prefect(path: str, proxy: Proxy, sites: ProxySites) -> None:
    """The site may have all WebSockets relayed."""
    for site in ("well", "relayed"):
        url = f"ws://{MACHINES}:{sites.port(proxy, site)}{path}"
        with connect(url, additional_headers=[basic(USER, PASSWORD)], proxy=None) as socket_:
            request = Received.from_json(json.loads(socket_.recv(10)))
        assert (request.path, request.values("X-Auth-Request-User")) == (path, [USER])
        assert request.values("Authorization") == []
        assert relayed(request, sites) == (site == "relayed")


@pytest.mark.parametrize("site", ["well", "relayed"])
def test_nothing_else_is_relayed(site: str, proxy: Proxy, sites: ProxySites) -> None:
    """A WebSocket that reached the relay without a header would be accepted."""
    port, received = sites.port(proxy, site), len(sites.upstream.received)
    for path in ("/api/new/feed", "/api/events", "/api/events/in/x", "/api/work_pools/a/b/workers/connect", "/api/x"):
        assert handshake(port, MACHINES, path).status == 401, path
    for path in SOCKETS:
        assert handshake(port, PEOPLE, path).status == 401, path
        assert send(port, MACHINES, path).status == 401, path
    for path in (RELAY, *(detour.format(RELAY) for detour in DETOURS)):
        for host in (MACHINES, PEOPLE):
            for headers in ([], [basic(USER, PASSWORD)]):
                assert handshake(port, host, path, headers).status in {400, 401, 404}, path
    assert len(sites.upstream.received) == received


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("/api/events/in", [], id="known"),
        pytest.param("/api/new/feed", [], id="unknown"),
        pytest.param("/v2/runs", [("Sec-Fetch-Mode", "websocket")], id="page"),
    ],
)
def test_another_site_opens_no_websocket_with_a_session(
    path: str, says: list[Header], proxy: Proxy, sites: ProxySites
) -> None:
    person = sites.signed_in(proxy)
    foreign = [person.cookie, *says, ("Origin", "https://evil.example")]
    assert handshake(person.port, PEOPLE, path, foreign).status == 403
    own = [person.cookie, *says, ("Origin", f"http://{PEOPLE}:{person.port}")]
    assert handshake(person.port, PEOPLE, path, own).status == 101


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_bodies(size: int, proxy: Proxy, sites: ProxySites) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    person = sites.signed_in(proxy)
    for host, credential in ((MACHINES, basic(USER, PASSWORD)), (PEOPLE, person.cookie)):
        answer = send(person.port, host, "/api/x", [credential, SAME_ORIGIN], method="POST", body=body)
        assert answer.status == 200, answer
        told = json.loads(answer.body)
        assert (told["length"], told["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


BLOCKS = "/api/block_documents/filter"
JUDGES_BODIES = {"traefik", "envoy"}  # the others cannot send the body along


@pytest.mark.parametrize(
    ("body", "judged"),
    [
        pytest.param(b'{"limit": 200}', 200, id="asks-for-none"),
        pytest.param(b'{"include_secrets": true}', 403, id="asks"),
        pytest.param(b"", 403, id="says-nothing"),
        pytest.param(b'{"limit": ', 403, id="cannot-be-read"),
    ],
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_secrets_that_a_body_asks_for(body: bytes, judged: int, framing: str, proxy: Proxy, sites: ProxySites) -> None:
    """A viewer reads blocks only where it is known that no secrets are asked for; with the right to them, anything."""
    port, chunked = sites.port(proxy, "well"), framing == "chunked"

    def ask(user: str) -> Answer:
        return send(port, MACHINES, BLOCKS, [basic(user, PASSWORD)], method="POST", body=body, chunked=chunked)

    seen = ask(ONLOOKER)
    assert seen.status == (judged if proxy.name in JUDGES_BODIES else 403), seen
    if seen.status == 200:
        assert json.loads(seen.body)["length"] == len(body)
    else:
        assert_refusal(seen, "insufficient_scope")
    assert ask(USER).status == 200


def test_a_body_that_is_judged_has_a_limit_and_its_answer_has_none(proxy: Proxy, sites: ProxySites) -> None:
    """No 401 for a long body: a worker would end. The limit is for this route alone."""
    port, padding = sites.port(proxy, "well"), 3_000_000

    def ask(path: str, size: int) -> Answer:
        headers = [basic(USER, PASSWORD), ("X-Padding", str(padding))]
        return send(port, MACHINES, path, headers, method="POST", body=b" " * size)

    longest = ask(BLOCKS, 65_536)
    assert longest.status == 200, longest
    assert len(longest.body) > padding
    assert ask(BLOCKS, 200_000).status == (413 if proxy.name in JUDGES_BODIES else 200)
    assert ask("/api/flows/filter", 200_000).status == 200


def test_an_answer_streams(proxy: Proxy, sites: ProxySites) -> None:
    """The second half is held back until the first has arrived."""
    sites.upstream.release.clear()
    name, value = basic(USER, PASSWORD)
    with socket.create_connection(("127.0.0.1", sites.port(proxy, "well")), 10) as connection:
        connection.sendall(f"GET /api/stream HTTP/1.1\r\nHost: {MACHINES}\r\n{name}: {value}\r\n\r\n".encode())
        first, second = PARTS_OF_STREAM
        seen = _read_until(connection, first)
        assert second not in seen
        sites.upstream.release.set()
        assert second in _read_until(connection, second)


def _read_until(connection: socket.socket, needle: bytes) -> bytes:
    seen = b""
    while needle not in seen:
        piece = connection.recv(4096)
        assert piece, seen
        seen += piece
    return seen


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 503])
def test_what_prefect_refuses_is_its_own_word(status: int, proxy: Proxy, sites: ProxySites) -> None:
    person = sites.signed_in(proxy)
    for host, credential in ((MACHINES, basic(USER, PASSWORD)), (PEOPLE, person.cookie)):
        answer = send(person.port, host, f"/api/status/{status}", [credential, SAME_ORIGIN])
        assert answer.status == status
        assert Received.from_json(json.loads(answer.body)).path == f"/api/status/{status}"


@pytest.mark.long
def test_a_flow_run_with_its_tasks(proxy: Proxy, sites: ProxySites, prefect_server: Server) -> None:
    """The real client at the real server: HTTP, and the WebSocket on which task runs travel."""
    well = sites.by_state["well"]
    site = Site(well.folder / proxy.name, prefect_server.url, {}, service_port=well.service_port)
    site.folder.mkdir()
    port, process = start(proxy, site)
    settings = CUSTOM_HEADERS.settings(f"http://{MACHINES}:{port}/api", sites.issuer.mint(aud=AUDIENCE))
    client = Client(SERVER_VERSION, site.folder / "client", settings)
    run = f"import proof; proof.proof.with_options(flow_run_name='{proxy.name}')('{proxy.name}', tasks=2)"
    with process, client.start("flow", "-c", f"import sys; sys.path.insert(0, '{FLOWS}'); {run}") as flow:
        assert flow.wait(timeout=90) == 0, flow.tail()
        (found,) = prefect_server.ask("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": [proxy.name]}}})
        assert found["state_type"] == "COMPLETED"
        wait_until(
            lambda: (
                [row["state_type"] for row in prefect_server.of_flow_run("task_runs", found["id"])]
                == ["COMPLETED", "COMPLETED"]
            ),
            timeout=20,
            what="both task runs",
            log=flow.tail,
        )
        assert [row["data"] for row in prefect_server.of_flow_run("artifacts", found["id"])] == [f"{proxy.name}: 6"]


# TLS ----------------------------------------------------------------------------------------------------------


def test_over_tls(proxy: Proxy, sites: ProxySites, tmp_path: Path) -> None:
    certificate = Certificate(*write_certificate(tmp_path))
    port, process = start(proxy, sites.by_state["well"], certificate)
    trust = ssl.create_default_context(cafile=certificate.chain)
    with process, httpx.Client(verify=trust) as client:

        def get(host: str, path: str, *headers: Header) -> httpx.Response:
            return client.get(f"https://{host}:{port}{path}", headers=dict(headers))

        def gated() -> bool:
            """Say whether routes and certificate are loaded, which Traefik does a moment after it listens."""
            try:
                return get(MACHINES, "/api/x").status_code == 401
            except httpx.TransportError:
                return False

        wait_until(gated, timeout=20, what="routes over TLS", log=process.tail)
        request = Received.from_json(get(MACHINES, "/api/x", basic(USER, PASSWORD)).json())
        assert request.values("X-Forwarded-Proto") == ["https"]
        assert request.values("X-Auth-Request-User") == [USER]
        page = get(PEOPLE, "/runs", PAGE)
        assert (page.status_code, page.headers["Location"]) == (302, "/_auth/login?return_to=%2Fruns")
        # The origin of a write is judged by scheme, host and port.
        cookie, write = sites.signed_in(proxy).cookie, f"https://{PEOPLE}:{port}/api/x"
        for origin, status in ((f"https://{PEOPLE}:{port}", 200), (f"http://{PEOPLE}:{port}", 403)):
            assert client.post(write, headers=dict([cookie, ("Origin", origin)])).status_code == status
