"""The verify endpoints as a proxy calls them: who passes, and that nobody else ever does."""

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.core.errors import Code
from service.settings import Settings
from service.web.app import create_app
from tests.support.issuer import Issuer as Provider
from tests.web.conftest import FORWARDED, Answer, Caller, basic, routes_of_pages

pytestmark = pytest.mark.anyio
ENDPOINTS = [f"/{face}/{gate}" for face in ("forward-auth", "auth-request") for gate in ("api", "jwt", "basic", "ui")]


def forms(provider: Provider) -> dict[str, str]:
    token = provider.mint()
    return {
        "form1": f"Bearer {token}",
        "form1-lower": f"bearer {token}",
        "form2": basic("alice:secret"),
        "form3": basic(f"anything:{token}"),
        "form4": basic(f"Bearer {token}"),
    }


@pytest.mark.parametrize("form", ["form1", "form1-lower", "form2", "form3", "form4"])
async def test_each_form_passes_the_gates_that_take_its_kind(form: str, call: Caller, provider: Provider) -> None:
    credential = forms(provider)[form]
    takes = {"api": True, "jwt": form != "form2", "basic": form == "form2", "ui": False}
    for gate, passes in takes.items():
        for _again in range(2):  # the second time from memory
            answer = await call(credential, f"/forward-auth/{gate}")
            assert answer.status == (200 if passes else 401), gate
            user = ("alice" if form == "form2" else "svc") if passes else ""
            assert answer.header("x-auth-request-user") == user
            assert answer.header("x-auth-request-roles") == (
                ("viewer" if form == "form2" else "worker") if passes else ""
            )


async def test_row37_another_site_does_nothing_with_a_password_that_a_browser_remembers(call: Caller) -> None:
    for foreign in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
        for _again in range(2):  # the second time from memory
            refused = await call(basic("alice:secret"), **foreign)
            assert (refused.status, refused.json()["code"]) == (403, "cross_origin")
            for sign in ({"sec_fetch_mode": "websocket"}, {"upgrade": "websocket"}):
                told = {"X_Forwarded_Method": "GET", "X_Forwarded_Uri": "/api/health", **foreign}
                assert (await call(basic("alice:secret"), **told)).status == 200
                refused = await call(basic("alice:secret"), **told, **sign)
                assert (refused.status, refused.json()["code"]) == (403, "cross_origin")
        assert (await call(basic("alice:secret"))).status == 200
    assert (await call(None, sec_fetch_mode="navigate")).header("www-authenticate").startswith("Bearer ")


@pytest.mark.parametrize("gate", ["api", "jwt", "basic", "ui"])
async def test_a_browser_that_asks_for_a_page_of_another_site_is_told_that_it_may_not_call(
    gate: str, call: Caller
) -> None:
    """A preflight has no credential (CORS), so it is no worse than any other call without one."""
    preflight = {"origin": "https://dashboard.example", "access_control_request_method": "POST"}
    for says in (preflight, {**preflight, "sec_fetch_mode": "cors", "sec_fetch_site": "cross-site"}):
        answer = await call(None, f"/forward-auth/{gate}", X_Forwarded_Method="OPTIONS", **says)
        assert (answer.status, answer.json()["code"]) == (401, "credential_required")
        assert answer.json()["detail"] == "Pages of other sites cannot call this host: call it from a program."
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]
    own = await call(None, f"/forward-auth/{gate}", X_Forwarded_Method="OPTIONS", origin="https://prefect.example.com")
    assert "other sites" not in own.json()["detail"]
    nginx = [(b"x-original-method", b"OPTIONS"), (b"x-original-url", b"https://h/api/flows/filter")]
    for path, headers in ((f"/auth-request/{gate}", nginx), (f"/ext-authz/{gate}/api/flows/filter", [(b"host", b"h")])):
        method = "GET" if "auth-request" in path else "OPTIONS"
        answer = await call.raw(path, [*headers, (b"origin", b"https://dashboard.example")], method)
        assert (answer.status, "Pages of other sites" in answer.json()["detail"]) == (401, True)


