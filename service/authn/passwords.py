"""Verifies user names and passwords of the users file, with bcrypt in threads.

A correct password is remembered, so the next request with it costs an HMAC instead of bcrypt. A wrong pair always costs
as much as the most expensive hash of the file, so the response time does not tell which users exist.
"""

import asyncio
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from service.adapters.users_file import Users, verify_password
from service.core.errors import Rejected
from service.core.identity.grant_index import RoleAssignment
from service.core.model import Basic, Principal, Proof, Session
from service.core.problems import Problem
from service.state.concurrency import ConcurrencyLimit, RefusalDelay
from service.state.passwords import VerifiedPasswords
from service.state.single_flight import SingleFlight

LOCAL_ISSUER: Final = "local"
_NICENESS: Final = 10


@dataclass(frozen=True, slots=True)
class HashingPolicy:
    """Limits of bcrypt: ``concurrency`` threads, and ``queue`` callers that wait for one.

    ``remember``: a verified password is not verified again for so many seconds, or longer while the queue is full.
    """

    concurrency: int = 1
    queue: int = 64
    remember: float = 300.0


class HasUsers(Protocol):
    """What has the users and their hashes: each change is another value."""

    users: Users


class Passwords:
    """Verifies user names and passwords against the current users file, or whatever else has users."""

    def __init__(
        self,
        file: HasUsers,
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
        """Return how many verifications are running or queued."""
        return self._limit.inside

    def recall(self, credential: Basic) -> Proof | None:
        """Return the proof for this pair if it is remembered, or None.

        An entry that has expired is still used while the queue is full. Otherwise a flood of wrong pairs would lock out
        correct callers, one by one, as their entries expire.
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
        """Return the principal of the pair and remember it. Callers with the same pair share one verification.

        Raises Rejected for a wrong pair, and Throttled if the queue is full.
        """
        return self.recall(credential) or await self._flights.run(credential, lambda: self._verify(credential))

    def password_mark(self, username: str) -> str:
        """Return a mark of the user's current password hash, or an empty string if there is no such user."""
        password_hash = self._file.users.hashes.get(username)
        return hashlib.sha256(password_hash.encode()).hexdigest()[:32] if password_hash else ""

    def is_current(self, session: Session) -> bool:
        """Tell whether the user still has the password with which the session began."""
        return bool(session.password_mark) and session.password_mark == self.password_mark(session.subject)

    def close(self) -> None:
        """Stop the threads; queued verifications are cancelled."""
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
                    break  # otherwise the file was replaced meanwhile, with another hash for this user
        if not proven or password_hash is None:
            # an unknown name is not logged: it may be a password that was typed into the wrong field
            raise Rejected(Problem.PAIR_WRONG, user=credential.username if password_hash else None)
        return self._proof(credential, self._verified.remember(credential, password_hash))

    def _proof(self, credential: Basic, verified_at: float) -> Proof:
        principal = Principal(issuer=LOCAL_ISSUER, subject=credential.username, name=credential.username)
        return Proof(self._roles.assign(principal), verified_at + self._policy.remember)


def _yield_to_others() -> None:
    """Give the thread a lower priority than the event loop. On Linux each thread has its own nice value."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
