"""The decision table of the contract, and how each proxy is told."""

import json
from html import escape
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from service.core.errors import (
    Broken,
    Code,
    MalformedCredential,
    MalformedRequest,
    NotPermitted,
    OutOfReach,
    Refusal,
    Rejected,
    SessionEnded,
    Throttled,
    UntrustedPeer,
)
from service.core.model import (
    NO_CREDENTIAL,
    Allow,
    Basic,
    Bearer,
    Browser,
    Challenge,
    Decision,
    Deny,
    Face,
    ForwardedRequest,
    Gate,
    Login,
    NoCredential,
    Principal,
    SessionCookie,
)
from service.core.policy import decide
from service.core.prefect.roles import BUILT_IN, Access
from service.core.prefect.routes import Capability, Route, Routes, known_routes
from service.core.problems import Problem
from service.rendering.answers import IDENTITY_HEADERS, header_text, render
from service.rendering.forms import form_for
from service.rendering.pages import Pages
from service.rendering.sentences import sentence_for_person

ACCESS = Access(BUILT_IN.values(), Routes(known_routes()))
REQUEST = ForwardedRequest("POST", "https", "h", "/api/flows/filter", "", "203.0.113.7")
WHO = Principal("https://idp.example", "svc", "svc@example.com", ("a", "b,c"), ("worker",), "svc")


PAGE_OF_REFUSALS = Pages("Prefect", "Ask the data team.").refusal_page(switch_href="/_auth/login")
OPENS_A_PAGE = Browser(navigates=True, same_origin=False, another_site=False)
Who = Principal | NoCredential | Refusal


def decided(request: ForwardedRequest | None, who: Who, gate: Gate, browser: Browser | None = None) -> Decision:
    return decide(request, who, gate, ACCESS, browser=browser)


TABLE = [
    pytest.param(NO_CREDENTIAL, 401, "credential_required", id="nobody"),
    pytest.param(Rejected(Problem.TOKEN_NOT_A_JWT), 401, "invalid_token", id="rejected"),
    pytest.param(MalformedCredential(Problem.BASIC_NOT_BASE64), 400, "invalid_request", id="malformed-credential"),
    pytest.param(MalformedRequest(Problem.PATH_NOT_UTF8), 400, "invalid_request", id="malformed-request"),
    pytest.param(UntrustedPeer(Problem.PEER_NOT_TRUSTED, peer="192.0.2.1"), 403, "untrusted_proxy", id="untrusted"),
    pytest.param(OutOfReach(Problem.ISSUER_OUT_OF_REACH, retry_after=7), 503, "issuer_unavailable", id="out-of-reach"),
    pytest.param(Throttled(Problem.PASSWORD_CHECKS_FULL, retry_after=2), 429, "throttled", id="throttled"),
    pytest.param(Broken(Problem.INTERNAL), 503, "internal_error", id="broken"),
]


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("face", [Face.FORWARD_AUTH, Face.EXT_AUTHZ])
@pytest.mark.parametrize(("who", "status", "code"), TABLE)
def test_everyone_but_a_principal_is_refused(
    who: NoCredential | Refusal, status: int, code: str, face: Face, gate: Gate
) -> None:
    answer = render(decided(REQUEST, who, gate), face, gate, "r1")
    headers = [name for name, _ in answer.headers]
    assert answer.status == status
    body = json.loads(answer.body)
    assert body["code"] == code
    assert body["code"] in set(Code)
    assert body["request_id"] == "r1"
    assert body["detail"]
    assert (b"retry-after" in headers) == (status in {429, 503})
    assert [value for name, value in answer.headers if name in IDENTITY_HEADERS] == [b""] * 5
    challenged = status == 401 or (code == "invalid_request" and isinstance(who, MalformedCredential))
    assert (b"www-authenticate" in headers) == (challenged and gate is not Gate.UI)


def test_a_principal_without_a_request_is_refused() -> None:
    assert not isinstance(decided(None, WHO, Gate.API), Allow)


