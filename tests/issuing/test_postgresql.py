"""The ledger in PostgreSQL: what is different from a file, and what becomes of it when the server is away or silent."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from service.issuing import postgresql as postgresql_module
from service.issuing.database import LedgerError
from service.issuing.issued import IssuedTokens
from service.issuing.ledger import Ledger
from service.issuing.postgresql import PostgreSQL
from tests.issuing.conftest import ROTATE, Place, in_place
from tests.support.postgresql import PASSWORD, PostgreSQLServer

HOUR = 3_600.0


@pytest.fixture
def place(postgresql: PostgreSQLServer) -> Place:
    return in_place(postgresql.new_database())


def issue(ledger: Ledger, name: str) -> str:
    return ledger.issue(name, "worker", HOUR, "us", "prefect")[1].id


def problem_of(url: str) -> str:
    database = PostgreSQL(url)
    with pytest.raises(LedgerError) as caught:
        database.open()
    assert PASSWORD not in f"{caught.value} {database!r} {database.name}"
    return str(caught.value)


def test_those_that_start_at_once_make_the_tables_and_the_first_key_once(place: Place) -> None:
    together = Barrier(6)

    def start(_: int) -> str:
        ledger = place.ledger()
        together.wait(60)
        with ledger:
            return ledger.changes_since(-1).jwks

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(start, range(6)))) == 1
    assert place.rows("SELECT count(*) FROM keys") == [(1,)]
    assert place.rows("SELECT count(*) FROM version") == [(1,)]


def test_only_one_makes_the_next_key(place: Place) -> None:
    with place.ledger() as ledger:
        place.run("UPDATE keys SET created = created - ?", int(ROTATE) + 1)
        others = [place.ledger() for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(Ledger.open, others))
        assert len(ledger.signing_keys()) == 2
        for other in others:
            other.close()


def test_no_revision_is_missed_while_many_write_at_once(place: Place) -> None:
    ledgers = [place.ledger() for _ in range(4)]
    for ledger in ledgers:
        ledger.open()
    with place.ledger() as reader, ThreadPoolExecutor(4) as threads:
        busy = [
            threads.submit(lambda one=one: [issue(one, "etl") for _ in range(20)])  # type: ignore[misc]
            for one in ledgers
        ]
        seen: set[str] = set()
        revision = -1
        while not all(one.done() for one in busy):
            changes = reader.changes_since(revision)
            seen |= {one.id for one in changes.tokens}
            revision = changes.revision
        seen |= {one.id for one in reader.changes_since(revision).tokens}
        assert seen == {token for one in busy for token in one.result()}
    for ledger in ledgers:
        ledger.close()


def test_the_tables_are_in_a_schema_of_their_own_that_somebody_else_may_have_made(postgresql: PostgreSQLServer) -> None:
    url = postgresql.new_database()
    name = url.rpartition("/")[2]
    user = f"few_{name}"
    postgresql.run(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
    limited = url.replace("//gate:", f"//{user}:")
    assert "permission denied for database" in problem_of(limited)
    postgresql.run(f"CREATE SCHEMA prefect_forward_auth AUTHORIZATION {user}", name)
    with Ledger(PostgreSQL(limited), rotate=ROTATE) as ledger:
        issue(ledger, "etl")


def test_a_change_is_on_the_disk_also_where_the_database_would_not_wait_for_it(postgresql: PostgreSQLServer) -> None:
    url = postgresql.new_database()
    postgresql.run(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off")
    database = PostgreSQL(url)
    database.open()
    with database.transaction(writes=True):
        assert database.run("SHOW synchronous_commit").fetchone() == ("on",)
    database.close()


def test_a_problem_names_the_place_and_never_the_password(postgresql: PostgreSQLServer) -> None:
    url = postgresql.new_database()
    at = f"PostgreSQL at 127.0.0.1:{postgresql.port}/"
    wrong = problem_of(url.replace(PASSWORD, "wrong-password"))
    assert wrong.startswith(at)
    assert "password authentication failed" in wrong
    assert "wrong-password" not in wrong
    assert "does not exist" in problem_of(postgresql.url("nowhere"))
    assert "refused" in problem_of(url.replace(f":{postgresql.port}/", ":1/"))
    assert "SSL" in problem_of(f"{url}?sslmode=require"), "TLS is not left out in silence"
    assert "does not understand the URL" in problem_of(f"{url}?no_such_parameter={PASSWORD}")
    postgresql.run(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    assert "read-only" in problem_of(url)


def test_without_the_driver_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'prefect-forward-auth[postgresql]'" in problem_of(f"postgresql://gate:{PASSWORD}@db/gate")


def test_a_backup_is_made_with_its_own_tools(place: Place, tmp_path: Path) -> None:
    with place.ledger() as ledger, pytest.raises(LedgerError, match="pg_dump --schema=prefect_forward_auth"):
        ledger.back_up(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_restored_dump_is_noticed_although_connections_stay_and_as_much_was_changed_since(
    place: Place, postgresql: PostgreSQLServer
) -> None:
    with place.ledger() as ledger, place.ledger() as other:
        issue(ledger, "before")
        dump = postgresql.dump(place.argument)
        issue(ledger, "lost")
        stamp = ledger.stamp()
        assert not ledger.is_replaced()
        postgresql.restore(place.argument, dump)
        assert ledger.is_replaced()
        other.open()
        issue(other, "after")
        assert other.stamp().version == stamp.version
        ledger.open()
        assert not ledger.is_replaced()
        assert ledger.stamp() != stamp
        assert [one.name for one in ledger.tokens()] == ["after", "before"]
        postgresql.run("DROP SCHEMA prefect_forward_auth CASCADE", place.argument.rpartition("/")[2])
        with pytest.raises(LedgerError, match="has no tables of this service any more"):
            ledger.is_replaced()


def test_a_connection_that_is_gone_is_made_again(place: Place, postgresql: PostgreSQLServer) -> None:
    with place.ledger() as ledger:
        token = issue(ledger, "etl")
        with postgresql.away():
            with pytest.raises(LedgerError, match="cannot be used"):
                ledger.is_replaced()
            assert ledger.is_replaced(), "it is to be opened again"
            with pytest.raises(LedgerError, match="refused"):
                ledger.open()
        ledger.open()
        assert [one.id for one in ledger.tokens()] == [token]


def test_a_server_that_answers_nothing_holds_nobody_for_long(
    place: Place, postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.ledger() as ledger:
        monkeypatch.setattr(postgresql_module, "_SLACK", 0.0)
        monkeypatch.setattr(postgresql_module, "_READ", 0.5)
        frozen = postgresql.freeze(place.argument)
        try:
            began = time.monotonic()
            with pytest.raises(LedgerError, match="cannot be used"):
                ledger.stamp()
            assert time.monotonic() - began < 30
            assert ledger.is_replaced()
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


def test_whoever_waits_too_long_for_a_change_of_somebody_else_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.ledger() as ledger:
        holder = place.database()
        holder.open()
        with holder.transaction(writes=True):
            monkeypatch.setattr(postgresql_module, "WAIT", 0.5)
            with pytest.raises(LedgerError, match="timeout"):
                issue(ledger, "etl")
        issue(ledger, "etl")
        holder.close()


@pytest.mark.anyio
async def test_a_use_that_could_not_be_noted_is_noted_later(place: Place) -> None:
    with place.ledger() as ledger:
        token = issue(ledger, "etl")
        tokens = IssuedTokens(place.ledger(), "us", lambda: None)
        await tokens.start()
        tokens.note_use(token)
        tokens._ledger.close()
        await tokens._write(tokens._note_uses)
        assert "is not connected" in tokens.problem
        await tokens.look()
        await tokens.stop()
        assert ledger.tokens()[0].used is not None
