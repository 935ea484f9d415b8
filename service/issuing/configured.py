"""The ledger that a configuration names."""

from service.issuing.ledger import Ledger
from service.settings import Settings
from service.settings.load import lasting_keys


def ledger_of(settings: Settings) -> Ledger | None:
    """Return the ledger of the configuration, not open yet, or None if no tokens are issued."""
    if settings.tokens is None:
        return None
    return Ledger(settings.tokens.folder, lasting_keys(settings), rotate=settings.tokens.rotate)