async def test_the_three_faces_give_one_verdict(call: Caller, provider: Provider) -> None:
    for credential, status in ((f"Bearer {provider.mint()}", 200), (None, 401), ("Bearer x", 401)):
        given = [] if credential is None else [(b"authorization", credential.encode())]
        nginx = [(b"x-original-method", b"POST"), (b"x-original-url", b"https://h/api/flows/filter?x=1")]
        assert (await call(credential)).status == status
        assert (await call.raw("/auth-request/api", given + nginx)).status == status
        assert (
            await call.raw("/ext-authz/api/api/flows/filter?x=1", [(b"host", b"h"), *given], "POST")
        ).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/ext-authz",
        "/ext-authz/",
        "/ext-authz/nix/api",
        "/forward-auth/",
        "/forward-auth/API",
        "/forward-auth/api/",
        "/x",
    ],
)
async def test_an_endpoint_that_does_not_exist_allows_nobody(path: str, call: Caller, provider: Provider) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    answer = await call.raw(path, [*headers, (b"host", b"h"), (b"authorization", f"Bearer {provider.mint()}".encode())])
    assert answer.status == 404
    assert answer.json()["code"] == "not_found"


async def test_envoys_path_is_judged_behind_the_prefix(call: Caller, provider: Provider) -> None:
    headers = [(b"host", b"h"), (b"authorization", f"Bearer {provider.mint()}".encode())]
    assert (await call.raw("/ext-authz/api", headers)).status == 400
    assert (await call.raw("/ext-authz/api//admin", headers)).status == 400
    assert (await call.raw("/ext-authz/api/api/../admin", headers)).status == 400
    assert (await call.raw("/ext-authz/api/", headers)).status == 200


@pytest.mark.parametrize("missing", FORWARDED)
async def test_row13_without_a_forwarded_header_nobody_passes(missing: str, call: Caller, provider: Provider) -> None:
    answer = await call(f"Bearer {provider.mint()}", **{missing.replace("-", "_"): None})
    assert answer.status == 400
    assert missing.lower() in answer.json()["detail"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-Method", "get"),
        ("X-Forwarded-Uri", "/api/%2e%2e/admin"),
        ("X-Forwarded-Uri", "//api"),
        ("X-Forwarded-Host", "a b"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-For", "localhost"),
    ],
)
async def test_row4_what_cannot_be_parsed_is_denied(header: str, value: str, call: Caller, provider: Provider) -> None:
    answer = await call(f"Bearer {provider.mint()}", **{header.replace("-", "_"): value})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")


async def test_row14_two_credentials_are_none(call: Caller, provider: Provider) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    good = (b"authorization", f"Bearer {provider.mint()}".encode())
    for other in (good, (b"authorization", basic("alice:secret").encode()), (b"authorization", b"")):
        assert (await call.raw("/forward-auth/api", [*headers, good, other])).status == 400


async def test_row15_only_trusted_proxies_may_ask(call: Caller, provider: Provider) -> None:
    for peer, status in (
        ("127.0.0.1", 200),
        ("10.1.2.3", 200),
        ("::1", 200),
        ("8.8.8.8", 403),
        ("2001:db8::1", 403),
    ):
        call.peer = peer
        answer = await call(f"Bearer {provider.mint()}")
        assert answer.status == status, peer
    assert answer.json()["code"] == "untrusted_proxy"


PROBES = ["/healthz", "/readyz"]


