"""The caller's bytes: what is understood, and everything that two readers could understand differently."""

import base64
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import MalformedCredential, MalformedRequest
from service.core.model import Basic, Bearer, Browser, Face, NoCredential
from service.core.problems import Problem
from service.core.request.faces import _remembered, browser_of, parse_browser, parse_call
from service.core.request.headers import parse_credential, parse_host, parse_method, parse_target, split_url
from service.core.request.proxies import TrustedProxies
from tests.support.refusals import logged, refused, told

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"


def basic(text: str | bytes) -> bytes:
    return b"Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    ("raw", "path", "query"),
    [
        (b"/api/flows/filter", "/api/flows/filter", ""),
        (b"/api/flows/filter?limit=1&x=%2e%2e/#"[:-1], "/api/flows/filter", "limit=1&x=%2e%2e/"),
        (b"/api/%66lows/count", "/api/flows/count", ""),
        (b"/api/deployments/name/my%20flow/caf%C3%A9", "/api/deployments/name/my flow/café", ""),
        (b"/api/flows/what%3F", "/api/flows/what?", ""),
        (b"/", "/", ""),
        (b"/api/flows/", "/api/flows/", ""),
        (b"/api/a..b/.hidden", "/api/a..b/.hidden", ""),
        (b"/api/x?next=https://e.example/%0d%0a", "/api/x", "next=https://e.example/%0d%0a"),
    ],
)
def test_a_target_is_read_as_the_upstream_reads_it(raw: bytes, path: str, query: str) -> None:
    assert parse_target(raw) == (path, query)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"/api/../admin", id="row3-dot-segment"),
        pytest.param(b"/api/./admin", id="row3-single-dot"),
        pytest.param(b"/api/..", id="row3-trailing-dots"),
        pytest.param(b"/api/%2e%2e/admin", id="row3-encoded-dots"),
        pytest.param(b"/api/%2E./admin", id="row3-half-encoded-dots"),
        pytest.param(b"//api/admin", id="row3-doubled-slash"),
        pytest.param(b"/api//admin", id="row3-inner-doubled-slash"),
        pytest.param(b"/api%2fadmin", id="row3-encoded-slash"),
        pytest.param(b"/api%2Fadmin", id="row3-encoded-slash-upper"),
        pytest.param(b"/api\\admin", id="row3-back-slash"),
        pytest.param(b"/api%5cadmin", id="row3-encoded-back-slash"),
        pytest.param(b"/api/flows;x=1", id="row3-path-parameter"),
        pytest.param(b"/api/flows%3bx", id="row3-encoded-path-parameter"),
        pytest.param(b"/api/%2561dmin", id="row3-double-encoding"),
        pytest.param(b"/api/%c0%afadmin", id="row3-overlong-utf8"),
        pytest.param(b"/api/%ff", id="row3-not-utf8"),
        pytest.param(b"/api/%ed%a0%80", id="row3-surrogate"),
        pytest.param(b"/api/%00", id="row3-nul"),
        pytest.param(b"/api/\x00", id="row3-raw-nul"),
        pytest.param(b"/api/%0d%0aX: y", id="row3-encoded-crlf"),
        pytest.param(b"/api/%c2%85", id="row3-c1-control"),
        pytest.param(b"/api/%6", id="row4-cut-escape"),
        pytest.param(b"/api/%zz", id="row4-no-hex"),
        pytest.param(b"/api/flows#/admin", id="row2-fragment"),
        pytest.param(b"/api/flows?x#y", id="row2-fragment-behind-query"),
        pytest.param(b"http://h/api", id="row4-absolute-form"),
        pytest.param(b"*", id="row4-asterisk"),
        pytest.param(b"api/flows", id="row4-no-slash"),
        pytest.param(b"", id="row4-empty"),
        pytest.param(b"/api/fl ows", id="row4-space"),
        pytest.param("/api/é".encode(), id="row4-raw-utf8"),
        pytest.param(b"/api/x?\x80", id="row4-raw-byte-in-query"),
        pytest.param(b"/" + b"a" * 9000, id="row4-too-long"),
    ],
)
def test_a_target_with_two_readings_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_target(raw)


