"""The guard of the machine gates: whose check a user name and a password are for, and that nobody tries many.

Wrong pairs are counted where the sign-in page counts them, by address and by name at an address, before bcrypt or an
issuer is paid for. A pair that was right from an address is not held up there by the wrong ones of others, until it
is wrong itself; so a worker outlives a neighbour with an old password.
"""

import asyncio
from collections.abc import Collection
from typing import Final

from cachetools import TTLCache

from service.authn.clients import Clients
from service.authn.passwords import Passwords
from service.core.errors import Rejected, Throttled
from service.core.model import Basic, Proof
from service.core.problems import Problem
from service.state.fingerprints import Fingerprints
from service.state.throttle import Throttle, sender_of
from service.telemetry.events import Telemetry

KNOWN: Final = 10_000  # pairs that were right; strangers cannot add one
KNOWN_SECONDS: Final = 86_400.0
PATIENCE: Final = 0.25  # seconds after which a guesser is told to wait, whose next try would else come at once
AT_THE_DOOR: Final = 1_000  # guessers who are kept that long

_Mark = tuple[str, bytes]  # a sender, and the fingerprint of what it sent


class Guard:
    """Authenticates user names and passwords, of the users file and of issuers' clients."""

    def __init__(
        self, passwords: Passwords | None, clients: Collection[Clients], throttle: Throttle, telemetry: Telemetry
    ) -> None:
        self._passwords = passwords
        self._clients = clients
        self._throttle = throttle
        self._telemetry = telemetry
        self._fingerprints = Fingerprints()
        self._known: TTLCache[_Mark, bool] = TTLCache(KNOWN, KNOWN_SECONDS)
        self._flights: dict[_Mark, asyncio.Task[Proof]] = {}
        self._at_the_door = 0

    def succeed(self, before: "Guard") -> None:
        """Go on knowing which pairs were right."""
        self._known, self._fingerprints = before._known, before._fingerprints

    async def authenticate(self, credential: Basic, address: str) -> Proof:
        """Return whom the pair proves, or raise Rejected, OutOfReach, or Throttled where it is not looked at.

        Callers with the same pair at the same address are one try.
        """
        prover = self._prover_of(credential.username)
        mark = sender_of(address), self._fingerprints.of_pair(credential.username, credential.password)
        flight = self._flights.get(mark)
        if flight is None:
            flight = asyncio.create_task(self._try(prover, credential, address, mark))
            self._flights[mark] = flight
            flight.add_done_callback(lambda done: self._landed(mark, done))
        return await asyncio.shield(flight)

    def _landed(self, mark: _Mark, flight: asyncio.Task[Proof]) -> None:
        del self._flights[mark]
        if not flight.cancelled():
            flight.exception()  # each waiter has it; here it is only marked as seen

    def _prover_of(self, username: str) -> Clients | Passwords:
        """Return whose check a name is for: by configuration alone, so that time tells nothing about the users."""
        prover = next((one for one in self._clients if one.takes(username)), self._passwords)
        if prover is None:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        return prover

    async def _try(self, prover: Clients | Passwords, credential: Basic, address: str, mark: _Mark) -> Proof:
        username, known = credential.username, mark in self._known
        if not known:
            await self._admit(address, username)
            await self._throttle.failed(address, username)  # until it is known to be right: guesses come all at once
        try:
            proof = await prover.authenticate(credential)
        except Rejected:
            if known:
                del self._known[mark]
                await self._throttle.failed(address, username)
            raise
        except Exception:
            if not known:
                await self._throttle.undecided(address, username)
            raise
        self._known[mark] = True
        if not known:
            await self._throttle.succeeded(address, username)
        return proof

    async def _admit(self, address: str, username: str) -> None:
        """Return at once where a password may be looked at; a flood of refusals must not keep the event loop busy."""
        wait = self._throttle.retry_after(address, username)
        if not wait:
            return
        self._telemetry.guess_refused(sender_of(address))
        if self._at_the_door < AT_THE_DOOR:
            self._at_the_door += 1
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                self._at_the_door -= 1
        raise Throttled(Problem.TOO_MANY_GUESSES, retry_after=wait, seconds=wait)
