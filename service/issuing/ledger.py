"""The ledger: signing keys, issued tokens and revoked ones, in a database: a SQLite file, or tables in PostgreSQL.

A token itself is never kept. Every change is one transaction that is on the disk before its caller is told, so a
process that is killed in the middle leaves the whole change, or nothing of it. Each change of a token has the number
of a revision, which tells processes what they have not read yet.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from service.issuing.database import Database, LedgerError, Rows, Stamp
from service.issuing.machine_secrets import new_secret
from service.issuing.signing import SigningKey, key_from_pem, new_key
from service.settings.tokens import MAX_UNLISTED

KEEP_EXPIRED: Final = 30 * 86_400  # seconds for which an expired token stays in the list
KEEP_REVOKED: Final = 3_600  # seconds for which an expired token stays revoked: more than any leeway
KEEP_KEY: Final = 600  # seconds for which a key is published after its last token, for clocks that differ
LEAD: Final = 600  # seconds for which a key is published before it signs, for those that cache the keys
MAX_OWNED: Final = 20  # valid tokens of one person
MAX_OWNED_A_DAY: Final = 40  # tokens that one person issues: also a revoked one stays in the list for a while
MAX_SECRETS: Final = 2  # of one machine: the one that it has, and the one that it gets
_SCHEMA: Final = (  # what each version adds to the one before
    """
CREATE TABLE keys (
  kid TEXT PRIMARY KEY, jwk TEXT NOT NULL, private TEXT NOT NULL, created BIGINT NOT NULL
);
CREATE TABLE tokens (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, kid TEXT NOT NULL,
  created BIGINT NOT NULL, expires BIGINT NOT NULL, revoked BIGINT, used BIGINT, changed BIGINT NOT NULL
);
CREATE INDEX tokens_changed ON tokens (changed);
CREATE TABLE revision (number BIGINT NOT NULL);
INSERT INTO revision VALUES (0);
""",
    """
CREATE TABLE revoked (
  issuer TEXT NOT NULL, jti TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT NOT NULL,
  changed BIGINT NOT NULL, PRIMARY KEY (issuer, jti)
);
CREATE INDEX revoked_changed ON revoked (changed);
CREATE TABLE machines (name TEXT PRIMARY KEY, role TEXT NOT NULL, created BIGINT NOT NULL);
CREATE TABLE secrets (
  id TEXT PRIMARY KEY, machine TEXT NOT NULL, hash TEXT NOT NULL, created BIGINT NOT NULL, used BIGINT
);
""",
    """
