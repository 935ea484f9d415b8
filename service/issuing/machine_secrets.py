"""Secrets of machines: ``pfa_``, the id of the secret, and a random part, of which the ledger has the bcrypt hash."""

import secrets
from typing import Final, NamedTuple

from service.adapters.users_file import DEFAULT_COST, hash_password

_PREFIX: Final = "pfa"  # by which scanners find a secret that was published by mistake


class NewSecret(NamedTuple):
    """A secret that was just made."""

    id: str
    text: str
    hash: str

    def __repr__(self) -> str:
        return f"NewSecret({self.id!r})"


def new_secret() -> NewSecret:
    """Return a secret of 256 random bits. It takes some tens of milliseconds."""
    secret_id, random = secrets.token_hex(8), secrets.token_urlsafe(32)
    return NewSecret(secret_id, f"{_PREFIX}_{secret_id}_{random}", hash_password(random, DEFAULT_COST))


def split_secret(text: str) -> tuple[str, str]:
    """Return the id and the random part of what should be a secret; of anything else, an id that no secret has."""
    prefix, _, rest = text.partition("_")
    secret_id, _, random = rest.partition("_")
    return (secret_id, random) if prefix == _PREFIX else ("", text)