@given(st.binary(max_size=60))
def test_a_target_is_parsed_or_refused_and_never_anything_else(raw: bytes) -> None:
    try:
        path, query = parse_target(b"/" + raw)
    except MalformedRequest:
        return
    assert path.startswith("/")
    assert "//" not in path
    assert "/../" not in f"{path}/"
    assert "\\" not in path
    assert path.isprintable() or any(ord(char) > 0x9F for char in path)
    assert query.isascii()


@pytest.mark.parametrize(
    ("raw", "host"),
    [
        (b"Prefect.Example.COM", "prefect.example.com"),
        (b"prefect.example.com.", "prefect.example.com"),
        (b"prefect.example.com:8443", "prefect.example.com"),
        (b"prefect.example.com.:80", "prefect.example.com"),
        (b"[::1]:4200", "[::1]"),
        (b"127.0.0.1", "127.0.0.1"),
    ],
)
def test_row5_one_host_has_one_spelling(raw: bytes, host: str) -> None:
    assert parse_host(raw) == host


@pytest.mark.parametrize(
    "raw", [b"", b"a/b", b"a b", b"user@host", b"a..b", b"h:port", b"h:80:90", b"\xff", b"a,b", b"?"]
)
def test_row7_a_malformed_host_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_host(raw)


@pytest.mark.parametrize("raw", [b"get", b"Get", b"TRACE", b"CONNECT", b"PROPFIND", b"GET ", b"", b"POST\x00", b"\xff"])
def test_row10_an_unknown_method_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_method(raw)


PROXIES = TrustedProxies((ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8"), ip_network("::1")))


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"203.0.113.7", "203.0.113.7"),
        (b"1.2.3.4, 203.0.113.7", "203.0.113.7"),
        (b"1.2.3.4, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
        (b"10.0.0.9, 10.0.0.2", "10.0.0.9"),
        (b"203.0.113.7:5123", "203.0.113.7"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"::ffff:203.0.113.7", "203.0.113.7"),
    ],
)
def test_row15_the_client_is_the_rightmost_stranger(header: bytes, client: str) -> None:
    assert PROXIES.client_of(header) == client


@pytest.mark.parametrize(
    "header", [b"", b"unknown", b"1.2.3.4,", b"1.2.3.4, x", b"1.2.3.4;10.0.0.1", b"\xff", b"1," * 900]
)
def test_row15_an_unreadable_list_is_refused_not_skipped(header: bytes) -> None:
    with pytest.raises(MalformedRequest):
        PROXIES.client_of(header)


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [("10.1.2.3", True), ("::1", True), ("::ffff:10.1.1.1", True), ("8.8.8.8", False), ("x", False)],
)
def test_row15_a_peer_is_trusted_by_its_address_alone(peer: str, trusted: bool) -> None:  # noqa: FBT001
    assert PROXIES.trusts(peer) is trusted


def test_row15_a_peer_without_an_address_is_trusted_at_a_unix_socket_alone() -> None:
    assert not PROXIES.trusts("")
    assert TrustedProxies(PROXIES.networks, unix_socket=True).trusts("")
    assert not TrustedProxies(PROXIES.networks, unix_socket=True).trusts("8.8.8.8")


FORWARDED = {
    b"x-forwarded-method": b"POST",
    b"x-forwarded-uri": b"/api/flows/filter?x=1",
    b"x-forwarded-host": b"Prefect.example.com:443",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-for": b"203.0.113.7",
}


def test_traefik_and_caddy_send_the_original_in_headers() -> None:
    headers = [*FORWARDED.items(), (b"authorization", b"Bearer x"), (b"x-other", b"1"), (b"x-other", b"2")]
    request, found = parse_call(Face.FORWARD_AUTH, "GET", b"/ignored", headers, PROXIES)
    assert request[:6] == ("POST", "https", "prefect.example.com", "/api/flows/filter", "x=1", "203.0.113.7")
    assert request[6:] == ("/api/flows/filter?x=1", "https://prefect.example.com")
    assert found[b"authorization"] == b"Bearer x"


