"""Roles at the real gate: who is given which, what they open, and what those who lack one are told."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.core.prefect.secret_flags import MAX_BODY
from service.settings import Settings
from service.web.app import create_app
from tests.support.issuer import Issuer as Provider
from tests.web.conftest import FORWARDED, SESSION_KEY, Answer, Caller, Person, basic, shown

pytestmark = pytest.mark.anyio

READ, WRITE = "/api/flows/filter", "/api/deployments/"
BLOCKS = "/api/block_documents/filter"


@asynccontextmanager
async def gate(**settings: Any) -> AsyncIterator[Caller]:
    app = create_app(Settings(**settings))
    await app.start()
    try:
        yield Caller(app)
    finally:
        await app.stop()


def of(provider: Provider, users_file: Path, *grants: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return settings with an issuer and a users file that give nobody a role by themselves."""
    return {
        "issuer": {"url": provider.url, "audiences": "prefect"},
        "users": {"file": users_file},
        "grants": grants,
        **more,
    }


# no grant, no role ----------------------------------------------------------------------------------------


async def test_whoever_has_no_role_gets_nothing_and_reads_why(provider: Provider, users_file: Path) -> None:
    async with gate(**of(provider, users_file)) as call:
        for credential, name, issuer in (
            (basic("alice:secret"), "alice", "local"),
            (f"Bearer {provider.mint()}", "svc", provider.url),
        ):
            for target in (READ, "/api/health", "/", "/v2/dashboard", "/api/nothing"):
                method = "POST" if target == READ else "GET"
                answer = await call(credential, X_Forwarded_Uri=target, X_Forwarded_Method=method)
                assert (answer.status, answer.json()["code"]) == (403, "insufficient_scope"), target
                assert answer.header("x-auth-request-user") == ""
            told = (await call(credential)).json()["detail"]
            assert told == (
                f"You are {name!r} of {issuer}, without a role here. POST /api/flows/filter needs 'read'. "
                "Ask for the role viewer, runner, worker, deployer or admin."
            )


async def test_a_role_that_is_not_enough_is_named_with_those_that_are(provider: Provider, users_file: Path) -> None:
    grants = {"issuer": "local", "roles": "runner"}
    async with gate(**of(provider, users_file, grants)) as call:
        alice = basic("alice:secret")
        assert (await call(alice)).status == 200
        refused = await call(alice, X_Forwarded_Uri=WRITE)
        assert refused.status == 403
        assert refused.json()["detail"] == (
            "You are 'alice' of local, with the role runner. POST /api/deployments/ needs 'deploy'. "
            "Ask for the role deployer or admin."
        )


# grants ---------------------------------------------------------------------------------------------------

BY = {
    "everybody": ({}, {}, True),
    "user": ({"users": ["svc"]}, {}, True),
    "user-glob": ({"users": ["s*"]}, {}, True),
    "other-user": ({"users": ["svd"]}, {}, False),
    "group": ({"groups": ["data-*"]}, {"groups": ["x", "data-eng"]}, True),
    "other-group": ({"groups": ["data-*"]}, {"groups": ["x"]}, False),
    "client": ({"clients": ["ci"]}, {"azp": "ci"}, True),
    "other-client": ({"clients": ["ci"]}, {"azp": "cd"}, False),
    "scopes": ({"scopes": "a,b"}, {"scope": "b c a"}, True),
    "one-scope-of-two": ({"scopes": "a,b"}, {"scope": "a"}, False),
    "claim": ({"claims": {"team": ["data", "ops"]}}, {"team": "ops"}, True),
    "nested-claim": ({"claims": {"realm.roles": {"all_of": ["x", "y"]}}}, {"realm": {"roles": ["y", "x"]}}, True),
    "half-a-claim": ({"claims": {"realm.roles": {"all_of": ["x", "y"]}}}, {"realm": {"roles": ["y"]}}, False),
    "no-claim": ({"claims": {"team": "data"}}, {}, False),
    "both": ({"users": "svc", "claims": {"ref": {"glob": ["refs/heads/*"]}}}, {"ref": "refs/heads/main"}, True),
    "one-of-both": ({"users": "svc", "claims": {"ref": {"glob": ["refs/heads/*"]}}}, {"ref": "refs/tags/1"}, False),
}


@pytest.mark.parametrize(("conditions", "claims", "holds"), BY.values(), ids=BY)
async def test_a_token_is_granted_what_its_claims_earn(
    conditions: dict[str, Any], claims: dict[str, Any], provider: Provider, users_file: Path, *, holds: bool
) -> None:
    grant = {"issuer": provider.url, "roles": "deployer", **conditions}
    async with gate(**of(provider, users_file, grant)) as call:
        for _again in range(2):  # the second time from memory
            answer = await call(f"Bearer {provider.mint(**claims)}", X_Forwarded_Uri=WRITE)
            assert answer.status == (200 if holds else 403)
            assert answer.header("x-auth-request-roles") == ("deployer" if holds else "")


