"""Tokens of this service in PostgreSQL: two replicas, an outage, a restored dump, and what operators are told."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.issuing import issued
from service.issuing.ledger import Ledger
from service.issuing.postgresql import PostgreSQL
from service.settings import Settings
from service.web.app import create_app
from tests.support.operator import Operator
from tests.support.postgresql import PASSWORD, PostgreSQLServer
from tests.support.waiting import wait_until
from tests.web.conftest import Caller
from tests.web.test_own_tokens import IN_FORCE, NAME, ask, command, printed, until_refused
from tests.web.test_serve import serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgresql: PostgreSQLServer) -> str:
    return postgresql.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """Return the ledger as another process has it open."""
    with Ledger(PostgreSQL(url), rotate=86_400) as opened:
        yield opened


def issue(ledger: Ledger, name: str = "etl") -> str:
    return ledger.issue(name, "worker", 3_600, NAME, "prefect")[0]


def test_two_replicas_refuse_what_is_revoked_and_log_no_password(tmp_path: Path, url: str, ledger: Ledger) -> None:
    file = tmp_path / "url"
    file.write_text(f"{url}\n")
    file.chmod(0o600)
    variables = {"FORWARD_AUTH_TOKENS__FOLDER": "", "FORWARD_AUTH_TOKENS__DATABASE_FILE": str(file)}
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with serving(folders[0], **variables) as (_, one), serving(folders[1], **variables) as (_, two):
        kept, lost = issue(ledger, "kept"), issue(ledger, "lost")
        assert {ask(port, token) for token in (kept, lost) for port in (one, two)} == {200}
        printed(command(tmp_path / "x", "revoke", "--name", "lost", **variables))
        wait_until(
            lambda: {ask(port, lost) for port in (one, two)} == {401}, timeout=IN_FORCE, what="a refusal by both"
        )
        assert {ask(port, kept) for port in (one, two)} == {200}
        listed = command(tmp_path / "x", "list", **variables)
    logs = [(folder / "log").read_text() for folder in folders]
    for text in (*logs, printed(listed), listed.stderr):
        assert PASSWORD not in text
        assert kept not in text
    (used,) = [one.used for one in ledger.tokens() if one.name == "kept"]
    assert used is not None, "a replica that stops notes the last use"
    assert len(ledger.signing_keys()) == 1


async def test_while_the_database_is_away_the_copy_is_used_and_then_the_answer_is_503(
    postgresql: PostgreSQLServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issued, "LOOK", 0.05)
    monkeypatch.setattr(issued, "NOTE_USES", 0.05)
    app = create_app(Settings(tokens={"database": url}, verdict_seconds=0))
    await app.start()
    try:
        call = Caller(app)
        with Ledger(PostgreSQL(url), rotate=86_400) as ledger:
            token = issue(ledger)
            assert (await call(f"Bearer {token}")).status == 200
        with postgresql.away():
            await until_state(call, "degraded")
            assert (await call(f"Bearer {token}")).status == 200, "the copy is used"
            problem = (await call.raw("/readyz", [])).json()["tokens"]["problem"]
            assert f"PostgreSQL at 127.0.0.1:{postgresql.port}/" in problem
            assert PASSWORD not in problem
            monkeypatch.setattr(issued, "MAX_STALE", 0.0)
            answer = await call(f"Bearer {token}")
            assert (answer.status, answer.json()["code"]) == (503, "issuer_unavailable")
            monkeypatch.setattr(issued, "MAX_STALE", 300.0)
        await until_state(call, "ready")
        assert (await call(f"Bearer {token}")).status == 200
        with Ledger(PostgreSQL(url), rotate=86_400) as ledger:
            assert (await call(f"Bearer {issue(ledger)}")).status == 200
            ledger.revoke(name="etl")
        await until_refused(call, token)
    finally:
        await app.stop()


async def until_state(call: Caller, state: str) -> None:
    deadline = time.monotonic() + 30
    while (told := (await call.raw("/readyz", [])).json())["status"] != state:
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.05)


async def test_a_dump_that_is_restored_is_in_force_within_seconds(
    postgresql: PostgreSQLServer, url: str, ledger: Ledger
) -> None:
    app = create_app(Settings(tokens={"database": url}))
    await app.start()
    try:
        call, before = Caller(app), issue(ledger)
        dump = await asyncio.to_thread(postgresql.dump, url)
        after = issue(ledger)
        for token in (before, after):
            assert (await call(f"Bearer {token}")).status == 200
        await asyncio.to_thread(postgresql.restore, url, dump)
        assert "not in the list" in await until_refused(call, after, 30)
        assert (await call(f"Bearer {before}")).status == 200
    finally:
        await app.stop()


def test_check_names_the_database_without_its_password_and_backup_names_pg_dump(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator({"FORWARD_AUTH_TOKENS__DATABASE": url}, monkeypatch, capsys)
    status, output, _ = operator("config", "check")
    assert status == 0
    assert f"Their list: PostgreSQL at {url.rpartition('@')[2]}." in output
    assert PASSWORD not in output
    status, output, problem = operator("token", "backup", str(tmp_path / "backup"))
    assert status == 2
    assert "pg_dump --schema=prefect_forward_auth" in problem
    operator = Operator({"FORWARD_AUTH_TOKENS__DATABASE": f"{url}?sslmod=require"}, monkeypatch, capsys)
    status, output, problem = operator("config", "check")
    assert status == 2
    assert "tokens.database: PostgreSQL's driver does not understand the URL" in output + problem
    assert PASSWORD not in output + problem


def test_the_url_is_a_secret() -> None:
    tokens = Settings(tokens={"database": f"postgresql://gate:{PASSWORD}@db/gate"}).tokens
    assert tokens is not None
    assert isinstance(tokens.database, SecretStr)
    assert PASSWORD not in repr(tokens)
