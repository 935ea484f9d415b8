"""Tokens that the service issues: from the command that prints one to the gate that refuses it once it is revoked."""

import asyncio
import json
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.gate.application import ForwardAuth
from service.gate.explain import caller_from_token
from service.issuing import issued
from service.issuing.ledger import Ledger
from service.issuing.signing import SigningKey, new_key
from service.issuing.sqlite import FILE
from service.settings import Settings
from service.web.app import create_app
from tests.support.command import run
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import closed, served
from tests.support.waiting import wait_until
from tests.web.conftest import FORWARDED, Caller, basic
from tests.web.test_serve import serving

pytestmark = pytest.mark.anyio
IN_FORCE = 5.0  # seconds in which a revocation is in force
NAME = "prefect-forward-auth"


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"FORWARD_AUTH_TOKENS__FOLDER": str(folder), **variables}
    return run("token", *arguments, cwd=folder.parent, **variables)


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def issue(ledger: Ledger, role: str = "worker", **given: Any) -> str:
    return ledger.issue(given.get("name", "etl"), role, given.get("lifetime", 3_600), NAME, "prefect")[0]


@pytest.fixture
async def app(folder: Path) -> AsyncIterator[ForwardAuth]:
    running = create_app(Settings(tokens={"folder": folder}))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def call(app: ForwardAuth) -> Caller:
    return Caller(app)


async def until_refused(call: Caller, token: str, seconds: float = IN_FORCE) -> str:
    deadline = time.monotonic() + seconds
    while (answer := await call(f"Bearer {token}")).status == 200:
        assert time.monotonic() < deadline, "it is still accepted"
        await asyncio.sleep(0.05)
    assert (answer.status, answer.json()["code"]) == (401, "invalid_token")
    return str(answer.json()["detail"])


async def test_a_token_is_accepted_at_once_in_every_form_with_its_name_and_role(call: Caller, ledger: Ledger) -> None:
    token = issue(ledger)
    for sent in (f"Bearer {token}", basic(f"jwt:{token}"), basic(f"Bearer {token}")):
        answer = await call(sent)
        assert answer.status == 200
        assert answer.header("x-auth-request-user") == "etl"
        assert answer.header("x-auth-request-roles") == "worker"
        assert answer.header("x-auth-request-issuer") == NAME
    assert (await call(f"Bearer {token}", endpoint="/forward-auth/basic")).status == 401
    viewer = issue(ledger, role="viewer")
    assert (await call(f"Bearer {viewer}", X_Forwarded_Uri="/api/flows/")).status == 403
    gone = issue(ledger, role="no-longer-configured")
    assert (await call(f"Bearer {gone}")).status == 403


async def test_a_revocation_is_in_force_within_seconds_although_the_token_is_remembered(
    call: Caller, ledger: Ledger
) -> None:
    token, other = issue(ledger), issue(ledger, name="ci")
    assert (await call(f"Bearer {token}")).status == 200
    assert (await call(f"Bearer {other}")).status == 200
    ledger.revoke(name="etl")
    assert await until_refused(call, token) == "This token was revoked: obtain a new one."
    assert (await call(f"Bearer {other}")).status == 200


async def test_a_token_that_is_not_in_the_list_is_refused(call: Caller, ledger: Ledger, folder: Path) -> None:
    token = issue(ledger)
    change = sqlite3.connect(folder / FILE)
    change.execute("DELETE FROM tokens")
    change.commit()
    change.close()
    assert "not in the list" in await until_refused(call, token, 0)