@pytest.mark.parametrize("uds", [False, True], ids=["tcp", "unix-socket"])
@pytest.mark.parametrize("peer", ["", "8.8.8.8"])
async def test_row15_only_the_probes_answer_a_stranger_and_no_address_is_trusted_at_a_unix_socket_alone(
    settings: dict[str, Any], tmp_path: Path, peer: str, *, uds: bool
) -> None:
    app = create_app(Settings(**settings, **({"uds": tmp_path / "gate.sock"} if uds else {})))
    await app.start()
    verify = [(endpoint, "GET") for endpoint in ENDPOINTS]
    operations = [("/metrics", "GET"), ("/openapi.json", "GET")]
    elsewhere = [("/", "GET"), ("/_auth", "GET"), ("/_auth/", "GET"), ("/_auth/x", "POST"), ("/docs", "GET")]
    caller = Caller(app, peer)
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    for path, method in (*routes_of_pages(app), *verify, ("/ext-authz/api/api/flows", "GET"), *operations, *elsewhere):
        answer = await caller.raw(path, [*headers, (b"host", b"h")], method)
        is_trusted = not (answer.status == 403 and answer.json()["code"] == "untrusted_proxy")
        assert is_trusted == (uds and not peer), (method, path)
    for path in PROBES:
        assert (await caller.raw(path, [])).status == 200
    await app.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User-Agent", "kube-probe/1.30"),
        ("User-Agent", "GoogleHC/1.0"),
        ("X-Auth-Request-User", "admin"),
        ("X_Auth_Request_User", "admin"),
        ("X-Forwarded-User", "admin"),
        ("X-Original-Url", "http://h/api/health"),
        ("Cookie", "session=%%%"),
        ("X-Forwarded-Uri", "/api/health"),
        ("X-Forwarded-Uri", "/healthz"),
        ("X-Forwarded-Uri", "/api/flows/filter?x=/api/health"),
        ("X-Forwarded-Method", "OPTIONS"),
    ],
)
async def test_rows_6_9_18_nothing_but_a_credential_opens_a_gate(name: str, value: str, call: Caller) -> None:
    for endpoint in ("/forward-auth/api", "/forward-auth/jwt", "/forward-auth/basic", "/forward-auth/ui"):
        answer = await call(None, endpoint, **{name.replace("-", "_"): value})
        assert answer.status == 401
        assert answer.header("x-auth-request-user") == ""


async def test_the_peoples_gate_never_pops_the_browsers_prompt(call: Caller, provider: Provider) -> None:
    for credential in (None, basic("alice:secret"), f"Bearer {provider.mint()}", "Basic !!!"):
        answer = await call(credential, "/forward-auth/ui")
        assert answer.status == 401
        assert "www-authenticate" not in dict(answer.headers)
        assert answer.json()["detail"]


async def test_a_prefix_of_a_good_token_is_not_good(call: Caller, provider: Provider) -> None:
    token = provider.mint()
    assert (await call(f"Bearer {token}")).status == 200
    for bad in (token[:-1], token + "A", token.upper(), token.split(".")[0], f"{token} "):
        answer = await call(f"Bearer {bad}")
        assert answer.status == (200 if bad == f"{token} " else 401), bad


async def test_the_answer_says_what_to_do_next(call: Caller, provider: Provider) -> None:
    expired = await call(f"Bearer {provider.mint(exp=1, iat=1)}")
    assert expired.json()["detail"].startswith("This token expired")
    cloud = await call("Bearer pnu_0123456789abcdef")
    assert "access token of your identity provider" in cloud.json()["detail"]
    assert "PREFECT_API_AUTH_STRING" in (await call(basic("alice:wrong"))).json()["detail"]
    assert "jwt:<token>" in (await call(basic(provider.mint()))).json()["detail"]


