"""The decision table of the contract, and how each proxy is told."""

import json
from urllib.parse import unquote

import pytest

from service.core.dialects import IDENTITY_HEADERS, header_text, render
from service.core.errors import (
    Broken,
    Code,
    MalformedCredential,
    MalformedRequest,
    OutOfReach,
    Refusal,
    Rejected,
    Throttled,
    UntrustedPeer,
)
from service.core.model import NO_CREDENTIAL, Allow, Browser, Face, ForwardedRequest, Gate, NoCredential, Principal
from service.core.policy import decide

REQUEST = ForwardedRequest("GET", "https", "h", "/api/flows/filter", "", "203.0.113.7")
WHO = Principal("https://idp.example", "svc", "svc@example.com", ("a", "b,c"), ("worker",), "svc")

TABLE = [
    pytest.param(NO_CREDENTIAL, 401, "credential_required", id="nobody"),
    pytest.param(Rejected("no"), 401, "invalid_token", id="rejected"),
    pytest.param(MalformedCredential("no"), 400, "invalid_request", id="malformed-credential"),
    pytest.param(MalformedRequest("no"), 400, "invalid_request", id="malformed-request"),
    pytest.param(UntrustedPeer("no"), 403, "untrusted_proxy", id="untrusted"),
    pytest.param(OutOfReach("no", retry_after=7), 503, "issuer_unavailable", id="out-of-reach"),
    pytest.param(Throttled("no", retry_after=2), 429, "throttled", id="throttled"),
    pytest.param(Broken("no"), 503, "internal_error", id="broken"),
]


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("face", [Face.FORWARD_AUTH, Face.EXT_AUTHZ])
@pytest.mark.parametrize(("who", "status", "code"), TABLE)
def test_everyone_but_a_principal_is_refused(
    who: NoCredential | Refusal, status: int, code: str, face: Face, gate: Gate
) -> None:
    answer = render(decide(REQUEST, who, gate), face, gate, "r1")
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
    assert not isinstance(decide(None, WHO, Gate.API), Allow)


def test_a_principal_is_allowed_and_named_in_every_identity_header() -> None:
    answer = render(decide(REQUEST, WHO, Gate.API), Face.FORWARD_AUTH, Gate.API, "")
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
    answer = render(decide(REQUEST, NO_CREDENTIAL, gate), Face.FORWARD_AUTH, gate, "")
    challenges = [value for name, value in answer.headers if name == b"www-authenticate"]
    assert [value.split(b" ")[0] for value in challenges] == schemes
    assert not any(b"error=" in value for value in challenges)  # RFC 6750 §3.1: nothing was sent


def test_a_rejected_token_is_named_in_the_challenge() -> None:
    answer = render(decide(REQUEST, Rejected('it "expired"'), Gate.JWT), Face.FORWARD_AUTH, Gate.JWT, "")
    challenge = dict(answer.headers)[b"www-authenticate"]
    assert challenge == b"""Bearer realm="Prefect API", error="invalid_token", error_description="it 'expired'\""""


@pytest.mark.parametrize(("who", "status", "code"), TABLE)
def test_nginx_gets_401_or_403_and_the_real_status_beside(who: NoCredential | Refusal, status: int, code: str) -> None:
    answer = render(decide(REQUEST, who, Gate.API), Face.AUTH_REQUEST, Gate.API, "")
    headers = dict(answer.headers)
    assert answer.status in {401, 403}
    assert headers[b"x-auth-status"] == str(status).encode()
    assert headers[b"x-auth-detail"]
    assert headers[b"x-auth-redirect"] == b""
    assert headers[b"x-auth-body"] == answer.body


def test_a_page_reaches_nginx_as_one_harmless_line() -> None:
    who = MalformedRequest("zoë <b>\r\nX: y\x7f")
    browser = Browser(navigates=True, same_origin=True)
    answer = render(decide(REQUEST, who, Gate.UI, browser), Face.AUTH_REQUEST, Gate.UI, "", browser)
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
    answer = render(decide(REQUEST._replace(path=endpoint), NO_CREDENTIAL, Gate.API), Face.FORWARD_AUTH, Gate.API, "")
    assert answer.status == 401
    assert "PREFECT_CLIENT_CUSTOM_HEADERS" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("text", ["zoë", "a\r\nX: y", "a\x00b", "日本", "50%", "a,b", "\x7f"])
def test_row16_any_text_is_one_harmless_header_value(text: str) -> None:
    rendered = header_text(text)
    assert all(0x20 <= byte < 0x7F and byte != ord(",") for byte in rendered)
    assert unquote(rendered.decode()) == text


def test_row12_whoever_has_no_email_group_or_role_has_the_headers_all_the_same() -> None:
    headers = dict(render(Allow(Principal("i", "n")), Face.FORWARD_AUTH, Gate.API, "").headers)
    assert [headers[name] for name in IDENTITY_HEADERS] == [b"n", b"", b"", b"", b"i"]