def test_a_principal_is_allowed_and_named_in_every_identity_header() -> None:
    answer = render(decided(REQUEST, WHO, Gate.API), Face.FORWARD_AUTH, Gate.API, "")
    assert answer.status == 200
    assert dict(answer.headers) == {
        b"x-auth-request-user": b"svc",
        b"x-auth-request-email": b"svc@example.com",
        b"x-auth-request-groups": b"a,b%2Cc",
        b"x-auth-request-roles": b"worker",
        b"x-auth-request-issuer": b"https://idp.example",
        b"content-length": b"0",
    }


@pytest.mark.parametrize(
    ("gate", "schemes"),
    [(Gate.API, [b"Bearer", b"Basic"]), (Gate.JWT, [b"Bearer"]), (Gate.BASIC, [b"Basic"]), (Gate.UI, [])],
)
def test_a_challenge_names_what_the_gate_takes(gate: Gate, schemes: list[bytes]) -> None:
    answer = render(decided(REQUEST, NO_CREDENTIAL, gate), Face.FORWARD_AUTH, gate, "")
    challenges = [value for name, value in answer.headers if name == b"www-authenticate"]
    assert [value.split(b" ")[0] for value in challenges] == schemes
    assert not any(b"error=" in value for value in challenges)  # RFC 6750 §3.1: nothing was sent


def test_a_rejected_token_is_named_in_the_challenge() -> None:
    who = Rejected(Problem.SCOPE_MISSING, scope='"a\\b"\r\nX: y')
    answer = render(decided(REQUEST, who, Gate.JWT), Face.FORWARD_AUTH, Gate.JWT, "")
    challenge = dict(answer.headers)[b"www-authenticate"]
    assert challenge == (
        b'Bearer realm="Prefect API", error="invalid_token", error_description="This token lacks the scope '
        b"''ab'rnX: y': request it when you obtain the token.\""
    )


@pytest.mark.parametrize(("who", "status", "code"), TABLE)
def test_nginx_gets_401_or_403_and_the_real_status_beside(who: NoCredential | Refusal, status: int, code: str) -> None:
    answer = render(decided(REQUEST, who, Gate.API), Face.AUTH_REQUEST, Gate.API, "")
    headers = dict(answer.headers)
    assert answer.status in {401, 403}
    assert headers[b"x-auth-status"] == str(status).encode()
    assert headers[b"x-auth-detail"]
    assert headers[b"x-auth-redirect"] == b""
    assert headers[b"x-auth-body"] == answer.body


def test_a_page_reaches_nginx_as_one_harmless_line() -> None:
    who = MalformedRequest(Problem.HEADER_REPEATED, header="zoë <b>\r\nX: y\x7f")
    answer = render(decided(REQUEST, who, Gate.UI), Face.AUTH_REQUEST, Gate.UI, "", OPENS_A_PAGE, PAGE_OF_REFUSALS)
    line = dict(answer.headers)[b"x-auth-body"].decode("ascii")
    assert line.startswith("<!doctype html>")
    assert line.isprintable()
    assert "zo&#235; &lt;b&gt;  X: y" in line


@pytest.mark.parametrize(
    "endpoint",
    [
        "/api/events/in",
        "/api/events/out",
        "/api/logs/out",
        "/api/task_runs/subscriptions/scheduled",
        "/api/work_pools/my pool/workers/connect",
        "/prefix/api/events/in",
    ],
)
def test_a_websocket_without_a_credential_is_told_the_cure(endpoint: str) -> None:
    decision = decided(REQUEST._replace(path=endpoint), NO_CREDENTIAL, Gate.API)
    for version, cure in ((None, "PREFECT_API_URL"), ((3, 9, 1), "PREFECT_CLIENT_CUSTOM_HEADERS")):
        answer = render(decision, Face.FORWARD_AUTH, Gate.API, "", form=form_for(version))
        assert answer.status == 401
        assert "task-run states are lost" in json.loads(answer.body)["detail"]
        assert f"Set {cure} to" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("text", ["zoë", "a\r\nX: y", "a\x00b", "日本", "50%", "a,b", "\x7f"])