@pytest.mark.parametrize("missing", FORWARDED)
def test_row13_a_forwarded_header_that_is_missing_or_empty_is_refused(missing: bytes) -> None:
    without = [(name, value) for name, value in FORWARDED.items() if name != missing]
    with refused(MalformedRequest, missing.decode()):
        parse_call(Face.FORWARD_AUTH, "GET", b"", without, PROXIES)
    with pytest.raises(MalformedRequest):
        parse_call(Face.FORWARD_AUTH, "GET", b"", [*without, (missing, b"")], PROXIES)


@pytest.mark.parametrize("repeated", [*FORWARDED, b"authorization"])
def test_row14_a_repeated_header_is_refused(repeated: bytes) -> None:
    headers = [
        *FORWARDED.items(),
        (b"authorization", b"Bearer x"),
        (repeated, FORWARDED.get(repeated, b"Bearer x")),
    ]
    with refused(MalformedRequest, "more than once"):
        parse_call(Face.FORWARD_AUTH, "GET", b"", headers, PROXIES)


@pytest.mark.parametrize(
    "alias",
    [b"x_forwarded_uri", b"x-original-uri", b"x-original-url", b"x-rewrite-url", b"x-envoy-original-path"],
)
def test_rows1_and_8_only_the_proxys_own_header_names_the_path(alias: bytes) -> None:
    request, _ = parse_call(Face.FORWARD_AUTH, "GET", b"", [*FORWARDED.items(), (alias, b"/api/health")], PROXIES)
    assert request.path == "/api/flows/filter"


@pytest.mark.parametrize("override", [b"x-http-method-override", b"x-http-method", b"x-method-override"])
def test_row10_a_method_override_is_ignored(override: bytes) -> None:
    request, _ = parse_call(Face.FORWARD_AUTH, "GET", b"", [*FORWARDED.items(), (override, b"GET")], PROXIES)
    assert request.method == "POST"


def test_row10_the_method_of_the_verify_call_is_never_the_requests() -> None:
    with pytest.raises(MalformedRequest):
        parse_call(Face.FORWARD_AUTH, "POST", b"", list(FORWARDED.items()), PROXIES)


def test_envoy_keeps_method_and_path() -> None:
    headers = [(b"host", b"prefect.example.com"), (b"x-forwarded-uri", b"/spoofed")]
    request, _ = parse_call(Face.EXT_AUTHZ, "DELETE", b"/api/flows/1", headers, PROXIES)
    assert request == (*request[:6], "/api/flows/1", "http://prefect.example.com")
    assert request[:6] == ("DELETE", "http", "prefect.example.com", "/api/flows/1", "", "")


def test_nginx_sends_its_own_headers() -> None:
    headers = [
        (b"x-original-method", b"PATCH"),
        (b"x-original-url", b"https://Prefect.example.com:443/api/x?x=/y"),
        (b"x-forwarded-uri", b"/s"),
    ]
    request, _ = parse_call(Face.AUTH_REQUEST, "GET", b"", headers, PROXIES)
    assert request[:6] == ("PATCH", "https", "prefect.example.com", "/api/x", "x=/y", "")
    assert request[6:] == ("/api/x?x=/y", "https://prefect.example.com")


@pytest.mark.parametrize(
    "raw", [b"/api", b"https://host", b"ftp://h/api", b"https://u@h/api", b"https:///api", b"h/api"]
)
def test_an_original_url_that_is_not_absolute_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_call(Face.AUTH_REQUEST, "GET", b"", [(b"x-original-method", b"GET"), (b"x-original-url", raw)], PROXIES)


BROWSER = {b"sec-fetch-mode": b"navigate", b"sec-fetch-site": b"none", b"accept": b"text/html,*/*;q=0.8"}


SITE, MODE, ORIGIN, ACCEPT, UPGRADE = b"sec-fetch-site", b"sec-fetch-mode", b"origin", b"accept", b"upgrade"
NEITHER = Browser(navigates=False, same_origin=False, another_site=False)
NAVIGATES, OWN = NEITHER._replace(navigates=True), NEITHER._replace(same_origin=True)
OTHER = NEITHER._replace(another_site=True)


