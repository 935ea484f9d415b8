"""User names and passwords: bcrypt off the event loop, and not paid on each request.

A success is remembered, one a user, by its fingerprint; the next request with the same password costs an
HMAC. Failures are never remembered. Whatever the outcome of a wrong pair, it costs what the
most expensive hash of the file costs, so that time tells nothing about who exists.
"""

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from service.adapters.users_file import UsersFile, verify_password
from service.core.errors import Rejected, Throttled
from service.core.identity.grants import Grant, with_roles
from service.core.model import Basic, Principal, Proof, Session
from service.core.problems import Problem
from service.state.fingerprints import Fingerprints

log = logging.getLogger(__name__)

_RETRY_AFTER: Final = 2
_PATIENCE: Final = 0.25  # seconds
_AT_THE_DOOR: Final = 1000
LOCAL_ISSUER: Final = "local"
_NOTHING: Final[tuple[bytes, Proof | None]] = (b"", None)


@dataclass(frozen=True, slots=True)
class HashingPolicy:
    """How much bcrypt may cost at once: ``concurrency`` threads, and ``queue`` callers who wait for one.

    ``remember`` is for how many seconds a verified password is not hashed again, and for longer while there is no room
    for that; a reload forgets it at once.
    """

    concurrency: int = 1
    queue: int = 64
    remember: float = 300.0


class Passwords:
    """Verifies user names and passwords against the current users file."""

    def __init__(self, file: UsersFile, policy: HashingPolicy, role: str = "", grants: Sequence[Grant] = ()) -> None:
        self._file = file
        self._policy = policy
        self._role = role
        self._grants = grants
        self._remembered: dict[str, tuple[bytes, Proof]] = {}  # by user name
        self._fingerprints = Fingerprints()
        self._flights: dict[bytes, asyncio.Task[Proof]] = {}
        self._waiting = 0
        self._at_the_door = 0
        self._limit = policy.concurrency + policy.queue
        self._threads = ThreadPoolExecutor(
            policy.concurrency, thread_name_prefix="bcrypt", initializer=_yield_to_others
        )

    def succeed(self, before: "Passwords") -> None:
        """Remember what was verified so far, where users and roles are the same: not all are hashed again at once."""
        ours = (self._file.users, self._role, self._grants, self._policy.remember)
        if ours == (before._file.users, before._role, before._grants, before._policy.remember):
            self._remembered, self._fingerprints = dict(before._remembered), before._fingerprints

    @property
    def waiting(self) -> int:
        """Return how many hashings are queued or under way."""
        return self._waiting

    def recall(self, credential: Basic) -> Proof | None:
        """Return what this pair proved before, if the users are the same: a short time ago, or while none can wait.

        Else a flood of wrong pairs would shut out, one by one, those whose time has come to be hashed again.
        """
        fingerprint, proof = self._remembered.get(credential.username, _NOTHING)
        if proof is None or not compare_digest(fingerprint, self._fingerprint(credential)):
            return None
        if time.time() < proof.until:
            return proof
        if self._waiting < self._limit or not self._policy.remember:
            return None
        return self._remember(credential.username, fingerprint, proof)

    def _remember(self, username: str, fingerprint: bytes, proof: Proof) -> Proof:
        proof = proof._replace(until=time.time() + self._policy.remember)
        self._remembered[username] = (fingerprint, proof)
        return proof

    async def authenticate(self, credential: Basic) -> Proof:
        """Return whom the pair proves, and remember it, or raise Rejected, or Throttled where too many wait.

        Callers with the same pair share one hashing.
        """
        proof = self.recall(credential)
        if proof is not None:
            return proof
        fingerprint = self._fingerprint(credential)
        flight = self._flights.get(fingerprint)
        if flight is None:
            await self._room()
            flight = self._flights.get(fingerprint)
        if flight is None:
            self._waiting += 1
            flight = asyncio.create_task(self._verify(credential, fingerprint))
            self._flights[fingerprint] = flight
            flight.add_done_callback(lambda done: self._landed(fingerprint, done))
        return await asyncio.shield(flight)

    def _fingerprint(self, credential: Basic) -> bytes:
        return self._fingerprints.of_pair(credential.username, credential.password)

    def mark_of(self, username: str) -> str:
        """Return what tells a user's password of now from any other, or nothing for nobody; it proves nothing."""
        password_hash = self._file.users.hashes.get(username)
        return hashlib.sha256(password_hash.encode()).hexdigest()[:32] if password_hash else ""

    def stands(self, session: Session) -> bool:
        """Tell whether a session was begun with a password that is still the user's."""
        return bool(session.password_mark) and session.password_mark == self.mark_of(session.subject)

    async def _room(self) -> None:
        """Return once another hashing may be queued, or raise Throttled.

        A full queue is given a moment to empty. That serves an honest caller, and slows down a guesser, whose next
        try would else come at once and keep the event loop busy with refusals.
        """
        if self._waiting >= self._limit and self._at_the_door < _AT_THE_DOOR:
            self._at_the_door += 1
            try:
                await asyncio.sleep(_PATIENCE)
            finally:
                self._at_the_door -= 1
        if self._waiting >= self._limit:
            raise Throttled(Problem.PASSWORD_CHECKS_FULL, retry_after=_RETRY_AFTER, waiting=self._waiting)

    def forget(self) -> None:
        """Forget every verified password: the users have changed."""
        self._remembered.clear()

    def close(self) -> None:
        """End the hashing threads; what waits is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _landed(self, fingerprint: bytes, flight: asyncio.Task[Proof]) -> None:
        self._waiting -= 1
        del self._flights[fingerprint]
        if not flight.cancelled():
            flight.exception()  # each waiter has it; here it is only marked as seen

    async def _verify(self, credential: Basic, fingerprint: bytes) -> Proof:
        loop = asyncio.get_running_loop()
        while True:
            users = self._file.users
            password_hash = users.hashes.get(credential.username)
            proven = await loop.run_in_executor(
                self._threads, verify_password, users, credential.username, credential.password
            )
            if self._file.users is users or self._file.users.hashes.get(credential.username) == password_hash:
                break  # else the file was replaced meanwhile, and what was proven is no longer asked
        if not proven:
            # an unknown name is not logged: it may be a password that was typed one field too early
            raise Rejected(Problem.PAIR_WRONG, user=credential.username if password_hash else None)
        principal = Principal(
            issuer=LOCAL_ISSUER,
            subject=credential.username,
            name=credential.username,
            roles=(self._role,) if self._role else (),
        )
        proof = Proof(with_roles(principal, self._grants), 0)
        return self._remember(credential.username, fingerprint, proof)


def _yield_to_others() -> None:
    """Let the event loop go first: on Linux a thread has a nice value of its own."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