ALTER TABLE secrets ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN owner TEXT NOT NULL DEFAULT '';
""",
)
_VERSION: Final = len(_SCHEMA)
_SELECT: Final = "SELECT id, name, role, created, expires, revoked, used, owner FROM tokens"
_SELECT_REVOKED: Final = "SELECT issuer, jti, created, expires FROM revoked"
_ADD_SECRET: Final = "INSERT INTO secrets (id, machine, hash, created, changed) VALUES (?, ?, ?, ?, ?)"  # noqa: S105 - SQL
_INSERT: Final = """
INSERT INTO tokens (id, name, role, created, expires, revoked, used, owner, kid, changed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class TooManyTokensError(LedgerError):
    """A person has, or has issued today, as many tokens as one may."""


class Token(NamedTuple):
    """What is known of one issued token. Times are in seconds since the epoch.

    ``owner`` is the person who has issued it, see ``owner_of()``, or empty if an operator has.
    """

    id: str
    name: str
    role: str
    created: int
    expires: int
    revoked: int | None
    used: int | None
    owner: str = ""

    def ended(self, now: float) -> bool:
        """Tell whether the token is revoked or has expired."""
        return self.revoked is not None or self.expires <= now


class Revocation(NamedTuple):
    """A token of another issuer, by its ``jti``, that is refused until it expires. Times are as in Token."""

    issuer: str
    jti: str
    created: int
    expires: int


class Secret(NamedTuple):
    """One secret of a machine. Times are as in Token."""

    id: str
    hash: str
    created: int
    used: int | None

    def __repr__(self) -> str:
        return f"Secret({self.id!r})"


class Machine(NamedTuple):
    """A machine that obtains tokens with its name and a secret."""

    name: str
    role: str
    created: int
    secrets: tuple[Secret, ...]


class Changes(NamedTuple):
    """What is newer than a revision of tokens and revocations, all machines and public keys, and the revision."""

    revision: int
    tokens: tuple[Token, ...]
    revoked: tuple[Revocation, ...]
    machines: tuple[Machine, ...]
    jwks: str


class DatedKey(NamedTuple):
    """A signing key, and when it was made."""

    created: int
    key: SigningKey


class Ledger:
    """The ledger in a database. ``passphrases`` encrypt the private keys: the first one encrypts, any of them decrypts.

    A key signs for ``rotate`` seconds, and is published until its last token has expired. Threads wait for each other.
    """

    def __init__(self, database: Database, passphrases: Sequence[str] = (), *, rotate: float) -> None:
        self._database = database
        self._passphrases = passphrases
        self._rotate = rotate
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """Return where the ledger is, for messages."""
        return self._database.name

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Open the ledger, or make it with its first signing key. Raises LedgerError."""
        with self._lock:
            try:
                self._database.open()
                self._set_up()
                self.rotate_keys()
            except BaseException:
                self._database.close()  # so that it is opened again, and not used as it is
                raise

    def close(self) -> None:
        """Close the ledger."""
        with self._lock:
            self._database.close()

    # what operators do ------------------------------------------------------------------------------------

    def issue(
        self,
        name: str,
        role: str,
        lifetime: float,
        issuer: str,
        audience: str,
        now: float | None = None,
        *,
        owner: str = "",
    ) -> tuple[str, Token]:
        """Return a new token and its entry, once that is on the disk.

        Raises LedgerError, and TooManyTokensError if its owner may have no more.
        """
        created = int(time.time() if now is None else now)
        entry = Token(secrets.token_hex(8), name, role, created, int(created + lifetime), None, None, owner)
        with self._change() as revision:
            self._prune(created)
            self._check_owner(owner, created)
            key = self._signing_key(created)
            self._sql(_INSERT, (*entry, key.kid, revision))
        claims: Mapping[str, Any] = {
            "iss": issuer,
            "aud": audience,
            "sub": name,
            "client_id": name,
            "jti": entry.id,
            "iat": entry.created,
            "exp": entry.expires,
            "roles": [role],
        }
        return key.sign(claims), entry

    def tokens(self) -> list[Token]:
        """Return the tokens of the list, by name, the oldest of a name first. Raises LedgerError."""
        with self._reading():
            rows = self._sql(_SELECT).fetchall()
        return sorted((Token(*row) for row in rows), key=lambda one: (one.name, one.created, one.id))

    def revoke(self, *, token_id: str = "", name: str = "") -> list[Token]:
        """Revoke one token, or all tokens of a name; return those that were valid before, once it is on the disk.

        Raises LedgerError.
        """
        now = int(time.time())
        with self._change() as revision:
            rows = self._sql(_SELECT + " WHERE id = ? OR name = ?", (token_id, name)).fetchall()
            valid = [one for one in (Token(*row) for row in rows) if not one.ended(now)]
            self._sql(
                "UPDATE tokens SET revoked = ?, changed = ? WHERE (id = ? OR name = ?) AND revoked IS NULL",
                (now, revision, token_id, name),
            )
        return valid

    def tokens_of(self, owner: str) -> list[Token]:
        """Return the tokens of a person that have not ended, the newest first. Raises LedgerError."""
        with self._reading():
            return self._tokens_of(owner)

    def revoke_owned(self, owner: str, token_id: str = "") -> list[Token]:
        """Revoke the tokens of a person, or the one of them with this id; otherwise as ``revoke()``."""
        with self._change() as revision:
            revoked = [one for one in self._tokens_of(owner) if token_id in {"", one.id}]
            for one in revoked:
                self._sql(
                    "UPDATE tokens SET revoked = ?, changed = ? WHERE id = ?", (int(time.time()), revision, one.id)
                )
        return revoked

    def revoke_of(self, issuer: str, jti: str, expires: int) -> None:
        """Revoke a token that is not in the list, until it expires, once that is on the disk. Raises LedgerError."""
        now = int(time.time())
        with self._change() as revision:
            self._prune(now)
            self._sql(
                "INSERT INTO revoked (issuer, jti, created, expires, changed) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (issuer, jti) DO UPDATE SET changed = excluded.changed, expires = "
                "CASE WHEN excluded.expires > revoked.expires THEN excluded.expires ELSE revoked.expires END",
                (issuer, jti, now, expires, revision),
            )

    def revocations(self) -> list[Revocation]:
        """Return the tokens that ``revoke_of()`` has revoked and that have not expired. Raises LedgerError."""
        with self._reading():
            rows = self._sql(_SELECT_REVOKED + " WHERE expires > ?", (int(time.time()),)).fetchall()
        return sorted((Revocation(*row) for row in rows), key=lambda one: (one.issuer, one.created, one.jti))

    def add_machine(self, name: str, role: str) -> str:
        """Add a machine, and return its first secret, once that is on the disk. Raises LedgerError."""
        secret = new_secret()
        with self._change() as revision:
            if self._sql("SELECT 1 FROM machines WHERE name = ?", (name,)).fetchone():
                told = f"`machines rotate {name}` makes another secret"
                raise LedgerError(f"there is a machine {name!r} already: {told}, and `machines remove` removes it")
            now = int(time.time())
            self._sql("INSERT INTO machines (name, role, created) VALUES (?, ?, ?)", (name, role, now))
            self._sql(_ADD_SECRET, (secret.id, name, secret.hash, now, revision))
        return secret.text

    def add_secret(self, name: str) -> tuple[str, list[Secret]]:
        """Return another secret of a machine, once that is on the disk, and those that it had. Raises LedgerError."""
        secret = new_secret()
        with self._change() as revision:
            if not self._sql("SELECT 1 FROM machines WHERE name = ?", (name,)).fetchone():
                raise LedgerError(f"there is no machine {name!r}: see `machines list`")
            before = self._secrets(name)
            if len(before) >= MAX_SECRETS:
                ids = " or ".join(one.id for one in before)
                told = f"remove the one that is not used any more with `machines remove-secret {name} ID` ({ids})"
                raise LedgerError(
                    f"{name!r} has {MAX_SECRETS} secrets already: {told}; `machines list` has the last uses"
                )
            self._sql(_ADD_SECRET, (secret.id, name, secret.hash, int(time.time()), revision))
        return secret.text, before

    def remove_secret(self, name: str, secret_id: str) -> bool:
        """Remove one secret of a machine, and so end its tokens; tell whether there was one. Raises LedgerError."""
        with self._change():
            done = self._sql("DELETE FROM secrets WHERE machine = ? AND id = ?", (name, secret_id))
        return bool(done.rowcount)

    def remove_machine(self, name: str) -> bool:
        """Remove a machine with its secrets, and so end its tokens; tell whether there was one. Raises LedgerError."""
        with self._change():
            self._sql("DELETE FROM secrets WHERE machine = ?", (name,))
            done = self._sql("DELETE FROM machines WHERE name = ?", (name,))
        return bool(done.rowcount)

    def machines(self) -> tuple[Machine, ...]:
        """Return the machines by name, with their secrets, the oldest first. Raises LedgerError."""
        with self._reading():
            return self._machines()

    def back_up(self, target: Path) -> None:
        """Write a copy of the ledger to a new file, for its owner alone, while others go on. Raises LedgerError."""
        with self._lock:
            self._database.back_up(target)

    # what the service does --------------------------------------------------------------------------------

    def stamp(self) -> Stamp:
        """Return the stamp of now. Raises LedgerError."""
        with self._lock:
            return self._database.stamp()

    def is_replaced(self) -> bool:
        """Tell whether the ledger must be opened again, and read from the start. Raises LedgerError if it is gone."""
        with self._lock:
            return self._database.is_replaced()

    def changes_since(self, revision: int) -> Changes:
        """Return what has changed after a revision; everything after -1. Raises LedgerError."""
        with self._reading():
            number = self._database.number("SELECT number FROM revision")
            rows = self._sql(_SELECT + " WHERE changed > ?", (revision,)).fetchall()
            revoked = self._sql(_SELECT_REVOKED + " WHERE changed > ?", (revision,)).fetchall()
            machines = self._machines()
            jwks = self._sql("SELECT jwk FROM keys ORDER BY created DESC, kid").fetchall()
        return Changes(
            number,
            tuple(Token(*row) for row in rows),
            tuple(Revocation(*row) for row in revoked),
            machines,
            json.dumps({"keys": [json.loads(jwk) for (jwk,) in jwks]}),
        )

    def note_uses(self, uses: Mapping[str, int]) -> None:
        """Remember when tokens and secrets were last used, by their ids. Raises LedgerError."""
        with self._lock, self._database.transaction(writes=True):
            for used_id, used in uses.items():
                for table in ("tokens", "secrets"):
                    self._sql(
                        f"UPDATE {table} SET used = ? WHERE id = ? AND (used IS NULL OR used < ?)",  # noqa: S608 - ours
                        (used, used_id, used),
                    )

    def rotate_keys(self, *, must_sign: bool = False) -> None:
        """Make a signing key if there is none or the last is too old, and drop what has expired. Raises LedgerError.

        A key that is encrypted for somebody else, who goes on signing with it, is enough unless this one ``must_sign``.
        """
        now = int(time.time())
        with self._reading():
            newest = self._sql("SELECT private, created FROM keys ORDER BY created DESC, kid LIMIT 1").fetchone()
            if newest is not None and newest[1] > now - self._rotate:
                found = key_from_pem(newest[0], self._passphrases)
                if (found is None and not must_sign) or (found is not None and found[1]):
                    return
        with self._change():
            self._prune(now)
            self._signing_key(now)

    def signing_keys(self) -> list[DatedKey]:
        """Return the keys that can sign, the newest first. Raises LedgerError."""
        with self._reading():
            return [key for key, _ in self._signing_keys()]

    # how --------------------------------------------------------------------------------------------------

    def _signing_key(self, now: int) -> SigningKey:
        """Return the key that signs now; make the next one, and encrypt them, if need be. Within a change."""
        found = self._signing_keys()
        for (_, key), is_kept_well in found:
            if not is_kept_well:
                self._sql("UPDATE keys SET private = ? WHERE kid = ?", (key.to_pem(self._passphrases), key.kid))
        keys = [key for key, _ in found]
        if not keys or keys[0].created <= now - self._rotate:
            key = new_key()
            values = key.kid, json.dumps(key.public_jwk()), key.to_pem(self._passphrases), now
            self._sql("INSERT INTO keys (kid, jwk, private, created) VALUES (?, ?, ?, ?)", values)
            keys.insert(0, DatedKey(now, key))
        return signer_of(keys, now)

    def _signing_keys(self) -> list[tuple[DatedKey, bool]]:
        """Return the keys that can be decrypted, the newest first, and whether each is kept as it should be."""
        rows = self._sql("SELECT private, created FROM keys ORDER BY created DESC, kid").fetchall()
        opened = ((created, key_from_pem(private, self._passphrases)) for private, created in rows)
        return [(DatedKey(created, found[0]), found[1]) for created, found in opened if found is not None]

    def _machines(self) -> tuple[Machine, ...]:
        secrets_of: dict[str, list[Secret]] = {}
        for machine, *secret in self._sql(
            "SELECT machine, id, hash, created, used FROM secrets ORDER BY created, changed"
        ).fetchall():
            secrets_of.setdefault(machine, []).append(Secret(*secret))
        rows = self._sql("SELECT name, role, created FROM machines").fetchall()
        return tuple(Machine(name, role, made, tuple(secrets_of.get(name, ()))) for name, role, made in sorted(rows))

    def _secrets(self, name: str) -> list[Secret]:
        selected = "SELECT id, hash, created, used FROM secrets WHERE machine = ? ORDER BY created, changed"
        return [Secret(*row) for row in self._sql(selected, (name,)).fetchall()]

    def _tokens_of(self, owner: str) -> list[Token]:
        where = " WHERE owner = ? AND revoked IS NULL AND expires > ? ORDER BY created DESC, id"
        return [Token(*row) for row in self._sql(_SELECT + where, (owner, int(time.time()))).fetchall()]

    def _check_owner(self, owner: str, now: int) -> None:
        """Raise TooManyTokensError if a person may issue no more. Within a change."""
        if not owner:
            return
        if len(self._tokens_of(owner)) >= MAX_OWNED:
            raise TooManyTokensError(f"{MAX_OWNED} tokens of one person are valid already")
        (today,) = self._sql(
            "SELECT count(*) FROM tokens WHERE owner = ? AND created > ?", (owner, now - 86_400)
        ).fetchone()
        if today >= MAX_OWNED_A_DAY:
            raise TooManyTokensError(f"one person has issued {MAX_OWNED_A_DAY} tokens within a day")

    def _prune(self, now: int) -> None:
        """Drop tokens that expired long ago, and keys that sign no more and have no token left. Within a change.

        A revocation is kept as long as a token can be accepted after its expiry, with the clocks of others.
        """
        self._sql("DELETE FROM tokens WHERE expires < ?", (now - KEEP_EXPIRED,))
        self._sql("DELETE FROM revoked WHERE expires < ?", (now - KEEP_REVOKED,))
        self._sql(
            "DELETE FROM keys WHERE created <= ? AND kid NOT IN (SELECT kid FROM tokens WHERE expires > ?) "
            "AND EXISTS (SELECT 1 FROM keys AS next WHERE next.created > keys.created AND next.created <= ?)",
            (now - self._rotate, now - KEEP_KEY, now - LEAD - MAX_UNLISTED - KEEP_KEY),
        )

    def _set_up(self) -> None:
        """Make the tables of a new ledger, or those that one of an earlier version lacks."""
        with self._database.transaction():
            version = self._database.version()
        if version == _VERSION:
            return
        with self._database.transaction(writes=True):
            version = self._database.version()  # another process may have been faster
            if version > _VERSION:
                told = f"{self.name} is of a later version ({version}): update this service, or name another place"
                raise LedgerError(told)
            for statement in filter(str.strip, "".join(_SCHEMA[version:]).split(";")):
                self._sql(statement)
            self._database.set_version(_VERSION)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Hold one transaction that reads."""
        with self._lock, self._database.transaction():
            yield

    @contextmanager
    def _change(self) -> Iterator[int]:
        """Hold one transaction that changes tokens or keys, and yield the number of its revision."""
        with self._lock, self._database.transaction(writes=True):
            self._sql("UPDATE revision SET number = number + 1")
            yield self._database.number("SELECT number FROM revision")

    def _sql(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        return self._database.run(statement, values)


def owner_of(issuer: str, subject: str) -> str:
    """Return how a person is named as an owner: issuer and subject. No issuer has a space."""
    return f"{issuer} {subject}"


def signer_of(keys: Sequence[DatedKey], now: float) -> SigningKey:
    """Return the key that signs now: the newest that has been published for ``LEAD`` seconds, or else the oldest.

    ``keys`` are the newest first, and at least one. An only key signs at once, since there is nothing to wait for.
    """
    return next((one.key for one in keys if one.created <= now - LEAD), keys[-1].key)