@pytest.mark.parametrize(
    ("method", "headers", "says"),
    [
        pytest.param("GET", BROWSER, NAVIGATES, id="typed-into-the-bar"),
        pytest.param("GET", {ACCEPT: BROWSER[ACCEPT]}, NAVIGATES, id="an-old-browser-navigates"),
        pytest.param("POST", BROWSER, NEITHER, id="a-form-is-no-navigation"),
        pytest.param("POST", {SITE: b"same-origin", MODE: b"cors"}, OWN, id="xhr"),
        pytest.param("POST", {SITE: b"same-origin"}, OWN, id="where-from-alone"),
        pytest.param("POST", {SITE: b"same-site", MODE: b"cors"}, OTHER, id="sibling"),
        pytest.param("POST", {SITE: b"cross-site"}, OTHER, id="another-site-alone"),
        pytest.param("POST", {SITE: b"something-new"}, OTHER, id="a-word-that-is-not-known"),
        pytest.param("POST", {SITE: b"cross-site", ORIGIN: b"https://h:8443"}, OTHER, id="both"),
        pytest.param("POST", {MODE: b"cors"}, NEITHER, id="a-program-with-a-fetch-of-its-own"),
        pytest.param("POST", {ORIGIN: b"https://h:8443"}, OWN, id="origin"),
        pytest.param("POST", {ORIGIN: b"https://h"}, OTHER, id="origin-of-another-port"),
        pytest.param("POST", {ORIGIN: b"http://h:8443"}, OTHER, id="origin-of-another-scheme"),
        pytest.param("POST", {ORIGIN: b"null"}, OTHER, id="origin-null"),
        pytest.param("POST", {ORIGIN: b"https://h:8443.evil.example"}, OTHER, id="origin-look-alike"),
        pytest.param(
            "GET", {MODE: b"websocket", SITE: b"same-origin"}, OWN._replace(opens_websocket=True), id="websocket"
        ),
        pytest.param(
            "GET",
            {MODE: b"websocket", SITE: b"cross-site", ORIGIN: b"https://evil.example", ACCEPT: b"*/*"},
            OTHER._replace(opens_websocket=True),
            id="websocket-of-another-site",
        ),
        pytest.param(
            "GET",
            {UPGRADE: b"WebSocket", ORIGIN: b"https://evil.example"},
            OTHER._replace(opens_websocket=True),
            id="websocket-of-an-old-browser",
        ),
        pytest.param("GET", {ACCEPT: b"application/json, text/html"}, None, id="prefers-json"),
        pytest.param("POST", {ACCEPT: b"*/*"}, None, id="a-program"),
        pytest.param("GET", {}, None, id="says-nothing"),
    ],
)
def test_row37_what_the_browser_says_of_a_request(
    method: str, headers: dict[bytes, bytes], says: Browser | None
) -> None:
    forwarded = {**FORWARDED, b"x-forwarded-method": method.encode(), b"x-forwarded-host": b"H:8443"}
    request, found = parse_call(Face.FORWARD_AUTH, "GET", b"", [*forwarded.items(), *headers.items()], PROXIES)
    assert browser_of(found, request) == says
    assert parse_browser(found, request) == (says or NEITHER)


