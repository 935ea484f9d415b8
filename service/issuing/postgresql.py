"""The ledger's tables in PostgreSQL, in a schema of their own: for replicas on several machines.

The URL, which may hold a password, is in no message and no repr. A call ends in a bounded time, also if the server
or the network answers nothing.
"""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.issuing.database import WAIT, Database, LedgerError, Rows, Stamp

if TYPE_CHECKING:
    from psycopg import Connection

SCHEMA: Final = "prefect_forward_auth"
_READ: Final = 5.0  # seconds for a transaction that reads
_SLACK: Final = 5.0  # seconds after which the connection of a server that does not end it by itself is cut
_LOCK: Final = 0x70666100746F6B65  # of those who write: no other application uses this number by chance
_DEFAULTS: Final = {  # whatever the URL does not say
    "application_name": "prefect-forward-auth",
    "connect_timeout": "5",
    "target_session_attrs": "read-write",  # of several hosts, the one that can be written to
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
_PLACE: Final = "SELECT to_regclass('version')::oid::bigint, extract(epoch FROM pg_postmaster_start_time())::bigint"
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
_REACH: Final = "check tokens.database, and whether PostgreSQL can be reached from here"


class PostgreSQL(Database):
    """The schema ``prefect_forward_auth`` in the database of a URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = "PostgreSQL at " + url.partition("?")[0].rpartition("@")[2].rpartition("://")[2]
        self._connection: Connection | None = None
        self._place: tuple[int, ...] = ()
        self._options: dict[str, Any] = {}
        self._errors: tuple[type[Exception], ...] = ()  # the driver's

    def check(self) -> None:
        """Check the URL, and that the driver is installed."""
        try:
            # imported here: the package is there only where PostgreSQL is wanted
            from psycopg import Error, conninfo  # noqa: PLC0415
        except ImportError:
            raise LedgerError(
                "PostgreSQL needs one more package: pip install 'prefect-forward-auth[postgresql]'"
            ) from None
        try:
            self._options = _DEFAULTS | conninfo.conninfo_to_dict(self._url)
        except Error:  # whatever it is, it may quote the password
            raise LedgerError("PostgreSQL's driver does not understand the URL: check what follows the '?'") from None
        self._errors = (Error,)

    def open(self) -> None:
        """Connect, and make the schema if there is none."""
        self.close()
        self.check()
        from psycopg import connect  # noqa: PLC0415 - see check()

        with self._told():
            # no prepared statements: a pooler may hand the next transaction to another connection of the server
            self._connection = connect(**self._options, autocommit=True, prepare_threshold=None)
        place = self._found_place()
        if place is None:
            with self.transaction(writes=True):
                if not self.number(f"SELECT count(*) FROM pg_namespace WHERE nspname = '{SCHEMA}'"):  # noqa: S608
                    self.run(f"CREATE SCHEMA {SCHEMA}")
                self.run("CREATE TABLE IF NOT EXISTS version (number BIGINT NOT NULL)")
                self.run("INSERT INTO version SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM version)")
            place = self._found_place()
        self._place = place or ()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement."""
        return self._opened.execute(statement.replace("?", "%s").encode(), values or None)

    def version(self) -> int:
        """Return the version of the tables."""
        return self.number("SELECT number FROM version")

    def set_version(self, version: int) -> None:
        """Set the version of the tables."""
        self.run("UPDATE version SET number = ?", (version,))

    def stamp(self) -> Stamp:
        """Return the stamp of now."""
        with self.transaction():
            return Stamp(self._place, self.number("SELECT number FROM revision"))

    def is_replaced(self) -> bool:
        """Tell whether the connection is gone, or the tables are others, as after a restore."""
        if self._connection is None:
            return True
        place = self._found_place()
        if place is None:
            raise LedgerError(f"{self.name} has no tables of this service any more: restore them, or start it again")
        return place != self._place

    def back_up(self, target: Path) -> None:
        """Tell with what to make a backup."""
        raise LedgerError(
            f"{target} is not written: the tokens are in PostgreSQL. Make a backup with its own tools, as "
            f"`pg_dump --schema={SCHEMA}`"
        )

    def _found_place(self) -> tuple[int, ...] | None:
        """Return what other tables in the place of ours would not have, and no other server behind a pooler."""
        with self.transaction():
            table, *server = self.run(_PLACE).fetchone()
        return None if table is None else (table, *server)

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[None]:
        """Hold one transaction, as described above, for a bounded time."""
        connection = self._connection
        cut = threading.Timer((WAIT if writes else _READ) + _SLACK, _cut, (connection,))
        cut.daemon = True
        cut.start()
        try:
            with super().transaction(writes=writes):
                yield
        finally:
            cut.cancel()

    def _begin(self, *, writes: bool) -> None:
        """Begin, with limits for this transaction alone: a pooler's connections are used by others, too."""
        mode = "" if writes else "ISOLATION LEVEL REPEATABLE READ READ ONLY"
        limit = int(1_000 * (WAIT if writes else _READ))
        self.run(
            f"BEGIN {mode}; SET LOCAL search_path = {SCHEMA}; SET LOCAL statement_timeout = {limit}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {limit}"
        )
        if writes:
            # one writer at a time, as in SQLite, so that revisions become visible in their order
            self.run("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            self.run(_DURABLE)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as problem:
            if self._connection is not None and self._connection.closed:
                self._connection = None
            raise LedgerError(f"{self.name} cannot be used: {_cause(problem)}: {_REACH}") from None

    @property
    def _opened(self) -> "Connection":
        if self._connection is None:
            raise LedgerError(f"{self.name} is not connected")
        return self._connection


def _cut(connection: "Connection | None") -> None:
    """Cut a connection whose other end says nothing, which ends the wait of the thread that uses it."""
    with suppress(Exception):  # it may be closed already
        if connection is not None:
            with socket.socket(fileno=socket.dup(connection.fileno())) as other:
                other.shutdown(socket.SHUT_RDWR)


def _cause(problem: Exception) -> str:
    """Return the first line of a problem, without the details, which hold values."""
    told = getattr(getattr(problem, "diag", None), "message_primary", None) or str(problem)
    return told.strip().partition("\n")[0] or type(problem).__name__
