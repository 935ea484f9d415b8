"""The ledger's SQLite file: in a folder of the service, for processes on one machine."""

import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from service.adapters.files import FileError, exposure, locked, writers
from service.issuing.database import WAIT, Database, LedgerError, Stamp

FILE: Final = "tokens.sqlite3"
_WRITABLE: Final = "tokens.folder must be a folder that the service may write to, in one that exists"


class SQLite(Database):
    """The file in a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.name = str(self._path)
        self._connection: sqlite3.Connection | None = None
        self._place = (0, 0)

    def check(self) -> None:
        """Check that the folder can be used, or made, and that nobody else can change what is in it."""
        folder = self._path.parent
        with self._told():
            there = folder if folder.exists() else folder.parent
            status = there.stat()
            if there == folder and (open_to := writers(status)):
                raise LedgerError(f"{folder}: {open_to}: chmod go-w {folder}, or name a folder inside it")
            if not stat.S_ISDIR(status.st_mode) or not os.access(there, os.W_OK | os.X_OK):
                raise LedgerError(f"{there} is not a folder that can be written to: {_WRITABLE}")
            if self._path.exists() and (open_to := exposure(self._path.stat())):
                raise LedgerError(f"{self._path}: {open_to}: chmod 600 {self._path}")

    def open(self) -> None:
        """Open the file, or make it. It is in WAL mode."""
        self.close()
        self.check()
        with self._told():
            _make(self._path)
            status = self._path.stat()
            self._connection = sqlite3.connect(
                self._path, timeout=WAIT, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            self._place = status.st_dev, status.st_ino
            self.run("PRAGMA synchronous = FULL")
            if self.version() == 0:
                with locked(self._path):  # no two processes can change the mode at once
                    self.run("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._opened.execute(statement, values)

    def version(self) -> int:
        """Return the version of the tables."""
        return self.number("PRAGMA user_version")

    def set_version(self, version: int) -> None:
        """Set the version of the tables."""
        self.run(f"PRAGMA user_version = {version}")

    def stamp(self) -> Stamp:
        """Return the stamp of now."""
        with self._told():
            return Stamp(self._place, self.number("SELECT number FROM revision"))

    def is_replaced(self) -> bool:
        """Tell whether the file is not the one that is open. It is an error if there is none."""
        with self._told():
            status = self._path.stat()
            return self._connection is None or self._place != (status.st_dev, status.st_ino)

    def back_up(self, target: Path) -> None:
        """Write a copy to a new file, for its owner alone, while others go on."""
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as problem:
            raise LedgerError(f"{target} cannot be written: {problem.strerror}: name a new file") from None
        with self._told():
            copy = sqlite3.connect(target)
            try:
                self._opened.backup(copy)
            finally:
                copy.close()

    def _begin(self, *, writes: bool) -> None:
        self.run("BEGIN IMMEDIATE" if writes else "BEGIN")  # one writer at a time; others wait

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as problem:
            raise LedgerError(f"{self.name} cannot be used: {problem}: {_cure(problem)}") from None
        except sqlite3.DatabaseError as problem:
            raise LedgerError(f"{self.name} cannot be used: {problem}: put a backup in its place") from None
        except OSError as problem:
            where = problem.filename or self.name
            raise LedgerError(f"{where} cannot be used: {problem.strerror}: {_WRITABLE}") from None
        except LedgerError:
            raise
        except FileError as problem:
            raise LedgerError(str(problem)) from None

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise LedgerError(f"{self.name} is not open")
        return self._connection


def _make(path: Path) -> None:
    """Make the folder and an empty file for their owner alone, where there are none."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    status = path.parent.stat()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        if status.st_uid != os.geteuid():  # root must not shut the service out of its own folder
            with suppress(PermissionError):
                os.fchown(descriptor, status.st_uid, status.st_gid)
    finally:
        os.close(descriptor)


def _cure(problem: sqlite3.OperationalError) -> str:
    text = str(problem)
    if "locked" in text:
        return f"another process has been changing it for {WAIT:g} s: try again"
    if "full" in text:
        return "free some space on its disk"
    return _WRITABLE
