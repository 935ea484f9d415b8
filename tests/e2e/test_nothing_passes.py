"""Without a valid credential nothing reaches Prefect, and the service's own endpoints are not on the outside."""

from __future__ import annotations

import json

import pytest

from tests.support.issuer import Issuer
from tests.support.machine_socket import STRANGER, closing, open_socket, send_token
from tests.support.openid import AUDIENCE, OpenIDProvider
from tests.support.raw_http import Answer, basic, bearer, handshake, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, USER, Site

HTTP_PATHS = [
    ("GET", "/api/health"),
    ("GET", "/api/admin/version"),
    ("GET", "/api/csrf-token"),
    ("POST", "/api/flows/filter"),
    ("DELETE", "/api/flows/x"),
    ("OPTIONS", "/api/flows/filter"),
    ("GET", "/api"),
    ("GET", "/api/"),
    ("GET", "/api/%66lows/count"),
]
WEBSOCKET_PATHS = [
    "/api/events/in",
    "/api/events/out",
    "/api/logs/out",
    "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/any/workers/connect",
]
OWN_PATHS = [
    "/forward-auth/api",
    "/forward-auth/jwt",
    "/forward-auth/basic",
    "/forward-auth/ui",
    "/auth-request/api",
    "/ext-authz/api/x",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/relay/api/api/events/in",
    "/gate-away",
]
DETOURS = ["/_auth/..{}", "/_auth/%2e%2e{}", "/_auth/..%2f{}", "/_auth/.%2e/{}", "/_auth/..;{}", "//_auth/../{}"]


def forged(kind: str, provider: OpenIDProvider) -> list[tuple[str, str]]:
    """Return the Authorization headers of one kind of caller without a valid credential."""
    if kind == "nothing":
        return []
    if kind == "wrong-password":
        return [basic(USER, PASSWORD + "!")]
    if kind == "unknown-user":
        return [basic("nobody", PASSWORD)]
    if kind == "rubbish":
        return [bearer("rubbish")]
    # Everything right but the key: what only the signature can tell.
    token = Issuer("RS256").mint(iss=provider.url, aud=AUDIENCE, header={"kid": "rs256-1"})
    return [bearer(token)] if kind == "forged-jwt" else [basic("jwt", token)]


FORGERIES = ["nothing", "wrong-password", "unknown-user", "rubbish", "forged-jwt", "forged-jwt-as-password"]


def assert_refused(answer: Answer, *codes: str) -> None:
    """Assert the service's own refusal: 401, JSON, a code, and a sentence."""
    assert answer.status == 401, answer
    body = json.loads(answer.body)
    assert set(body) >= {"detail", "code", "request_id"}, body
    assert body["detail"], body
    assert not codes or body["code"] in codes, body


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize(("method", "path"), HTTP_PATHS)
def test_machines_host_refuses_http(
    method: str, path: str, forgery: str, site: Site, openid_provider: OpenIDProvider
) -> None:
    assert_refused(send(site.port, MACHINES, path, forged(forgery, openid_provider), method=method))


@pytest.mark.parametrize("forgery", [forgery for forgery in FORGERIES if forgery != "nothing"])
@pytest.mark.parametrize("path", WEBSOCKET_PATHS)
def test_machines_host_refuses_websockets(path: str, forgery: str, site: Site, openid_provider: OpenIDProvider) -> None:
    assert_refused(handshake(site.port, MACHINES, path, forged(forgery, openid_provider)))


@pytest.mark.parametrize("token", [None, "svc-workers:wrong", "rubbish", "jwt:rubbish"])
@pytest.mark.parametrize("path", WEBSOCKET_PATHS)
def test_machines_host_closes_websockets_whose_first_message_is_no_credential(
    path: str, token: str | None, site: Site
) -> None:
    with open_socket(site.port, MACHINES, path, source=STRANGER) as connection:
        send_token(connection, token)
        code, reason = closing(connection)
    assert (code, bool(reason)) == (1008, True)


