"""What the ledger needs of a database: one connection, transactions, and a few things that each database does its way.

The statements are the ledger's, once, in the SQL that all databases here understand, with ``?`` for each value.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from service.adapters.files import FileError

WAIT: Final = 30.0  # seconds for the change of somebody else


class LedgerError(FileError):
    """A ledger that cannot be used. The message names the file or the database, the cause and the cure."""


class Stamp(NamedTuple):
    """What differs if the ledger has changed, or another one has taken its place."""

    place: tuple[int, ...]
    version: int


class Rows(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """Return how many rows were changed."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""


class Database(ABC):
    """One connection, used by one thread at a time. Every method raises LedgerError if it fails."""

    name: str  # for messages: where the database is, without a secret

    @abstractmethod
    def check(self) -> None:
        """Check what can be checked without opening or changing anything."""

    @abstractmethod
    def open(self) -> None:
        """Connect, and make an empty ledger if there is none: it has version 0."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def run(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement within a transaction."""

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[None]:
        """Hold one transaction: it is on the disk at the end, or nothing of it. One that writes keeps others out."""
        with self._told():
            try:
                self._begin(writes=writes)
                yield
            except BaseException:
                with suppress(Exception):  # there may be none, or no connection any more
                    self.run("ROLLBACK")
                raise
            self.run("COMMIT")

    def number(self, statement: str) -> int:
        """Return the number that a statement selects. Within a transaction."""
        (number,) = self.run(statement).fetchone()
        return int(number)

    @abstractmethod
    def version(self) -> int:
        """Return the version of the tables. Within a transaction."""

    @abstractmethod
    def set_version(self, version: int) -> None:
        """Set the version of the tables. Within a transaction."""

    @abstractmethod
    def stamp(self) -> Stamp:
        """Return the stamp of now."""

    @abstractmethod
    def is_replaced(self) -> bool:
        """Tell whether the ledger must be opened again: it is another one, or the connection is gone."""

    @abstractmethod
    def back_up(self, target: Path) -> None:
        """Write a copy to a new file, for its owner alone, while others go on."""

    @abstractmethod
    def _begin(self, *, writes: bool) -> None: ...

    @abstractmethod
    def _told(self) -> AbstractContextManager[None]:
        """Tell every problem as a LedgerError."""