async def test_forged_expired_and_foreign_tokens_are_refused(call: Caller, ledger: Ledger) -> None:
    token = issue(ledger)
    assert (await call(f"Bearer {token}")).status == 200
    head, payload, signature = token.split(".")
    stranger = new_key()
    (listed,) = ledger.tokens()
    claims = {"iss": NAME, "aud": "prefect", "sub": "etl", "jti": listed.id, "exp": listed.expires, "roles": ["admin"]}
    forged = {
        "another key": stranger.sign(claims),
        "another key under our id": SigningKey(_kid(ledger), stranger.private).sign(claims),
        "another payload": ".".join([head, stranger.sign(claims).split(".")[1], signature]),
        "no signature": f"{head}.{payload}.",
    }
    for what, one in forged.items():
        assert (await call(f"Bearer {one}")).status == 401, what
    elsewhere, _ = ledger.issue("etl", "worker", 3_600, NAME, "another-service")
    assert "another audience" in (await call(f"Bearer {elsewhere}")).json()["detail"]
    past, _ = ledger.issue("etl", "worker", 60, NAME, "prefect", time.time() - 3_600)
    assert "expired" in (await call(f"Bearer {past}")).json()["detail"]


def _kid(ledger: Ledger) -> str:
    (key,) = json.loads(ledger.changes_since(-1).jwks)["keys"]
    return str(key["kid"])


async def test_the_last_use_is_noted_when_the_service_stops_at_the_latest(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issued, "LOOK", 0.05)
    monkeypatch.setattr(issued, "NOTE_USES", 0.05)
    monkeypatch.setattr(issued, "ROTATE", 0.05)
    app = create_app(Settings(tokens={"folder": folder}))
    await app.start()
    token = issue(ledger)
    assert (await Caller(app)(f"Bearer {token}")).status == 200
    deadline = time.monotonic() + 10
    while ledger.tokens()[0].used is None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    await app.stop()
    used = ledger.tokens()[0].used
    assert used is not None
    assert abs(used - time.time()) < 60


async def test_without_its_list_it_refuses_nobody_for_good_and_lets_nobody_in_for_long(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issued, "LOOK", 0.05)
    monkeypatch.setattr(issued, "MAX_STALE", 0.5)
    app = create_app(Settings(tokens={"folder": folder}, verdict_seconds=0))
    await app.start()
    try:
        call, token = Caller(app), issue(ledger)
        assert (await call(f"Bearer {token}")).status == 200
        await asyncio.to_thread(folder.rename, folder.with_name("away"))
        deadline = time.monotonic() + 10
        while (answer := await call(f"Bearer {token}")).status == 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert (answer.status, answer.json()["code"]) == (503, "issuer_unavailable")
        state = (await call.raw("/readyz", [])).json()
        assert state["status"] == "degraded"
        assert "No such file" in state["tokens"]["problem"]
        folder.with_name("away").rename(folder)
        while (answer := await call(f"Bearer {token}")).status != 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert answer.status == 200
        assert (await call.raw("/readyz", [])).json()["tokens"] == {"count": 1, "problem": ""}
    finally:
        await app.stop()


async def test_a_backup_that_takes_the_place_of_the_list_is_in_force_within_seconds(
    call: Caller, folder: Path, ledger: Ledger
) -> None:
    before = issue(ledger)
    ledger.back_up(folder / "backup")
    after = issue(ledger)
    for token in (before, after):
        assert (await call(f"Bearer {token}")).status == 200
    ledger.close()
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "backup").rename(folder / FILE)
    assert "not in the list" in await until_refused(call, after)
    assert (await call(f"Bearer {before}")).status == 200


async def test_a_relayed_websocket_ends_when_its_token_is_revoked(
    folder: Path, ledger: Ledger, prefect: PrefectSockets
) -> None:
    async with served({"tokens": {"folder": folder}, "prefect": {"url": prefect.url}}) as gate:
        token = issue(ledger)
        async with gate.opened(token) as socket:
            ledger.revoke(name="etl")
            code, reason = await closed(socket, 2 * IN_FORCE)
    assert code != 1000
    assert "revoked" in reason


async def test_explain_says_that_the_role_is_the_tokens_own(folder: Path, ledger: Ledger) -> None:
    caller = await caller_from_token(Settings(tokens={"folder": folder}), issue(ledger))
    assert (caller.source, getattr(caller.who, "roles", None)) == ("the token", ("worker",))