async def test_a_grant_is_for_one_issuer_alone(provider: Provider, users_file: Path) -> None:
    local = {"issuer": "local", "users": "alice", "roles": "admin"}
    async with gate(**of(provider, users_file, local)) as call:
        passed = await call(basic("alice:secret"), X_Forwarded_Uri=WRITE)
        assert (passed.status, passed.header("x-auth-request-roles")) == (200, "admin")
        assert (await call(f"Bearer {provider.mint(sub='alice')}", X_Forwarded_Uri=WRITE)).status == 403


async def test_roles_add_up(provider: Provider, users_file: Path) -> None:
    grants = [{"issuer": "local", "roles": one} for one in ("viewer", "runner,viewer")]
    settings = of(provider, users_file, *grants)
    settings["users"]["role"] = "worker"
    async with gate(**settings) as call:
        assert (await call(basic("alice:secret"))).header("x-auth-request-roles") == "worker,viewer,runner"


async def test_a_session_has_the_roles_of_now(people_file: Path) -> None:
    settings: dict[str, Any] = {"users": {"file": people_file}, "session": {"keys": SESSION_KEY}}
    viewer, deployer = ({"users": "alice", "roles": role} for role in ("viewer", "deployer"))
    async with gate(**settings, grants=[viewer]) as before, gate(**settings, grants=[deployer]) as after:
        person = Person(before.app)
        await person.sign_in()
        assert (await person.fetch(READ)).headers["x-auth-request-roles"] == "viewer"
        assert (await person.fetch(WRITE)).status_code == 403
        restarted = Person(after.app)
        restarted.client.cookies = person.client.cookies
        assert (await restarted.fetch(WRITE)).headers["x-auth-request-roles"] == "deployer"
        told = await restarted.client.get("/_auth/me", headers=restarted._routed())
        assert told.json()["roles"] == ["deployer"]
    async with gate(**settings) as without:
        nobody = Person(without.app)
        nobody.client.cookies = person.client.cookies
        assert (await nobody.fetch(READ)).status_code == 403


async def test_who_has_no_role_reads_who_they_are_and_whom_to_ask(people_file: Path) -> None:
    settings: dict[str, Any] = {
        "users": {"file": people_file},
        "session": {"keys": SESSION_KEY},
        "sign_in": {"title": "Data platform", "help": "Ask the data team."},
    }
    async with gate(**settings) as call:
        person = Person(call.app)
        nobody = await person.open("/_auth/denied")
        assert (nobody.status_code, nobody.headers["location"]) == (303, "/_auth/login")
        await person.sign_in()
        refused = await person.ask("/v2/dashboard")
        assert (refused.status_code, 'href="/_auth/denied"' in refused.text) == (403, True)
        for told in ("Data platform", "without a role here", "Ask the data team.", "Use another account"):
            assert told in shown(refused), told
        assert "script-src 'self'" in refused.headers["content-security-policy"]
        page = await person.open("/_auth/denied")
        assert page.status_code == 403
        for told in ("alice", "local", "no role here", "Ask the data team.", "Use another account"):
            assert told in shown(page), told
        assert 'href="/_auth/login?return_to=%2F"' in page.text
        me = await person.open("/_auth/me")
        assert 'href="/_auth/denied"' in me.text
        for here in (page, me):
            assert 'href="/"' not in here.text  # where one is refused again
        assert (await person.open("/_auth/login")).status_code == 200
    async with gate(**settings, grants=[{"roles": "viewer"}]) as call:
        allowed = Person(call.app)
        allowed.client.cookies = person.client.cookies
        page = await allowed.open("/_auth/denied")
        assert "takes more than your roles" in shown(page)
        for here in (page, await allowed.open("/_auth/me")):
            assert 'href="/">Open Data platform</a>' in here.text


async def test_what_prefects_ui_shows_to_a_person_is_written_for_one(people_file: Path) -> None:
    settings: dict[str, Any] = {"users": {"file": people_file, "role": "viewer"}, "session": {"keys": SESSION_KEY}}
    async with gate(**settings) as call:
        person = Person(call.app)
        await person.sign_in()
        told = (await person.fetch(WRITE)).json()["detail"]
        assert told == (
            "You are signed in as alice, with the role viewer. This takes the right to create and change flows, "
            "deployments and schedules, and create automations. Ask for the role deployer."
        )


# secrets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ("", True),
        ("?include_secrets=false", True),
        ("?include_secrets=true", False),
        ("?include_secrets=1", False),
        ("?include%5Fsecrets=TRUE", False),
        ("?include_secrets=false&include_secrets=true", False),
    ],
)
async def test_secrets_in_a_query_need_their_own_right(query: str, call: Caller, *, passes: bool) -> None:
    target = f"/api/block_documents/6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d{query}"
    answer = await call(basic("alice:secret"), X_Forwarded_Method="GET", X_Forwarded_Uri=target)
    assert answer.status == (200 if passes else 403)
    if not passes:
        assert "include_secrets needs 'read-secret'" in answer.json()["detail"]