@pytest.mark.parametrize("path", WEBSOCKET_PATHS)
def test_machines_host_opens_websockets_to_a_credential_in_the_first_message(
    path: str, site: Site, openid_provider: OpenIDProvider
) -> None:
    token = openid_provider.token()
    for one in (f"{USER}:{PASSWORD}", f"jwt:{token}", token, f"Bearer {token}"):
        with open_socket(site.port, MACHINES, path, source=STRANGER) as connection:
            send_token(connection, one)
            assert json.loads(connection.recv(10)) == {"type": "auth_success"}


@pytest.mark.parametrize("path", WEBSOCKET_PATHS)
def test_machines_host_opens_websockets_to_a_credential(path: str, site: Site, openid_provider: OpenIDProvider) -> None:
    """The counterpart, without which a gate that refuses everybody would pass."""
    for header in (basic(USER, PASSWORD), bearer(openid_provider.token()), basic("jwt", openid_provider.token())):
        assert handshake(site.port, MACHINES, path, [header]).status == 101


def test_machines_host_opens_http_to_a_credential(site: Site, openid_provider: OpenIDProvider) -> None:
    for header in (basic(USER, PASSWORD), bearer(openid_provider.token()), basic("jwt", openid_provider.token())):
        answer = send(site.port, MACHINES, "/api/admin/version", [header])
        assert (answer.status, answer.body) == (200, b'"3.9.1"')


@pytest.mark.parametrize("path", ["/", "/v2/", "/ui-settings", "/docs", "/openapi.json", "/apix", "/api%2fhealth"])
def test_machines_host_has_nothing_but_the_api(path: str, site: Site) -> None:
    assert send(site.port, MACHINES, path, [basic(USER, PASSWORD)]).status in {400, 404}


@pytest.mark.parametrize("path", ["/", "/v2/", "/docs", "/api/health", "/api/flows/filter", "/_auth"])
def test_people_host_takes_no_machine_credential(path: str, site: Site, openid_provider: OpenIDProvider) -> None:
    for headers in ([], [basic(USER, PASSWORD)], [bearer(openid_provider.token())]):
        answer = send(site.port, PEOPLE, path, headers)
        assert_refused(answer)
        challenge = answer.header("WWW-Authenticate") or ""
        assert "basic" not in challenge.lower(), "a browser would pop up its own password prompt"


def test_people_host_answers_for_the_settings_of_the_ui_without_prefect(site: Site) -> None:
    """Without them the UI could not show that nobody is signed in; they are the service's own words."""
    sent_on = send(site.port, PEOPLE, "/ui-settings", [basic(USER, PASSWORD)])
    assert (sent_on.status, sent_on.header("Location")) == (302, "/_auth/ui-settings")


@pytest.mark.parametrize("path", WEBSOCKET_PATHS)
def test_people_host_refuses_websockets(path: str, site: Site) -> None:
    assert_refused(handshake(site.port, PEOPLE, path, [basic(USER, PASSWORD)]))


@pytest.mark.parametrize("path", OWN_PATHS)
def test_own_endpoints_are_not_on_the_outside(path: str, site: Site) -> None:
    """Neither host routes to them; a caller who could reach the verify endpoints could try passwords unseen."""
    inside = send(site.service_port, "127.0.0.1", "/healthz")
    assert inside.status == 200, "they are there, on the internal network"
    credential = [basic(USER, PASSWORD)]
    assert send(site.port, MACHINES, path, credential).status == 404
    assert_refused(send(site.port, PEOPLE, path, credential))


@pytest.mark.parametrize("detour", DETOURS)
@pytest.mark.parametrize("path", ["/forward-auth/api", "/metrics", "/healthz"])
def test_no_detour_through_the_sign_in_pages(detour: str, path: str, site: Site) -> None:
    answer = send(site.port, PEOPLE, detour.format(path), [basic(USER, PASSWORD)])
    assert answer.status in {400, 401, 404}, answer
    assert b"forward_auth_" not in answer.body


@pytest.mark.parametrize("host", ["", "other.example", "127.0.0.1.example", "LOCALHOST.", "localhost@127.0.0.1"])
def test_other_hosts_lead_nowhere(host: str, site: Site) -> None:
    answer = send(site.port, host, "/api/health", [basic(USER, PASSWORD)])
    assert answer.status in {400, 401, 404}, answer
