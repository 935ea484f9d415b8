"""The ledger in each database that it can be in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.issuing.database import Database
from service.issuing.ledger import Ledger
from service.issuing.postgresql import PostgreSQL
from service.issuing.sqlite import SQLite
from tests.support.postgresql import PostgreSQLServer

DAY = 86_400.0
ROTATE = 30 * DAY
TABLES = ("keys", "tokens", "revision", "revoked", "machines", "secrets")


@dataclass(frozen=True)
class Place:
    """Where a ledger is, or will be."""

    database: Callable[[], Database]
    argument: str  # a folder or a URL, for other processes

    def ledger(self, passphrases: tuple[str, ...] = ()) -> Ledger:
        """Return the ledger as another process would use it."""
        return Ledger(self.database(), passphrases, rotate=ROTATE)

    def run(self, statement: str, *values: object) -> None:
        """Change the tables behind the ledger's back."""
        database = self.database()
        database.open()
        with database.transaction(writes=True):
            database.run(statement, values)
        database.close()

    def rows(self, query: str) -> list[Any]:
        """Return what a query selects from the tables."""
        database = self.database()
        database.open()
        with database.transaction():
            found = database.run(query).fetchall()
        database.close()
        return found

    def version(self) -> int:
        """Return the version of the tables."""
        database = self.database()
        database.open()
        with database.transaction():
            version = database.version()
        database.close()
        return version

    def content(self) -> str:
        """Return all that is in the tables."""
        return repr([self.rows(f"SELECT * FROM {table}") for table in TABLES])  # noqa: S608 - ours


def in_place(argument: str) -> Place:
    """Return the place of a folder or a URL."""
    if argument.startswith("postgresql://"):
        return Place(lambda: PostgreSQL(argument), argument)
    return Place(lambda: SQLite(Path(argument)), argument)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return where there is no ledger yet."""
    if request.param == "sqlite":
        return in_place(str(tmp_path / "tokens"))
    server: PostgreSQLServer = request.getfixturevalue("postgresql")
    return in_place(server.new_database())


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with place.ledger() as opened:
        yield opened