async def ask_for_blocks(call: Caller, authorization: str, body: tuple[bytes, ...] | None) -> Answer:
    """Ask as a proxy does that sends the body along, or as one that does not."""
    given = {**FORWARDED, "X-Forwarded-Uri": BLOCKS, "Authorization": authorization}
    if body is not None:
        given["Content-Length"] = str(sum(map(len, body)))
    headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    return await call.raw("/forward-auth/api", headers, body=body or ())


BODIES: dict[str, tuple[tuple[bytes, ...] | None, int]] = {
    "plain": ((b'{"limit": 5}',), 200),
    "says-no": ((b'{"include_secrets": false}',), 200),
    "in-chunks": ((b'{"include_', b'secrets": fal', b"se}"), 200),
    "asks": ((b'{"include_secrets": true}',), 403),
    "asks-in-chunks": ((b'{"include_', b'secrets": tr', b"ue}"), 403),
    "asks-in-disguise": ((b'{"include_\\u0073ecrets": 1}',), 403),
    "not-json": ((b"include_secrets",), 403),
    "empty": ((b"",), 403),
    "absent": (None, 403),
    "as-long-as-may-be": ((b'{"a": "' + b"x" * (MAX_BODY - 9) + b'"}',), 200),
    "too-long": ((b'{"a": "' + b"x" * (MAX_BODY - 8) + b'"}',), 403),
    "too-long-in-chunks": ((b'{"a": "', *[b"x" * 1024] * 65, b'"}'), 403),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
async def test_secrets_in_a_body_are_judged_where_it_is_sent(
    body: tuple[bytes, ...] | None, status: int, call: Caller, provider: Provider
) -> None:
    for _again in range(2):  # nothing of a body is remembered
        refused_or_not = await ask_for_blocks(call, basic("alice:secret"), body)
        assert refused_or_not.status == status
        if body is None:
            assert "which the proxy does not send here" in refused_or_not.json()["detail"]
        assert (await ask_for_blocks(call, f"Bearer {provider.mint()}", body)).status == 200  # as a worker


async def test_a_body_that_does_not_decide_is_not_waited_for(call: Caller) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    headers += [(b"authorization", basic("alice:secret").encode()), (b"content-length", b"9")]
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked = True
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/forward-auth/api", "headers": headers, "client": ("::1", 1)}
    await call.app(scope, receive, send)
    assert (sent[0]["status"], asked) == (200, False)


# routes of one's own, limits, and what is not known -------------------------------------------------------


async def test_a_role_of_ones_own_opens_what_it_names(provider: Provider, users_file: Path) -> None:
    roles = {
        "night": {"capabilities": "work", "work_pools": "night-*"},
        "resumer": {"routes": "POST /api/flow_runs/{id}/resume"},
    }
    grants = [{"issuer": "local", "roles": "night,resumer"}]
    async with gate(**of(provider, users_file, *grants, roles=roles)) as call:
        alice, an_id = basic("alice:secret"), "6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d"

        async def status(target: str) -> int:
            return (await call(alice, X_Forwarded_Uri=target)).status

        assert await status(f"/api/flow_runs/{an_id}/resume") == 200
        assert await status(f"/api/flow_runs/{an_id}/input") == 403
        assert await status("/api/work_pools/night-1/get_scheduled_flow_runs") == 200
        refused = await call(alice, X_Forwarded_Uri="/api/work_pools/day-1/get_scheduled_flow_runs")
        assert refused.status == 403
        assert "open to you for other names than the one in this path" in refused.json()["detail"]


async def test_what_is_not_known_is_for_admin_alone_counted_and_logged_once(
    provider: Provider, users_file: Path, logged: Callable[[], str]
) -> None:
    grants = [{"issuer": "local", "roles": "admin"}, {"issuer": provider.url, "roles": "worker,deployer"}]
    async with gate(**of(provider, users_file, *grants)) as call:
        for _ in range(2):
            for target in ("/api/brand_new/filter", "/api/flows/Filter"):
                refused = await call(f"Bearer {provider.mint()}", X_Forwarded_Uri=target)
                assert refused.status == 403
                assert "as no known route of Prefect's" in refused.json()["detail"]
            assert (await call(basic("alice:secret"), X_Forwarded_Uri="/api/brand_new/filter")).status == 200
        assert (await call(None, X_Forwarded_Uri="/api/scanned-by-a-stranger")).status == 401
        metrics = (await call.raw("/metrics", [])).body.decode()
        assert "forward_auth_unknown_routes_total 6.0" in metrics
    lines = [json.loads(line) for line in logged().splitlines() if "not known was called" in line]
    assert [one["route"] for one in lines] == ["POST /api/brand_new/filter", "POST /api/flows/Filter"]
    assert {one["level"] for one in lines} == {logging.getLevelName(logging.WARNING).lower()}
