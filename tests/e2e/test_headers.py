"""What the upstream is told about the caller comes from the service alone, and credentials end at the proxy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.claimed_headers import CLAIMED, IDENTITY
from tests.support.cookie_client import CookieClient
from tests.support.echo import Echo, Received
from tests.support.openid import OpenIDProvider
from tests.support.parts import TRAEFIK, require
from tests.support.raw_http import Answer, basic, bearer, handshake, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, USER, Site

MADE_UP = "X-Auth-Request-Made-Up"
EVIL = "mallory"


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as echo:
        yield echo


@pytest.fixture(scope="module")
def echo_site(folder: Path, echo: Echo, service_settings: Mapping[str, str]) -> Iterator[Site]:
    """Serve the gated site in front of the echo."""
    require(TRAEFIK)
    with Site(folder / "echo-site", echo.url, service_settings) as site:
        yield site


def seen(answer: Answer) -> Received:
    assert answer.status == 200, answer
    return Received.from_json(json.loads(answer.body))


def via(how: str, site: Site, headers: Sequence[tuple[str, str]]) -> Received:
    """Send a request, plain or as a WebSocket handshake, and return what the upstream received."""
    return seen((handshake if how == "websocket" else send)(site.port, MACHINES, "/api/flows/x", headers))


HOW = pytest.mark.parametrize("how", ["http", "websocket"])


@HOW
def test_identity_is_the_service_s_own(how: str, echo_site: Site) -> None:
    claims = [(name, EVIL) for name in (*CLAIMED, MADE_UP)]
    request = via(how, echo_site, [basic(USER, PASSWORD), *claims])
    assert request.values("X-Auth-Request-User") == [USER]
    for name in IDENTITY:
        assert len(request.values(name)) == 1, f"{name} is always set, by the service alone"
    assert [name for name, value in request.headers if EVIL in value] == []


@HOW
def test_machines_bring_no_cookie_to_prefect(how: str, echo_site: Site, session: str) -> None:
    """They send none. A browser may send a session that belongs to both hosts, because cookies know no port."""
    request = via(how, echo_site, [basic(USER, PASSWORD), ("Cookie", f"a=1; {session}"), ("Cookie", "b=2")])
    assert request.values("Cookie") == []


@HOW
@pytest.mark.parametrize("instead", ["_", "."], ids=["underscore", "dot"])
def test_aliases_of_identity_headers_are_deleted(how: str, instead: str, echo_site: Site) -> None:
    aliases = [name.replace("-", instead) for name in IDENTITY]
    claims = [(alias, EVIL) for alias in (*aliases, *(alias.lower() for alias in aliases), "X-Auth_Request-User")]
    request = via(how, echo_site, [basic(USER, PASSWORD), *claims])
    assert EVIL not in json.dumps(request.headers)
    assert request.values("X-Auth-Request-User") == [USER]


@HOW
def test_empty_identity_headers_replace_the_caller_s(how: str, echo_site: Site) -> None:
    """A user of the users file has no e-mail address, and cannot bring one along."""
    request = via(how, echo_site, [basic(USER, PASSWORD), ("X-Auth-Request-Email", EVIL)])
    assert request.values("X-Auth-Request-Email") == [""]


@HOW
def test_credentials_end_at_the_proxy(how: str, echo_site: Site, openid_provider: OpenIDProvider) -> None:
    for header in (basic(USER, PASSWORD), bearer(openid_provider.token()), basic("jwt", openid_provider.token())):
        request = via(how, echo_site, [header, ("Proxy-Authorization", "Basic eA==")])
        assert request.values("Authorization") == []
        assert request.values("Proxy-Authorization") == []
        assert header[1].split()[1] not in json.dumps(request.headers)


def test_origin_of_the_request_is_the_proxy_s_word(echo_site: Site) -> None:
    claims = [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Host", EVIL),
        ("X-Forwarded-Proto", EVIL),
        ("X-Forwarded-Uri", "/api/health"),
        ("X-Forwarded-Method", "GET"),
        ("X-Real-Ip", "203.0.113.9"),
    ]
    request = seen(send(echo_site.port, MACHINES, "/api/flows/x", [basic(USER, PASSWORD), *claims], method="DELETE"))
    assert request.values("X-Forwarded-For") == ["127.0.0.1"]
    assert request.values("X-Real-Ip") == ["127.0.0.1"]
    assert EVIL not in json.dumps(request.headers)
    assert request.values("X-Forwarded-Uri") == request.values("X-Forwarded-Method") == []


@pytest.mark.parametrize(
    "named", ["X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Host", "X-Auth-Request-User", "Authorization"]
)
def test_hop_by_hop_trick_drops_no_header_of_ours(named: str, echo_site: Site, echo: Echo) -> None:
    """`Connection: X-Forwarded-Uri` asks a proxy to drop that header; it must not drop the ones that it adds."""
    before = len(echo.received)
    headers = [basic(USER, PASSWORD), ("X-Auth-Request-User", EVIL), ("Connection", f"close, {named}")]
    answer = send(echo_site.port, MACHINES, "/api/flows/x", headers)
    if answer.status == 200:
        assert seen(answer).values("X-Auth-Request-User") == [USER]
        assert seen(answer).path == "/api/flows/x"
    else:
        assert answer.status in {400, 401}, answer
        assert len(echo.received) == before


def test_two_authorization_headers_are_refused(echo_site: Site, echo: Echo) -> None:
    before = len(echo.received)
    for second in (basic(USER, PASSWORD), bearer("rubbish")):
        answer = send(echo_site.port, MACHINES, "/api/flows/x", [basic(USER, PASSWORD), second])
        assert answer.status in {400, 401}, answer
    assert len(echo.received) == before


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("/api/a/../flows", "/api/flows"),
        ("/api//flows", "/api/flows"),
        ("/api/./flows?x=../y", "/api/flows?x=../y"),
        ("/api/%66lows", "/api/flows"),
        ("/x/../api/flows", "/api/flows"),
    ],
)
def test_gate_and_upstream_see_one_path(sent: str, arrives: str, echo_site: Site) -> None:
    request = seen(send(echo_site.port, MACHINES, sent, [basic(USER, PASSWORD)]))
    assert request.path == arrives
    assert f'"{arrives.split("?", maxsplit=1)[0]}"' in echo_site.service.text(), (
        "the same path stands in the decision log"
    )


@pytest.mark.parametrize("path", ["/api/a%2fb", "/api/a%5cb", "/api/a%00b", "/api/../x", "/api/..%2fx"])
def test_ambiguous_paths_go_nowhere(path: str, echo_site: Site, echo: Echo) -> None:
    before = len(echo.received)
    assert send(echo_site.port, MACHINES, path, [basic(USER, PASSWORD)]).status in {400, 404}
    assert len(echo.received) == before


# the people's host --------------------------------------------------------------------------------------------

OWN_PAGE = ("Sec-Fetch-Site", "same-origin")


@pytest.fixture(scope="module")
def session(echo_site: Site) -> str:
    person = CookieClient(echo_site.port)
    assert person.sign_in().status == 303
    return person.cookie[1]


def by_person(how: str, site: Site, headers: Sequence[tuple[str, str]]) -> Received:
    """Send a request of the UI's own pages, and return what the upstream received."""
    sender = handshake if how == "websocket" else send
    return seen(sender(site.port, PEOPLE, "/api/flows/x", [OWN_PAGE, *headers]))


