"""The ledger that a configuration names."""

from service.issuing.database import Database, LedgerError
from service.issuing.ledger import Ledger
from service.issuing.postgresql import PostgreSQL
from service.issuing.sqlite import SQLite
from service.settings import Settings
from service.settings.load import lasting_keys


def database_of(settings: Settings) -> Database | None:
    """Return the database of the configuration, not open yet, or None if no tokens are issued."""
    tokens = settings.tokens
    if tokens is not None and tokens.database is not None:
        return PostgreSQL(tokens.database.get_secret_value())
    return SQLite(tokens.folder) if tokens is not None and tokens.folder is not None else None


def ledger_of(settings: Settings) -> Ledger | None:
    """Return the ledger of the configuration, not open yet, or None if no tokens are issued."""
    database = database_of(settings)
    if settings.tokens is None or database is None:
        return None
    return Ledger(database, lasting_keys(settings), rotate=settings.tokens.rotate)


def problem_of_database(settings: Settings) -> str:
    """Return what is wrong with the place of the ledger, without opening it; empty if nothing is."""
    database = database_of(settings)
    try:
        if database is not None:
            database.check()
    except LedgerError as problem:
        return f"tokens.{'folder' if isinstance(database, SQLite) else 'database'}: {problem}"
    return ""
