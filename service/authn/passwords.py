"""The users file's names and passwords: bcrypt off the event loop, and not paid on each request.

A success is remembered; the next request with the same password costs an HMAC. Whatever the outcome of a wrong pair, it
costs what the most expensive hash of the file costs, so that time tells nothing about who exists.
"""

import asyncio
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from service.adapters.users_file import UsersFile, verify_password
from service.core.errors import Problem, Rejected
from service.core.identity.grants import RoleAssignment
from service.core.model import Basic, Principal, Proof, Session
from service.state.concurrency import ConcurrencyLimit, RefusalDelay
from service.state.passwords import VerifiedPasswords
from service.state.single_flight import SingleFlight

LOCAL_ISSUER: Final = "local"
_NICENESS: Final = 10


@dataclass(frozen=True, slots=True)
class HashingPolicy:
    """How much bcrypt may cost at once: ``concurrency`` threads, and ``queue`` callers who wait for one.

    ``remember`` is for how many seconds a verified password is not hashed again, and for longer while there is no room
    for that.
    """

    concurrency: int = 1
    queue: int = 64
    remember: float = 300.0


class Passwords:
    """Verifies user names and passwords against the current users file."""

    def __init__(
        self,
        file: UsersFile,
        policy: HashingPolicy,
        roles: RoleAssignment,
        verified: VerifiedPasswords,
        delay: RefusalDelay,
    ) -> None:
        self._file = file
        self._policy = policy
        self._roles = roles
        self._verified = verified
        self._flights: SingleFlight[Basic, Proof] = SingleFlight()
        self._limit = ConcurrencyLimit(policy.concurrency, policy.queue, delay, Problem.PASSWORD_CHECKS_FULL)
        self._threads = ThreadPoolExecutor(
            policy.concurrency, thread_name_prefix="bcrypt", initializer=_yield_to_others
        )

    @property
    def waiting(self) -> int:
        """Return how many hashings are queued or under way."""
        return self._limit.inside

    def recall(self, credential: Basic) -> Proof | None:
        """Return what this pair proves, if that was verified a short time ago, or if there is no room to do it now.

        Else a flood of wrong pairs would shut out, one by one, those whose time has come to be hashed again.
        """
        password_hash = self._file.users.hashes.get(credential.username)
        if password_hash is None or not self._policy.remember:
            return None
        at = self._verified.verified_at(credential, password_hash)
        if at is None:
            return None
        if time.time() >= at + self._policy.remember:
            if not self._limit.full:
                return None
            at = self._verified.remember(credential, password_hash)
        return self._proof(credential, at)

    async def authenticate(self, credential: Basic) -> Proof:
        """Return whom the pair proves, and remember it, or raise Rejected, or Throttled where too many wait.

        Callers with the same pair share one hashing.
        """
        return self.recall(credential) or await self._flights.run(credential, lambda: self._verify(credential))

    def password_mark(self, username: str) -> str:
        """Return what tells a user's password of now from any other, or nothing for nobody; it proves nothing."""
        password_hash = self._file.users.hashes.get(username)
        return hashlib.sha256(password_hash.encode()).hexdigest()[:32] if password_hash else ""

    def is_current(self, session: Session) -> bool:
        """Tell whether a session was begun with a password that is still the user's."""
        return bool(session.password_mark) and session.password_mark == self.password_mark(session.subject)

    def close(self) -> None:
        """End the hashing threads; what waits is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _verify(self, credential: Basic) -> Proof:
        loop = asyncio.get_running_loop()
        async with self._limit.slot():
            while True:
                users = self._file.users
                password_hash = users.hashes.get(credential.username)
                proven = await loop.run_in_executor(
                    self._threads, verify_password, users, credential.username, credential.password
                )
                if self._file.users is users or self._file.users.hashes.get(credential.username) == password_hash:
                    break  # else the file was replaced meanwhile, and what was proven is no longer asked
        if not proven or password_hash is None:
            # an unknown name is not logged: it may be a password that was typed one field too early
            raise Rejected(Problem.PAIR_WRONG, user=credential.username if password_hash else None)
        return self._proof(credential, self._verified.remember(credential, password_hash))

    def _proof(self, credential: Basic, verified_at: float) -> Proof:
        principal = Principal(issuer=LOCAL_ISSUER, subject=credential.username, name=credential.username)
        return Proof(self._roles.assign(principal), verified_at + self._policy.remember)


def _yield_to_others() -> None:
    """Let the event loop go first: on Linux a thread has a nice value of its own."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