def test_row16_any_text_is_one_harmless_header_value(text: str) -> None:
    rendered = header_text(text)
    assert all(0x20 <= byte < 0x7F and byte != ord(",") for byte in rendered)
    assert unquote(rendered.decode()) == text


def test_row12_whoever_has_no_email_group_or_role_has_the_headers_all_the_same() -> None:
    headers = dict(render(Allow(Principal("i", "n")), Face.FORWARD_AUTH, Gate.API, "").headers)
    assert [headers[name] for name in IDENTITY_HEADERS] == [b"n", b"", b"", b"", b"i"]


# people ---------------------------------------------------------------------------------------------------

ENDED = SessionEnded(Problem.SESSION_LIFETIME_OVER)
FETCHES = Browser(navigates=False, same_origin=True, another_site=False)
FROM_ELSEWHERE = Browser(navigates=False, same_origin=False, another_site=True)
PAGE = ForwardedRequest("GET", "https", "h", "/v2/runs", "tab=Logs", "203.0.113.7", "/v2/runs?tab=Logs", "https://h")


@pytest.mark.parametrize("face", [Face.FORWARD_AUTH, Face.EXT_AUTHZ])
@pytest.mark.parametrize(
    ("who", "code"), [(NO_CREDENTIAL, "credential_required"), (ENDED, "session_ended")], ids=["nobody", "ended"]
)
def test_who_opens_a_page_without_a_session_signs_in_and_comes_back(
    who: NoCredential | Refusal, code: str, face: Face
) -> None:
    answer = render(decided(PAGE, who, Gate.UI, OPENS_A_PAGE), face, Gate.UI, "r1", OPENS_A_PAGE)
    headers = dict(answer.headers)
    assert answer.status == 302
    assert json.loads(answer.body)["code"] == code
    location = urlsplit(headers[b"location"].decode())
    assert (location.scheme, location.netloc, location.path) == ("", "", "/_auth/login")
    assert parse_qs(location.query) == {"return_to": ["/v2/runs?tab=Logs"]}
    assert [value for name, value in answer.headers if name in IDENTITY_HEADERS] == [b""] * 5


@pytest.mark.parametrize("gate", [Gate.API, Gate.JWT, Gate.BASIC])
@pytest.mark.parametrize("who", [NO_CREDENTIAL, ENDED], ids=["nobody", "ended"])
def test_a_machine_is_never_sent_to_sign_in(who: NoCredential | Refusal, gate: Gate) -> None:
    assert isinstance(decided(PAGE, who, gate), Challenge)


def test_the_shell_is_given_stand_in_settings_so_that_it_can_say_what_is_wrong() -> None:
    settings = PAGE._replace(path="/ui-settings", target="/ui-settings")
    decision = decided(settings, ENDED, Gate.UI, FETCHES)
    assert isinstance(decision, Login)
    assert decision.location == "/_auth/ui-settings"
    assert isinstance(decided(settings._replace(method="POST"), ENDED, Gate.UI, FETCHES), Challenge)
    assert isinstance(decided(settings._replace(path="/api/ui-settings"), ENDED, Gate.UI, FETCHES), Challenge)
    moved = Access(BUILT_IN.values(), Routes(known_routes("/ui/api", "/ui"), "/ui/api"))
    for path, kind in (("/ui/ui-settings", Login), ("/ui-settings", Challenge), ("/ui/runs/ui-settings", Challenge)):
        request = settings._replace(path=path, target=path)
        assert isinstance(decide(request, ENDED, Gate.UI, moved, browser=FETCHES), kind), path