# the command ----------------------------------------------------------------------------------------------


def test_the_command_prints_the_token_alone_and_keeps_it_nowhere(folder: Path) -> None:
    done = command(folder, "issue", "--name", "etl-worker", "--role", "worker", "--expires", "90d")
    token = printed(done)
    assert len(token.split(".")) == 3
    assert "etl-worker" in done.stderr
    assert token not in done.stderr
    listed = command(folder, "list")
    heads, row = listed.stdout.splitlines()
    assert heads.split()[:3] == ["ID", "NAME", "ROLE"]
    token_id, *_ = row.split()
    assert row.split()[1:3] == ["etl-worker", "worker"]
    assert row.endswith("never            valid")
    assert token not in listed.stdout
    assert "is revoked" in command(folder, "revoke", token_id).stdout
    assert command(folder, "list").stdout.rstrip().endswith("revoked")
    again = command(folder, "revoke", token_id)
    assert (again.returncode, again.stdout) == (1, "")
    assert "token list" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--name", "etl", "--role", "wroker"), "there is no role 'wroker': there are admin, deployer, night,"),
        (("--name", "etl", "--role", "worker", "--expires", "31d"), "30 days that tokens.max_lifetime allows"),
        (("--name", "etl", "--role", "worker", "--expires", "soon"), "a number and s, m, h or d, as 90d"),
        (("--name", "a\u200bb", "--role", "worker"), "visible characters"),
    ],
    ids=["role", "lifetime", "time", "name"],
)
def test_what_is_not_issued_and_why(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    roles = json.dumps({"night": {"capabilities": ["read"]}})
    done = command(
        folder, "issue", *arguments, FORWARD_AUTH_ROLES=roles, FORWARD_AUTH_TOKENS__MAX_LIFETIME=str(30 * 86_400)
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_without_a_folder_the_command_says_what_to_set(folder: Path, users_file: Path) -> None:
    variables = {"FORWARD_AUTH_TOKENS__FOLDER": "", "FORWARD_AUTH_USERS__FILE": str(users_file)}
    done = command(folder, "list", **variables)
    assert done.returncode == 2
    assert "set tokens.folder (FORWARD_AUTH_TOKENS__FOLDER)" in done.stderr


# processes ------------------------------------------------------------------------------------------------


def ask(port: int, token: str) -> int:
    return httpx.get(
        f"http://127.0.0.1:{port}/forward-auth/api", headers={**FORWARDED, "Authorization": f"Bearer {token}"}
    ).status_code


def test_two_processes_refuse_a_revoked_token_and_a_killed_service_forgets_nothing(
    tmp_path: Path, folder: Path
) -> None:
    variables = {"FORWARD_AUTH_TOKENS__FOLDER": str(folder)}
    with serving(tmp_path, "--workers", "2", **variables) as (_, port):
        kept = printed(command(folder, "issue", "--name", "kept", "--role", "worker"))
        lost = printed(command(folder, "issue", "--name", "lost", "--role", "worker"))
        assert {ask(port, token) for token in (kept, lost) for _ in range(20)} == {200}
        printed(command(folder, "revoke", "--name", "lost"))
        revoked = time.monotonic()
        wait_until(lambda: {ask(port, lost) for _ in range(20)} == {401}, timeout=IN_FORCE, what="a refusal by both")
        assert time.monotonic() - revoked < IN_FORCE
        assert {ask(port, kept) for _ in range(20)} == {200}
    with serving(tmp_path, **variables) as (process, port):
        assert (ask(port, kept), ask(port, lost)) == (200, 401)
        process.kill()
        process.wait(10)
    with serving(tmp_path, **variables) as (_, port):
        assert (ask(port, kept), ask(port, lost)) == (200, 401)
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert kept not in (tmp_path / "log").read_text()