@HOW
def test_prefect_sees_the_person_and_not_the_session(how: str, echo_site: Site, session: str) -> None:
    cookies = f"a=1; {session}; prefect_ui_version=v1; __Host-prefect-gate-attempt-x=y; prefect-gate-1=z"
    claims = [(name, EVIL) for name in (*CLAIMED, MADE_UP)]

    request = by_person(how, echo_site, [("Cookie", cookies), basic(USER, "stale"), *claims])

    assert request.values("Cookie") == ["a=1; prefect_ui_version=v1"]
    assert request.values("Authorization") == []
    assert request.values("X-Auth-Request-User") == [USER]
    assert request.values("X-Auth-Request-Issuer") == ["local"]
    assert [name for name, value in request.headers if EVIL in value] == []


@HOW
def test_a_session_alone_leaves_no_cookie(how: str, echo_site: Site, session: str) -> None:
    request = by_person(how, echo_site, [("Cookie", session)])
    assert request.values("Cookie") in ([], [""])
    assert "prefect-gate" not in json.dumps(request.headers)


@pytest.mark.parametrize(
    "more", [("Cookie", "a=1"), ("Connection", "close, Cookie"), ("Connection", "close, Sec-Fetch-Site")], ids=str
)
def test_no_trick_brings_a_session_to_prefect(more: tuple[str, str], echo_site: Site, echo: Echo, session: str) -> None:
    before = len(echo.received)
    send(echo_site.port, PEOPLE, "/api/flows/x", [OWN_PAGE, more, ("Cookie", session)])
    assert "prefect-gate" not in json.dumps([request.headers for request in echo.received[before:]])


@pytest.mark.parametrize(
    ("path", "accept", "kept"),
    [
        ("/v2/runs", "text/html", "no-store"),
        ("/", "text/html,*/*;q=0.8", "no-store"),
        ("/api/flows/x", "application/json", "no-store"),
        ("/ui-settings", "*/*", "no-store"),
        ("/v2/assets/index-DcpMCR-U.js", "*/*", "private"),
        ("/assets/index-DcpMCR-U.css", "text/css,*/*;q=0.1", "private"),
        ("/v2/fonts/Geist-VariableFont_wght.ttf", "*/*", "private"),
        ("/v2/assets/gone.js", "text/html,*/*;q=0.8", "no-store"),
        ("/api/assets/x", "*/*", "no-store"),
    ],
)
def test_pages_and_answers_are_not_kept_and_files_by_the_browser_alone(
    path: str, accept: str, kept: str, echo_site: Site, session: str
) -> None:
    answer = send(echo_site.port, PEOPLE, path, [OWN_PAGE, ("Cookie", session), ("Accept", accept)])
    assert answer.status == 200
    assert answer.header("Cache-Control") == kept


@pytest.mark.parametrize("path", ["/v2/runs", "/v2/assets/index-DcpMCR-U.js", "/ui-settings", "/api/flows/x"])
@pytest.mark.parametrize("mode", ["navigate", "cors"])
def test_refusals_are_not_kept(path: str, mode: str, echo_site: Site) -> None:
    """A redirect to the sign-in page that a browser kept would shut its owner out."""
    answer = send(echo_site.port, PEOPLE, path, [("Sec-Fetch-Mode", mode), ("Accept", "*/*")])
    assert answer.status in {302, 401}
    assert answer.header("Cache-Control") == "no-store"