WANTED = {  # what the issuer's tokens must have, what a token has: what its sender is told
    "another-audience": (
        {"audiences": "prefect"},
        {"aud": "billing"},
        "This token is for another audience. Request it for 'prefect'.",
    ),
    "no-audience": (
        {"audiences": "prefect"},
        {"aud": None},
        "This token names no audience. Request it for 'prefect'.",
    ),
    "several-audiences": (
        {"audiences": "d,b,a,c"},
        {"aud": ["billing"]},
        "This token is for another audience. Request it for 'a' or 'b' or 'c'.",
    ),
    "type": (
        {"audiences": "prefect"},
        {"aud": "prefect", "typ_": "secevent+jwt"},
        "This token's type is not accepted here. Send an access token whose 'typ' is 'at+jwt' or 'jwt' or missing.",
    ),
    "scope": (
        {"audiences": "prefect", "required_scopes": "b,a"},
        {"aud": "prefect", "scope": "a"},
        "This token lacks the scope 'b': request it when you obtain the token.",
    ),
    "claim": (
        {"audiences": "prefect", "required_claims": {"tenant": ["acme-internal"]}},
        {"aud": "prefect", "tenant": "other"},
        "This token's claim 'tenant' is missing or is not one that is accepted here.",
    ),
    "party": (
        {"audiences": "prefect", "authorized_parties": "acme-internal"},
        {"aud": "prefect", "azp": "other"},
        "This token was issued to a client that is not accepted here.",
    ),
}


