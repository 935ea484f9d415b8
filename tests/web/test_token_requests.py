"""The token endpoint, as machines use it: every error of RFC 6749 §5.2, and what becomes of a token that it gave."""

import asyncio
import json
import sqlite3
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
import pytest

from service.agent.sources import ClientCredentials
from service.agent.tokens import SourceError
from service.core.identity.compact import decode_segment
from service.gate.application import ForwardAuth
from service.gate.explain import caller_from_token
from service.issuing.ledger import Ledger
from service.issuing.machine_secrets import split_secret
from service.issuing.sqlite import FILE, SQLite
from service.settings import Settings
from service.web.app import create_app
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import closed, served
from tests.support.waiting import wait_until
from tests.web.conftest import Answer, Caller
from tests.web.test_own_tokens import IN_FORCE, NAME, until_refused
from tests.web.test_own_tokens import ask as status_of
from tests.web.test_serve import serving

pytestmark = pytest.mark.anyio
FORM = "application/x-www-form-urlencoded"
GRANT = {"grant_type": "client_credentials"}


@pytest.fixture
async def app(folder: Path) -> AsyncIterator[ForwardAuth]:
    running = create_app(Settings(tokens={"folder": folder}, sign_in={"attempts": 3}))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def call(app: ForwardAuth) -> Caller:
    return Caller(app)


def pair(name: str, secret: str, scheme: str = "Basic") -> str:
    return f"{scheme} {b64encode(f'{quote_plus(name)}:{quote_plus(secret)}'.encode()).decode()}"