def test_a_program_that_opens_a_websocket_is_no_browser() -> None:
    request, found = parse_call(Face.FORWARD_AUTH, "GET", b"", [*FORWARDED.items(), (UPGRADE, b"websocket")], PROXIES)
    assert browser_of(found, request) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(f"Bearer {JWT}".encode(), Bearer(JWT.encode()), id="form1"),
        pytest.param(f"bearer  {JWT}".encode(), Bearer(JWT.encode()), id="form1-lower-case"),
        pytest.param(b"Bearer pnu_abc", Bearer(b"pnu_abc"), id="form1-not-a-jwt-is-judged-later"),
        pytest.param(basic("alice:s3cret:with:colons"), Basic("alice", "s3cret:with:colons"), id="form2"),
        pytest.param(basic("alice:s3cret").replace(b"Basic", b"bAsIc"), Basic("alice", "s3cret"), id="form2-any-case"),
        pytest.param(basic("zoë:pässwörd"), Basic("zoë", "pässwörd"), id="form2-utf8"),
        pytest.param(basic(f"jwt:{JWT}"), Bearer(JWT.encode()), id="form3"),
        pytest.param(basic(f":{JWT}"), Bearer(JWT.encode()), id="form3-without-a-name"),
        pytest.param(basic(f"Bearer {JWT}"), Bearer(JWT.encode()), id="form4"),
        pytest.param(basic(f"bearer {JWT}"), Bearer(JWT.encode()), id="form4-lower-case"),
    ],
)
def test_each_form_of_a_credential_is_recognised_by_its_shape(header: bytes | None, expected: object) -> None:
    credential = parse_credential(header)
    assert isinstance(credential, NoCredential) if expected is NoCredential else credential == expected


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Bearer", id="bearer-alone"),
        pytest.param(b"Bearer ", id="bearer-blank"),
        pytest.param(b"Bearer a b", id="bearer-two-words"),
        pytest.param(f"Bearer {JWT}, Basic abc".encode(), id="two-in-one"),
        pytest.param(b"Bearer \xff", id="bearer-not-ascii"),
        pytest.param(b"Digest x", id="another-scheme"),
        pytest.param(JWT.encode(), id="no-scheme"),
        pytest.param(b"Basic", id="basic-alone"),
        pytest.param(b"Basic !!!", id="basic-not-base64"),
        pytest.param(b"Basic YWxpY2U6eA", id="basic-without-padding"),
        pytest.param(b"Basic YWxpY2U6eA==YQ==", id="basic-behind-padding"),
        pytest.param(basic(b"\xff:\xff"), id="basic-not-utf8"),
        pytest.param(basic("alice"), id="basic-no-colon"),
        pytest.param(basic(f"{JWT}"), id="basic-bare-jwt"),
        pytest.param(basic(f"{JWT}:"), id="basic-jwt-as-user"),
        pytest.param(basic(":x"), id="basic-no-user"),
        pytest.param(basic("al\x00ice:x"), id="row25-nul-in-user"),
        pytest.param(basic("alice:x\x00"), id="row25-nul-in-password"),
        pytest.param(basic("alice:x\r\ny"), id="row16-crlf"),
        pytest.param(basic("a" * 300 + ":x"), id="user-too-long"),
        pytest.param(basic("alice:" + "x" * 4097), id="row25-over-4-kb"),
        pytest.param(b"Bearer " + b"a" * 17_000, id="over-16-kb"),
        pytest.param(basic("Bearer x y"), id="form4-two-words"),
    ],
)
def test_a_malformed_credential_is_refused_and_never_taken_for_another(header: bytes) -> None:
    with pytest.raises(MalformedCredential):
        parse_credential(header)


@pytest.mark.parametrize(
    "header", [f"DPoP {JWT}".encode(), f"dpop {JWT}".encode(), b"DPoP", basic(f"DPoP {JWT}"), basic("dpop x")]
)
def test_dpop_is_refused_by_its_name(header: bytes) -> None:
    with refused(MalformedCredential, "DPoP is not supported here", Problem.AUTHORIZATION_SCHEME_DPOP):
        parse_credential(header)


def test_secrets_do_not_stand_in_a_repr() -> None:
    assert "s3cret" not in repr(parse_credential(basic("alice:s3cret")))
    assert JWT not in repr(parse_credential(f"Bearer {JWT}".encode()))


def test_long_requests_are_understood_and_not_remembered() -> None:
    long = [(name, value) for name, value in FORWARDED.items() if name != b"x-forwarded-uri"]
    long.append((b"x-forwarded-uri", b"/api/" + b"a" * 4000))
    before = _remembered.cache_info().currsize
    request, _ = parse_call(Face.FORWARD_AUTH, "GET", b"", long, PROXIES)
    assert len(request.path) == 4005
    assert _remembered.cache_info().currsize == before


@pytest.mark.parametrize("raw", [b"/_auth/callback?state=abc&code=SECRET&x=\\", b"/x?t=SECRET#", b"x?t=SECRET"])
def test_what_stands_in_a_query_is_in_no_log(raw: bytes) -> None:
    for parse in (parse_target, split_url):
        with pytest.raises(MalformedRequest) as refusal:
            parse(raw)
        assert "SECRET" not in logged(refusal.value) + told(refusal.value)