@pytest.mark.parametrize(("trust", "claims", "told"), WANTED.values(), ids=WANTED)
async def test_who_sends_a_token_that_is_not_for_here_is_told_what_to_request(
    provider: Provider, trust: dict[str, Any], claims: dict[str, Any], told: str
) -> None:
    app = create_app(Settings(issuer={"url": provider.url, "role": "worker", **trust}))
    await app.start()
    header = {"typ": claims["typ_"]} if "typ_" in claims else {}
    token = provider.mint(header=header, **{name: value for name, value in claims.items() if name != "typ_"})
    answer = await Caller(app)(f"Bearer {token}")
    assert (answer.status, answer.json()["detail"]) == (401, told)
    assert "acme-internal" not in str(answer.headers) + answer.body.decode()
    stranger = Provider("RS256").mint(iss=provider.url, header=header, aud="billing")
    assert "Request it for" not in (await Caller(app)(f"Bearer {stranger}")).json()["detail"]
    await app.stop()


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_token_that_is_bound_to_a_key_is_no_bearer_token_unless_its_issuer_may_bind_them(
    provider: Provider, *, allowed: bool
) -> None:
    trust = {"allow_sender_constrained": True} if allowed else {}
    app = create_app(Settings(issuer={"url": provider.url, "audiences": "prefect", "role": "worker", **trust}))
    await app.start()
    caller = Caller(app)
    for binding in (
        {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
        {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o"},
    ):
        token = provider.mint(cnf=binding)
        for form in (f"Bearer {token}", basic(f"jwt:{token}")):
            answer = await caller(form)
            assert answer.status == (200 if allowed else 401)
            assert allowed or "bound to a key of its client" in answer.json()["detail"]
    assert (await caller(f"Bearer {provider.mint(cnf={'jwk': {}})}")).status == 401
    refused = await caller(f"DPoP {provider.mint()}", dpop="x.y.z")
    assert (refused.status, refused.json()["code"]) == (400, "invalid_request")
    assert "Bearer <JWT>" in refused.json()["detail"]
    await app.stop()


TOKEN, PASSWORD = "Bearer <token>", "Basic <base64 of user:password>"
AS_PREFECT = {  # User-Agent: what a token, and a password, are to be sent as
    "prefect/3.9.1 (API 0.8.4)": ("PREFECT_CLIENT_CUSTOM_HEADERS", TOKEN, PASSWORD),
    "prefect/3.4.8 (API 0.8.4)": ("PREFECT_CLIENT_CUSTOM_HEADERS", TOKEN, PASSWORD),
    "prefect/3.4.7 (API 0.8.4)": ("PREFECT_API_URL", "//jwt:<token>@", "//user:password@"),
    "Python/3.11 websockets/16.1.1": ("PREFECT_API_URL", "//jwt:<token>@", "//user:password@"),
    "": ("PREFECT_API_URL", "//jwt:<token>@", "//user:password@"),
}


@pytest.mark.parametrize(("user_agent", "form"), AS_PREFECT.items(), ids=AS_PREFECT)
async def test_who_sends_nothing_is_told_the_form_that_works_on_their_version(
    call: Caller, user_agent: str, form: tuple[str, str, str]
) -> None:
    setting, token, password = form
    for gate, wanted, not_wanted in (
        ("api", (token, password), ()),
        ("jwt", (token,), (password,)),
        ("basic", (password,), (token,)),
    ):
        answer = await call(None, f"/forward-auth/{gate}", User_Agent=user_agent or None)
        told = answer.json()["detail"]
        assert answer.status == 401
        assert f"Set {setting} to" in told
        assert all(one in told for one in wanted), told
        assert not any(one in told for one in not_wanted), told
        assert "PREFECT_API_KEY" not in told
    not_a_jwt = (await call("Bearer pnu_0123456789abcdef", User_Agent=user_agent or None)).json()["detail"]
    assert f"Set {setting} to" in not_a_jwt
    websocket = await call(None, User_Agent=user_agent or None, X_Forwarded_Uri="/api/events/in")
    assert f"Set {setting} to" in websocket.json()["detail"]
    nginx = [(b"x-original-method", b"POST"), (b"x-original-url", b"https://h/api/flows/filter")]
    detail = (await call.raw("/auth-request/api", [*nginx, (b"user-agent", user_agent.encode())])).header(
        "x-auth-detail"
    )
    assert f"Set {setting} to" in unquote(detail)


async def test_a_cold_issuer_is_503_with_retry_after_and_others_are_served(users_file: Path) -> None:
    gone = Provider("RS256")
    cold = create_app(
        Settings(issuer={"url": gone.url, "audiences": "prefect"}, users={"file": users_file, "role": "viewer"})
    )
    await cold.start()
    try:
        caller = Caller(cold)
        answer = await caller(f"Bearer {gone.mint()}")
        assert (answer.status, answer.json()["code"]) == (503, "issuer_unavailable")
        assert int(answer.header("retry-after")) >= 1
        assert (await caller(basic("alice:secret"))).status == 200
        state = await caller.raw("/readyz", [])
        assert state.status == 200
        assert state.json()["status"] == "degraded"
        assert state.json()["issuers"][gone.url]["state"] == "cold"
    finally:
        await cold.stop()


async def test_two_issuers_are_kept_apart() -> None:
    with Provider("RS256") as first, Provider("ES256") as second:
        issuers = [
            {"url": first.url, "audiences": ["a"], "role": "worker"},
            {
                "url": second.url,
                "audiences": ["b"],
                "role": "viewer",
                "jwks_url": second.jwks_url,
                "algorithms": ["ES256"],
            },
        ]
        app = create_app(Settings(issuers=issuers))
        await app.start()
        try:
            caller = Caller(app)
            assert (await caller(f"Bearer {first.mint(aud='a')}")).header("x-auth-request-issuer") == first.url
            assert (await caller(f"Bearer {second.mint(aud='b')}")).header("x-auth-request-issuer") == second.url
            assert (await caller(f"Bearer {first.mint(aud='b')}")).status == 401
            assert (await caller(f"Bearer {first.mint(aud='b', iss=second.url, iat=1)}")).status == 401
            assert (await caller(f"Bearer {second.mint(aud='a', iss=first.url, iat=1)}")).status == 401
            assert (await caller(basic("alice:secret"))).status == 401
        finally:
            await app.stop()


async def test_an_exception_in_the_gate_is_a_refusal_and_no_traceback(
    call: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call.app.wiring.tokens, "authenticating", lambda *_: 1 / 0)
    answer = await call(f"Bearer {provider.mint()}")
    assert (answer.status, answer.json()["code"]) == (503, "internal_error")
    assert "Traceback" not in answer.body.decode()
    assert "ZeroDivision" not in answer.body.decode()


async def test_a_fault_behind_the_gate_is_503_too(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call.app.wiring.telemetry, "allowed", None)
    answer = await call.raw("/metrics", [])
    assert (answer.status, answer.json()["code"]) == (503, "internal_error")
    assert "Traceback" not in answer.body.decode()


async def test_row17_no_secret_is_logged_or_answered(
    call: Caller, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    call.app.wiring.telemetry.log_allowed = True
    stranger = Provider("RS256")
    secrets = [provider.mint(), stranger.mint(iss=provider.url), provider.mint(exp=1, iat=1), "hunter2-hunter2"]
    with caplog.at_level(logging.DEBUG):
        for token in secrets:
            for credential in (
                f"Bearer {token}",
                basic(f"jwt:{token}"),
                basic(f"alice:{token}"),
                basic(f"{token}:x"),
            ):
                answer = await call(credential, X_Forwarded_Uri=f"/api/x?token={token}")
                assert not any(part in str(answer.headers) + answer.body.decode() for part in (token, token[-20:]))
    lines = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "/api/x" in lines
    assert not any(token[-20:] in lines for token in secrets)


async def test_websockets_without_a_credential_are_counted_and_named_in_the_log(
    call: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await call(None, X_Forwarded_Uri="/api/events/in", X_Forwarded_Proto="wss")).status == 401
    assert call.app.wiring.telemetry.websockets_refused == {"events/in": 3}
    assert caplog.text.count("PREFECT_CLIENT_CUSTOM_HEADERS") == 1
    metrics = (await call.raw("/metrics", [])).body.decode()
    assert 'forward_auth_websocket_refused_total{endpoint="events/in"} 3.0' in metrics
    assert 'forward_auth_decisions_total{gate="api",outcome="credential_required"} 3.0' in metrics


async def test_row38_operations_are_for_trusted_peers(call: Caller) -> None:
    assert (await call.raw("/metrics", [])).status == 200
    assert (await call.raw("/openapi.json", [])).json()["info"]["title"] == "prefect-forward-auth"
    call.peer = "8.8.8.8"
    for path in ("/metrics", "/openapi.json"):
        assert (await call.raw(path, [])).status == 403
    assert (await call.raw("/healthz", [])).status == 200


async def test_a_flood_of_refusals_is_no_flood_of_log_lines(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(500):
            await call(None)
    assert 100 <= sum(record.message == "refused" for record in caplog.records) <= 300
    assert call.app.wiring.telemetry.refused.total() == 500


HEADER_NAMES = [*FORWARDED, "Authorization", "Cookie", "X-Original-Method", "X-Original-Url", "Host", "X-Other"]


@hypothesis_settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    endpoint=st.sampled_from([*ENDPOINTS, "/ext-authz/api/api/flows", "/ext-authz/ui/x"]),
    headers=st.lists(
        st.tuples(
            st.sampled_from([name.lower().encode() for name in HEADER_NAMES]),
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from([value.encode() for value in FORWARDED.values()]),
                st.sampled_from(
                    [b"Bearer ", b"Basic ", b"Bearer eyJhbGciOiJub25lIn0.e30.", b"Basic YWxpY2U6c2VjcmV0Cg=="]
                ),
            ),
        ),
        max_size=9,
    ),
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]),
)
async def test_no_headers_ever_yield_allow_without_a_valid_credential(
    call: Caller, endpoint: str, headers: list[tuple[bytes, bytes]], method: str
) -> None:
    answer: Answer = await call.raw(endpoint, headers, method)
    assert answer.status in {400, 401, 403, 503, 429}
    assert answer.json()["code"] in set(Code)
    assert "Traceback" not in answer.body.decode()
    assert answer.status != 503
    assert all(answer.header(f"x-auth-request-{one}") == "" for one in ("user", "email", "groups", "roles", "issuer"))
    json.dumps(answer.json())
