"""What one process knows of the issued tokens: a copy of the ledger in memory, read again when it changes.

No request waits for the ledger, but for one with a token that was signed with a key of ours and is not known yet: it
may have been issued a moment ago by another process.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from service.adapters.jwks import NO_KEYS, KeySet, parse_jwks
from service.adapters.users_file import Users
from service.issuing.database import LedgerError, Stamp
from service.issuing.ledger import (
    KEEP_REVOKED,
    Changes,
    DatedKey,
    Ledger,
    Machine,
    Token,
    signer_of,
)
from service.issuing.signing import ALGORITHM, SigningKey

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between two looks at the ledger: a revocation is in force within this time
LOOK_FOR_REQUEST: Final = 0.1  # seconds between two looks that requests cause
MAX_STALE: Final = 300.0  # seconds for which the copy is used while the ledger cannot be read
NOTE_USES: Final = 60.0  # seconds between two notes of when tokens were last used
ROTATE: Final = 3_600.0  # seconds between two looks at the age of the signing key


class IssuedTokens:
    """The issued tokens and the public keys. ``on_revoked`` is called when something known is no longer valid."""

    def __init__(self, ledger: Ledger, issuer: str, on_revoked: Callable[[], None]) -> None:
        self.keys: KeySet = NO_KEYS
        self.problem = ""
        self.users = Users({})  # the secrets of machines, as verify_password() wants them; see user_of()
        self._ledger = ledger
        self._issuer = issuer
        self._on_revoked = on_revoked
        self._tokens: dict[str, Token] = {}
        self._revoked: dict[tuple[str, str], int] = {}  # issuer and jti, and the expiry
        self._machines: dict[str, Machine] = {}  # by the ids of their secrets
        self._signing: list[DatedKey] = []
        self._uses: dict[str, int] = {}
        self._revision = -1
        self._stamp: Stamp | None = None
        self.jwks = ""  # the public keys, as a JWK set (RFC 7517 §5)
        self._read_at = float("-inf")  # monotonic: when the last good look began
        self._one_at_a_time = asyncio.Lock()  # for whatever uses the ledger

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def place(self) -> str:
        """Return where the ledger is, for messages."""
        return self._ledger.name

    def find(self, token_id: str) -> Token | None:
        """Return what is known of a token."""
        return self._tokens.get(token_id)

    def is_revoked(self, issuer: str, jti: str) -> bool:
        """Tell whether a token was revoked that is not in the list of issued ones.

        The copy is used for that however old it is: whoever cannot read the ledger cannot add to it, either.
        """
        return (issuer, jti) in self._revoked

    def machine_of(self, secret_id: str) -> Machine | None:
        """Return the machine that a secret belongs to."""
        return self._machines.get(secret_id)

    def signer(self) -> SigningKey | None:
        """Return the key that signs now, or None if there is none that could be decrypted."""
        return signer_of(self._signing, time.time()) if self._signing else None

    def note_use(self, used_id: str) -> None:
        """Remember that a token or a secret is used now."""
        self._uses[used_id] = int(time.time())

    @property
    def is_fresh(self) -> bool:
        """Tell whether the copy may be used."""
        return time.monotonic() < self._read_at + MAX_STALE

    @property
    def believed_until(self) -> float:
        """Return until when the copy may be used, in seconds since the epoch."""
        return time.time() + self._read_at + MAX_STALE - time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return how many tokens are known, and the problem if there is one, for the readiness document."""
        return {"count": len(self._tokens), "problem": self.problem}

    # what keeps the copy right ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ledger and read all of it. Raises LedgerError."""
        async with self._one_at_a_time:
            await asyncio.to_thread(self._open)
            self._take(*await asyncio.to_thread(self._news, None, -1))

    async def follow(self) -> None:
        """Read what changes, note uses, and rotate keys, until cancelled."""
        note_at, rotate_at = time.monotonic() + NOTE_USES, time.monotonic() + ROTATE
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self.look()
            except Exception:
                log.exception("tokens: looking at the ledger failed; it is tried again")
            if self.problem:  # what cannot be read need not be written to: there would be one more problem to log
                continue
            if time.monotonic() >= note_at:
                await self._write(self._note_uses)
                note_at = time.monotonic() + NOTE_USES
            if time.monotonic() >= rotate_at:
                await self._write(self._rotate_keys)
                rotate_at = time.monotonic() + ROTATE

    async def look(self) -> None:
        """Read what has changed in the ledger until now. A problem is logged, and the copy stays as it is."""
        asked = time.monotonic()
        async with self._one_at_a_time:
            if self._read_at > asked:  # somebody else has looked since
                return
            began = time.monotonic()
            try:
                news = await asyncio.to_thread(self._news, self._stamp, self._revision)
            except LedgerError as problem:
                self._fail(problem)
                return
            if self.problem:
                log.info("tokens: the ledger can be read again")
            self.problem = ""
            self._take(*news)
            self._read_at = began

    async def look_for_request(self) -> None:
        """Look as ``look()`` does, but not more often than once in ``LOOK_FOR_REQUEST`` seconds."""
        await asyncio.sleep(max(0.0, self._read_at + LOOK_FOR_REQUEST - time.monotonic()))
        await self.look()

    async def stop(self) -> None:
        """Note the last uses, and close the ledger."""
        if self._stamp is not None:
            await self._write(self._note_uses)
        async with self._one_at_a_time:
            await asyncio.to_thread(self._ledger.close)

    def _open(self) -> None:
        self._ledger.open()
        self._rotate_keys()

    def _rotate_keys(self) -> None:
        self._ledger.rotate_keys(must_sign=True)

    def _news(self, stamp: Stamp | None, revision: int) -> tuple[Stamp, Changes | None, bool]:
        """Return the stamp of now, what is new since, if anything, and whether that is the whole ledger."""
        if self._ledger.is_replaced():
            self._open()
            stamp = None
        now = self._ledger.stamp()
        if now == stamp:
            return now, None, False
        if stamp is not None and now.place == stamp.place:
            changes = self._ledger.changes_since(revision)
            if changes.revision >= revision:
                return now, self._with_signing(changes), False
        return now, self._with_signing(self._ledger.changes_since(-1)), True

    def _with_signing(self, changes: Changes) -> Changes:
        """Return the changes as they are; where keys have changed, read the private ones, which takes a while."""
        if changes.jwks != self.jwks:
            self._signing = self._ledger.signing_keys()
        return changes

    def _take(self, stamp: Stamp, changes: Changes | None, is_all: bool) -> None:  # noqa: FBT001 - as _news() returns it
        self._stamp = stamp
        if changes is None:
            return
        before = {} if is_all else self._tokens
        lost = is_all and bool(self._tokens)
        for one in changes.tokens:
            known = self._tokens.get(one.id)
            lost = lost or (known is not None and one.revoked is not None and known.revoked is None)
            before[one.id] = one
        self._tokens = before
        revoked = {(one.issuer, one.jti): one.expires for one in changes.revoked}
        lost = lost or not revoked.keys() <= self._revoked.keys()
        still = time.time() - KEEP_REVOKED
        kept = {} if is_all else {token: expires for token, expires in self._revoked.items() if expires > still}
        self._revoked = kept | revoked
        machines = {secret.id: machine for machine in changes.machines for secret in machine.secrets}
        lost = lost or not self._machines.keys() <= machines.keys()
        self._machines = machines
        self.users = Users({user_of(one.name, x.id): x.hash for one in changes.machines for x in one.secrets})
        self._revision = changes.revision
        if changes.jwks != self.jwks:
            lost = lost or bool(self.jwks)
            self.jwks = changes.jwks
            self.keys = parse_jwks(changes.jwks.encode(), frozenset({ALGORITHM}), self._issuer)
        if self._read_at == float("-inf"):
            self._read_at = time.monotonic()
        if lost:
            self._on_revoked()

    def _note_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            self._ledger.note_uses(uses)
        except LedgerError:
            self._uses = uses | self._uses  # for the next time
            raise

    async def _write(self, work: Callable[[], None]) -> None:
        async with self._one_at_a_time:
            try:
                await asyncio.to_thread(work)
            except LedgerError as problem:
                self._fail(problem)

    def _fail(self, problem: LedgerError) -> None:
        if str(problem) != self.problem:
            log.warning("tokens: %s", problem)
        self.problem = str(problem)


def user_of(machine: str, secret_id: str) -> str:
    """Return the name under which the hash of a machine's secret is kept. No machine's name has a colon."""
    return f"{machine}:{secret_id}"