WRITES = {
    "row37-get": ("GET", "https", "/api/admin/settings", True),
    "row37-head": ("HEAD", "https", "/api/admin/settings", True),
    "row37-page": ("GET", "https", "/v2/runs", True),
    "row37-post": ("POST", "https", "/api/flows/filter", False),
    "row37-put": ("PUT", "https", "/api/flows", False),
    "row37-patch": ("PATCH", "https", "/api/flows", False),
    "row37-delete": ("DELETE", "https", "/api/flows", False),
    "row37-websocket-by-scheme": ("GET", "wss", "/v2/anything", False),
    "row37-websocket-by-scheme-plain": ("GET", "ws", "/v2/anything", False),
    "row37-websocket-by-path": ("GET", "https", "/api/events/in", False),
    "row37-websocket-by-path-under-a-prefix": ("GET", "https", "/prefix/api/logs/out", False),
    "row37-websocket-by-table": ("GET", "https", "/api/feeds/6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d", False),
}
UNKNOWN = {
    "row37-get-unknown": ("GET", "https", "/api/new/feed"),
    "row37-head-unknown": ("HEAD", "https", "/api/new/feed"),
    "row37-options": ("OPTIONS", "https", "/api/flows"),
}
NEW_WEBSOCKET = Route("WS", "/api/feeds/{id:uuid}", frozenset({Capability.READ}))
WITH_NEW_WEBSOCKET = Access(BUILT_IN.values(), Routes([*known_routes(), NEW_WEBSOCKET]))
ADMIN = WHO._replace(roles=("admin",))


def passes(request: ForwardedRequest, gate: Gate, browser: Browser | None) -> bool:
    """Tell whether an admin's request is allowed; if not, it must be refused as one of another site."""
    decision = decide(request, ADMIN, gate, WITH_NEW_WEBSOCKET, browser=browser)
    allowed = isinstance(decision, Allow)
    assert allowed or (isinstance(decision, Deny) and (decision.status, decision.code) == (403, "cross_origin"))
    return allowed


@pytest.mark.parametrize(("method", "scheme", "path", "reads"), WRITES.values(), ids=WRITES)
def test_a_cookie_alone_permits_no_write(method: str, scheme: str, path: str, *, reads: bool) -> None:
    request = PAGE._replace(method=method, scheme=scheme, path=path)
    assert passes(request, Gate.UI, FETCHES)
    for browser in (FROM_ELSEWHERE, OPENS_A_PAGE, None):
        assert passes(request, Gate.UI, browser) == reads
        if browser is not None:
            assert not passes(request, Gate.UI, browser._replace(opens_websocket=True))


@pytest.mark.parametrize("gate", [Gate.API, Gate.JWT, Gate.BASIC])
@pytest.mark.parametrize(("method", "scheme", "path", "reads"), WRITES.values(), ids=WRITES)
def test_nor_does_another_site_write_with_a_password_that_a_browser_remembers(
    method: str, scheme: str, path: str, gate: Gate, *, reads: bool
) -> None:
    request = PAGE._replace(method=method, scheme=scheme, path=path)
    for browser in (None, FETCHES, OPENS_A_PAGE, OPENS_A_PAGE._replace(opens_websocket=True)):
        assert passes(request, gate, browser)
    assert passes(request, gate, FROM_ELSEWHERE) == reads
    assert not passes(request, gate, FROM_ELSEWHERE._replace(opens_websocket=True))