async def ask(
    call: Caller,
    form: dict[str, str] | str | bytes,
    authorization: str | tuple[str, ...] = (),
    *,
    content_type: str = FORM,
    method: str = "POST",
    client: str = "203.0.113.7",
    more: tuple[tuple[bytes, bytes], ...] = (),
) -> Answer:
    body = urlencode(form) if isinstance(form, dict) else form
    body = body.encode() if isinstance(body, str) else body
    sent = (authorization,) if isinstance(authorization, str) else authorization
    headers = [
        (b"host", b"prefect-m2m.example.com"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-for", client.encode()),
        (b"content-type", content_type.encode()),
        *((b"authorization", one.encode()) for one in sent),
        *more,
    ]
    return await call.raw("/_auth/token", headers, method, (body[:5], body[5:]))


def granted(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    document = answer.json()
    token = document.pop("access_token")
    assert document == {"token_type": "Bearer", "expires_in": 3_600}
    assert answer.header("cache-control") == "no-store"
    return str(token)


def claims_of(token: str) -> dict[str, Any]:
    claims = json.loads(decode_segment(token.split(".")[1].encode()))
    assert isinstance(claims, dict)
    return claims


# granted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["basic", "post"])
async def test_a_machine_obtains_a_short_token_with_its_name_and_role(call: Caller, ledger: Ledger, way: str) -> None:
    secret = ledger.add_machine("etl worker+1", "worker")
    if way == "basic":
        answer = await ask(
            call, {**GRANT, "client_id": "etl worker+1", "scope": "", "x": "?"}, pair("etl worker+1", secret)
        )
    else:
        answer = await ask(call, {**GRANT, "client_id": "etl worker+1", "client_secret": secret, "audience": "prefect"})
    token = granted(answer)
    claims = claims_of(token)
    assert claims["exp"] - claims["iat"] == 3_600
    assert {name: claims[name] for name in ("iss", "aud", "sub", "client_id", "roles", "credential_id")} == {
        "iss": NAME,
        "aud": "prefect",
        "sub": "etl worker+1",
        "client_id": "etl worker+1",
        "roles": ["worker"],
        "credential_id": split_secret(secret)[0],
    }
    accepted = await call(f"Bearer {token}")
    assert (accepted.status, accepted.header("x-auth-request-user")) == (200, "etl worker+1")
    assert accepted.header("x-auth-request-roles") == "worker"
    assert ledger.tokens() == []
    another = granted(await ask(call, GRANT, pair("etl worker+1", secret)))
    assert claims_of(another)["jti"] != claims["jti"]


async def test_both_secrets_are_good_while_a_machine_is_given_the_second(call: Caller, ledger: Ledger) -> None:
    first = ledger.add_machine("etl", "worker")
    old = granted(await ask(call, GRANT, pair("etl", first)))
    second, _ = ledger.add_secret("etl")
    new = granted(await ask(call, GRANT, pair("etl", second)))
    granted(await ask(call, GRANT, pair("etl", first)))
    for token in (old, new):
        assert (await call(f"Bearer {token}")).status == 200
    ledger.remove_secret("etl", split_secret(first)[0])
    assert "revoked" in await until_refused(call, old)
    assert (await call(f"Bearer {new}")).status == 200
    assert (await ask(call, GRANT, pair("etl", first))).json()["error"] == "invalid_client"


async def test_a_removed_machine_is_refused_and_so_are_its_tokens_also_after_it_is_added_again(
    call: Caller, ledger: Ledger
) -> None:
    secret = ledger.add_machine("etl", "worker")
    token = granted(await ask(call, GRANT, pair("etl", secret)))
    assert (await call(f"Bearer {token}")).status == 200
    ledger.remove_machine("etl")
    await until_refused(call, token)
    another = ledger.add_machine("etl", "worker")
    assert (await ask(call, GRANT, pair("etl", secret))).status == 401
    granted(await ask(call, GRANT, pair("etl", another)))
    assert (await call(f"Bearer {token}")).status == 401


async def test_one_token_of_a_machine_is_revoked_by_its_jti(call: Caller, ledger: Ledger) -> None:
    secret = ledger.add_machine("etl", "worker")
    tokens = [granted(await ask(call, GRANT, pair("etl", secret))) for _ in range(2)]
    ledger.revoke_of(NAME, claims_of(tokens[0])["jti"], int(time.time()) + 3_600)
    await until_refused(call, tokens[0])
    assert (await call(f"Bearer {tokens[1]}")).status == 200


async def test_a_relayed_websocket_ends_with_its_machine(folder: Path, ledger: Ledger, prefect: PrefectSockets) -> None:
    secret = ledger.add_machine("etl", "worker")
    async with served({"tokens": {"folder": folder}, "prefect": {"url": prefect.url}}) as gate:
        token = granted(await ask(Caller(gate.app), GRANT, pair("etl", secret)))
        async with gate.opened(token) as socket:
            ledger.remove_machine("etl")
            code, reason = await closed(socket, 2 * IN_FORCE)
    assert code != 1000
    assert "revoked" in reason


async def test_the_last_use_of_a_secret_is_noted(folder: Path, ledger: Ledger) -> None:
    secret = ledger.add_machine("etl", "worker")
    app = create_app(Settings(tokens={"folder": folder}))
    await app.start()
    granted(await ask(Caller(app), GRANT, pair("etl", secret)))
    await app.stop()
    assert abs((ledger.machines()[0].secrets[0].used or 0) - time.time()) < 60


async def test_tokens_are_issued_while_another_process_holds_the_ledger(
    call: Caller, ledger: Ledger, folder: Path
) -> None:
    secret = ledger.add_machine("etl", "worker")
    granted(await ask(call, GRANT, pair("etl", secret)))
    busy = sqlite3.connect(folder / FILE, isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    try:
        token = granted(await ask(call, GRANT, pair("etl", secret)))
        assert (await call(f"Bearer {token}")).status == 200
    finally:
        busy.close()


async def test_with_a_ledger_that_is_away_for_long_machines_are_told_to_come_back(
    call: Caller, ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = ledger.add_machine("etl", "worker")
    granted(await ask(call, GRANT, pair("etl", secret)))
    monkeypatch.setattr("service.issuing.issued.MAX_STALE", 0.3)
    await asyncio.to_thread(folder.rename, folder.with_name("away"))
    deadline = time.monotonic() + 20
    while (answer := await ask(call, GRANT, pair("etl", secret))).status == 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (answer.status, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert int(answer.header("retry-after")) > 0
    await asyncio.to_thread(folder.with_name("away").rename, folder)
    while (await ask(call, GRANT, pair("etl", secret))).status != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_an_agent_obtains_its_token_here(folder: Path, ledger: Ledger) -> None:
    secret = ledger.add_machine("worker", "worker")
    async with served({"tokens": {"folder": folder}}) as gate:
        url = f"http://127.0.0.1:{gate.port}/_auth/token"
        for auth in ("basic", "post"):
            source = ClientCredentials("worker", secret, ssl.create_default_context(), token_url=url, auth=auth)  # type: ignore[arg-type]
            token = await source.fetch()
            assert token.expires == pytest.approx(time.time() + 3_600, abs=60)
            assert (await Caller(gate.app)(f"Bearer {token.value}")).status == 200
        wrong = ClientCredentials("worker", "pfa_no", ssl.create_default_context(), token_url=url)
        with pytest.raises(SourceError, match=r"401 \(invalid_client\)"):
            await wrong.fetch()


async def test_explain_says_that_the_role_is_the_tokens_own(call: Caller, folder: Path, ledger: Ledger) -> None:
    token = granted(await ask(call, GRANT, pair("etl", ledger.add_machine("etl", "worker"))))
    caller = await caller_from_token(Settings(tokens={"folder": folder}), token)
    assert (caller.source, getattr(caller.who, "roles", None)) == ("the token", ("worker",))


# refused --------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[Any, str, int, str]] = {
    "no grant_type": ({}, FORM, 400, "invalid_request"),
    "another grant": ({"grant_type": "password"}, FORM, 400, "unsupported_grant_type"),
    "an empty grant": ({"grant_type": ""}, FORM, 400, "invalid_request"),
    "a scope": ({**GRANT, "scope": "admin"}, FORM, 400, "invalid_scope"),
    "an audience": ({**GRANT, "audience": "other"}, FORM, 400, "invalid_target"),
    "a resource": ({**GRANT, "resource": "https://other"}, FORM, 400, "invalid_target"),
    "twice": ("grant_type=client_credentials&grant_type=client_credentials", FORM, 400, "invalid_request"),
    "twice, unknown": ("grant_type=client_credentials&x=1&x=2", FORM, 400, "invalid_request"),
    "no form": ("grant_type", FORM, 400, "invalid_request"),
    "not UTF-8": (b"grant_type=client_credentials&x=%ff", FORM, 400, "invalid_request"),
    "not ASCII": (b"grant_type=client_credentials&x=\xff", FORM, 400, "invalid_request"),
    "json": (json.dumps(GRANT), "application/json", 400, "invalid_request"),
    "multipart": (b"--x", "multipart/form-data; boundary=x", 400, "invalid_request"),
    "another charset": (GRANT, f"{FORM}; charset=punycode", 400, "invalid_request"),
    "too long": ({**GRANT, "x": "y" * 17_000}, FORM, 400, "invalid_request"),
    "too many": (
        "&".join(["grant_type=client_credentials", *(f"x{n}=1" for n in range(60))]),
        FORM,
        400,
        "invalid_request",
    ),
    "a secret as well": ({**GRANT, "client_secret": "x"}, FORM, 400, "invalid_request"),
    "another id as well": ({**GRANT, "client_id": "x"}, FORM, 400, "invalid_request"),
}


async def test_a_malformed_request_is_refused_by_its_error_and_counts_as_no_guess(call: Caller, ledger: Ledger) -> None:
    secret = ledger.add_machine("etl", "worker")
    for name, (form, content_type, status, error) in MALFORMED.items():
        answer = await ask(call, form, pair("etl", secret), content_type=content_type)
        assert (answer.status, answer.json()["error"]) == (status, error), name
        assert answer.header("cache-control") == "no-store"
        assert set(answer.json()) == {"error", "error_description"}
        assert not set(answer.json()["error_description"]) & set('"\\')
    granted(await ask(call, GRANT, pair("etl", secret)))


async def test_a_client_that_is_not_proved_is_challenged(call: Caller, ledger: Ledger) -> None:
    secret = ledger.add_machine("etl", "worker")
    other = ledger.add_machine("ci", "admin")
    attempts: dict[str, tuple[dict[str, str], str | tuple[str, ...]]] = {
        "nothing": (GRANT, ()),
        "an id alone": ({**GRANT, "client_id": "etl"}, ()),
        "bearer": (GRANT, pair("etl", secret, "Bearer")),
        "not base64": (GRANT, "Basic ?"),
        "no colon": (GRANT, f"Basic {b64encode(b'etl').decode()}"),
        "no UTF-8": (GRANT, f"Basic {b64encode(b'etl:%ff').decode()}"),
        "another machine": (GRANT, pair("etl", other)),
        "another random part": (GRANT, pair("etl", f"{secret[:-3]}abc")),
        "nobody": (GRANT, pair("nobody", secret)),
        "control characters": (GRANT, pair("etl\n", secret)),
    }
    for number, (what, (form, authorization)) in enumerate(attempts.items()):
        answer = await ask(call, form, authorization, client=f"203.0.113.{number}")
        assert (answer.status, answer.json()["error"]) == (401, "invalid_client"), what
        assert answer.header("www-authenticate").startswith("Basic "), what
        assert secret not in answer.body.decode()
    twice = await ask(call, GRANT, (pair("etl", secret), pair("etl", secret)))
    assert (twice.status, twice.json()["error"]) == (400, "invalid_request")


async def test_guesses_are_throttled_as_wrong_passwords_are(call: Caller, ledger: Ledger) -> None:
    secret = ledger.add_machine("etl", "worker")
    for number in range(3):
        assert (await ask(call, GRANT, pair("etl", f"pfa_{number}_x"))).status == 401
    answer = await ask(call, GRANT, pair("etl", secret))
    assert (answer.status, answer.json()["error"]) == (429, "temporarily_unavailable")
    assert int(answer.header("retry-after")) > 0
    granted(await ask(call, GRANT, pair("etl", secret), client="198.51.100.1"))
    counted = (await call.raw("/metrics", [])).body.decode()
    assert 'forward_auth_token_requests_total{outcome="invalid_client"} 3.0' in counted
    assert 'forward_auth_token_requests_total{outcome="granted"} 1.0' in counted


@pytest.mark.parametrize("header", [(b"sec-fetch-site", b"cross-site"), (b"origin", b"https://evil.example")])
async def test_a_page_of_another_site_cannot_have_its_visitors_throttled(
    call: Caller, ledger: Ledger, header: tuple[bytes, bytes]
) -> None:
    secret = ledger.add_machine("etl", "worker")
    for _ in range(5):
        answer = await ask(call, GRANT, pair("etl", "pfa_0_x"), more=(header,))
        assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    granted(await ask(call, GRANT, pair("etl", secret)))


async def test_no_log_has_a_secret_or_a_token(call: Caller, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret = ledger.add_machine("etl", "worker")
    token = granted(await ask(call, GRANT, pair("etl", secret)))
    await ask(call, GRANT, pair("etl", f"{secret[:-3]}abc"))
    logged = "".join(f"{one.getMessage()} {getattr(one, 'fields', '')}" for one in caplog.records)
    assert "token granted" in logged
    assert "token request refused" in logged
    assert split_secret(secret)[1][:-3] not in logged
    assert token not in logged


async def test_only_post_is_answered_and_only_where_tokens_are_issued(call: Caller, users_file: Path) -> None:
    assert (await ask(call, GRANT, method="GET")).status == 405
    app = create_app(Settings(users={"file": users_file, "role": "viewer"}))
    await app.start()
    try:
        answer = await ask(Caller(app), GRANT, pair("alice", "secret"))
        assert (answer.status, answer.json()["code"]) == (404, "not_found")
    finally:
        await app.stop()


async def test_only_a_trusted_proxy_is_answered(folder: Path) -> None:
    app = create_app(Settings(tokens={"folder": folder}))
    await app.start()
    try:
        assert (await ask(Caller(app, peer="203.0.113.1"), GRANT)).status == 403
        unreadable = await Caller(app).raw("/_auth/token", [(b"content-type", FORM.encode())], "POST", (b"",))
        assert (unreadable.status, unreadable.json()["error"]) == (400, "invalid_request")
    finally:
        await app.stop()


# processes ------------------------------------------------------------------------------------------------


def obtained(port: int, secret: str) -> str:
    answer = httpx.post(
        f"http://127.0.0.1:{port}/_auth/token", data=GRANT, headers={"authorization": pair("etl", secret)}, timeout=30
    )
    return str(answer.raise_for_status().json()["access_token"])


def test_a_killed_service_has_lost_no_machine(tmp_path: Path, folder: Path) -> None:
    """What one process issued, others accept, before and after a kill; they refuse it when its machine is removed."""
    variables = {"FORWARD_AUTH_TOKENS__FOLDER": str(folder)}
    with Ledger(SQLite(folder), rotate=86_400) as ledger:
        secret = ledger.add_machine("etl", "worker")
        with serving(tmp_path, **variables) as (process, port):
            token = obtained(port, secret)
            process.kill()
            process.wait(10)
        with serving(tmp_path, "--workers", "2", **variables) as (_, port):
            assert {status_of(port, one) for one in (token, obtained(port, secret)) for _ in range(10)} == {200}
            ledger.remove_machine("etl")
            wait_until(lambda: {status_of(port, token) for _ in range(20)} == {401}, timeout=IN_FORCE, what="a refusal")
