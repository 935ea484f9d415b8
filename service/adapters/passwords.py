"""User names and passwords: bcrypt off the event loop, and not paid on each request.

A success is remembered, one a user, by its fingerprint; the next request with the same password costs an
HMAC. Failures are never remembered. Whatever the outcome of a wrong pair, it costs what the
most expensive hash of the file costs, so that time tells nothing about who exists.
"""

import asyncio
import hmac
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from service.adapters.users import UsersFile, verify_password
from service.core.errors import Rejected, Throttled
from service.core.model import Basic, Principal

log = logging.getLogger(__name__)

_WRONG: Final = "The user name or the password is wrong: check PREFECT_API_AUTH_STRING ('user:password')."
_RETRY_AFTER: Final = 2
_PATIENCE: Final = 0.25  # seconds
_AT_THE_DOOR: Final = 1000
LOCAL_ISSUER: Final = "local"


@dataclass(frozen=True, slots=True)
class HashingPolicy:
    """How much bcrypt may cost at once: ``concurrency`` threads, and ``queue`` callers who wait for one.

    ``remember`` is for how many seconds a verified password is not hashed again; a reload forgets it at once.
    """

    concurrency: int = 1
    queue: int = 64
    remember: float = 300.0


@dataclass(slots=True)
class _Remembered:
    fingerprint: bytes
    principal: Principal
    until: float


class Passwords:
    """Verifies user names and passwords against the current users file."""

    def __init__(self, file: UsersFile, policy: HashingPolicy, role: str = "") -> None:
        self._file = file
        self._policy = policy
        self._role = role
        self._remembered: dict[str, _Remembered] = {}
        self._flights: dict[bytes, asyncio.Task[Principal]] = {}
        self._waiting = 0
        self._at_the_door = 0
        self._limit = policy.concurrency + policy.queue
        self._threads = ThreadPoolExecutor(
            policy.concurrency, thread_name_prefix="bcrypt", initializer=_yield_to_others
        )

    @property
    def waiting(self) -> int:
        """Return how many hashings are queued or under way."""
        return self._waiting

    def recall(self, credential: Basic, fingerprint: bytes) -> Principal | None:
        """Return the principal if this very pair was verified a short time ago and the users are the same."""
        remembered = self._remembered.get(credential.username)
        if remembered is None or time.time() >= remembered.until:
            return None
        return remembered.principal if hmac.compare_digest(remembered.fingerprint, fingerprint) else None

    async def authenticate(self, credential: Basic, fingerprint: bytes) -> Principal:
        """Return whom the pair proves, and remember it, or raise Rejected, or Throttled where too many wait.

        Callers with the same pair share one hashing.
        """
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
            raise Throttled(
                "Too many passwords are being checked at once: try again shortly.",
                reason=f"{self._waiting} bcrypt checks wait (users.queue)",
                retry_after=_RETRY_AFTER,
            )

    def forget(self) -> None:
        """Forget every verified password: the users have changed."""
        self._remembered.clear()

    def close(self) -> None:
        """End the hashing threads; what waits is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _landed(self, fingerprint: bytes, flight: asyncio.Task[Principal]) -> None:
        self._waiting -= 1
        del self._flights[fingerprint]
        if not flight.cancelled():
            flight.exception()  # each waiter has it; here it is only marked as seen

    async def _verify(self, credential: Basic, fingerprint: bytes) -> Principal:
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
            who = f"user {credential.username!r}" if password_hash else "an unknown user"
            raise Rejected(_WRONG, reason=f"wrong pair of {who}")
        principal = Principal(
            issuer=LOCAL_ISSUER,
            subject=credential.username,
            name=credential.username,
            roles=(self._role,) if self._role else (),
        )
        until = time.time() + self._policy.remember
        self._remembered[credential.username] = _Remembered(fingerprint, principal, until)
        return principal


def _yield_to_others() -> None:
    """Let the event loop go first: on Linux a thread has a nice value of its own."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