@pytest.mark.parametrize(("method", "scheme", "path"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_route_may_be_a_websocket_unless_a_person_opens_it(method: str, scheme: str, path: str) -> None:
    request = PAGE._replace(method=method, scheme=scheme, path=path)
    for gate in Gate:
        assert passes(request, gate, FETCHES)
        assert passes(request, gate, OPENS_A_PAGE)
        assert not passes(request, gate, FROM_ELSEWHERE)
    assert not passes(request, Gate.UI, None)


@pytest.mark.parametrize("face", Face)
@pytest.mark.parametrize("who", [NO_CREDENTIAL, Rejected(Problem.TOKEN_NOT_A_JWT)], ids=["nobody", "rejected"])
def test_a_browser_at_a_machines_gate_is_not_made_to_ask_for_a_password_nor_shown_a_page(
    who: NoCredential | Refusal, face: Face
) -> None:
    for gate, schemes in ((Gate.API, [b"Bearer"]), (Gate.JWT, [b"Bearer"]), (Gate.BASIC, [])):
        for browser in (OPENS_A_PAGE, FETCHES, FROM_ELSEWHERE):
            for request in (PAGE, PAGE._replace(path="/ui-settings")):
                answer = render(decided(request, who, gate, browser), face, gate, "", browser, PAGE_OF_REFUSALS)
                challenges = [value for name, value in answer.headers if name == b"www-authenticate"]
                assert answer.status == 401
                assert [value.split(b" ")[0] for value in challenges] == schemes
                assert json.loads(answer.body)["detail"]


@pytest.mark.parametrize("face", Face)
@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        *TABLE[1:],
        pytest.param(NotPermitted(Problem.PERSON_NOT_PERMITTED), 403, "insufficient_scope", id="not-permitted"),
    ],
)
def test_who_opens_a_page_that_is_refused_reads_why_on_a_page(who: Refusal, status: int, code: str, face: Face) -> None:
    answer = render(decided(PAGE, who, Gate.UI, OPENS_A_PAGE), face, Gate.UI, "r1", OPENS_A_PAGE, PAGE_OF_REFUSALS)
    headers = dict(answer.headers)
    assert answer.status == status or face is Face.AUTH_REQUEST
    assert headers[b"content-type"] == b"text/html; charset=utf-8"
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert headers[b"cache-control"] == b"no-store"
    assert escape(sentence_for_person(who.cause)).encode() in answer.body
    assert f"<code>{code}</code>".encode() in answer.body
    assert b"<code>r1</code>" in answer.body
    assert b"www-authenticate" not in headers
    assert b"location" not in headers


def test_who_lacks_a_role_for_a_page_is_led_to_whom_to_ask() -> None:
    decision = decided(PAGE, WHO._replace(roles=()), Gate.UI, OPENS_A_PAGE)
    answer = render(decision, Face.FORWARD_AUTH, Gate.UI, "r1", OPENS_A_PAGE, PAGE_OF_REFUSALS)
    assert answer.status == 403
    assert b'href="/_auth/denied"' in answer.body
    assert b"without a role here" in answer.body


def test_until_there_is_a_page_a_person_reads_the_same_refusal_as_json() -> None:
    decision = decided(PAGE, WHO._replace(roles=()), Gate.UI, OPENS_A_PAGE)
    answer = render(decision, Face.FORWARD_AUTH, Gate.UI, "r1", OPENS_A_PAGE)
    assert dict(answer.headers)[b"content-type"] == b"application/json"
    assert json.loads(answer.body)["code"] == "insufficient_scope"
    assert "without a role here" in json.loads(answer.body)["detail"]


def test_nginx_is_told_where_a_person_signs_in() -> None:
    decision = decided(PAGE, ENDED, Gate.UI, OPENS_A_PAGE)
    answer = render(decision, Face.AUTH_REQUEST, Gate.UI, "r1", OPENS_A_PAGE)
    headers = dict(answer.headers)
    assert answer.status == 401
    assert headers[b"x-auth-status"] == b"302"
    assert headers[b"x-auth-detail"] == b"Your session has ended: reload the page to sign in."
    assert headers[b"x-auth-redirect"] == b"/_auth/login?return_to=%2Fv2%2Fruns%3Ftab%3DLogs"


def test_nothing_that_was_presented_is_shown() -> None:
    """A repr ends up in logs and tracebacks."""
    presented = (Bearer(b"s3cret"), Basic("alice", "s3cret"), SessionCookie("s3cret"), NO_CREDENTIAL)
    assert [repr(one) for one in presented] == ["Bearer(…)", "Basic(…)", "SessionCookie(…)", "NoCredential()"]
