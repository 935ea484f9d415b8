"""The one way to verify a name and a password, for the machine gates and for the sign-in page.

The order is: check the characters, check the throttle, verify (bcrypt or the issuer), count the outcome. A pair that
was correct from an address is not throttled by wrong pairs that others send from there, until it is wrong itself. So a
worker keeps running next to a neighbour with an outdated password.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from service.authn.clients import Clients
from service.authn.machines import Granted, Machines
from service.authn.passwords import Passwords
from service.core.errors import MalformedCredential, Rejected, Throttled, Unclear
from service.core.model import Basic, Proof
from service.core.problems import Problem
from service.core.request.headers import parse_pair
from service.state.concurrency import RefusalDelay
from service.state.passwords import KnownPairs
from service.state.single_flight import SingleFlight
from service.state.throttle import Throttle, sender_of
from service.telemetry.events import Telemetry

WRONG_PAIRS: Final = frozenset({Problem.PAIR_WRONG, Problem.PAIR_WRONG_AT_ISSUER, Problem.CLIENT_REFUSED})
_Prover = Clients | Passwords | Machines
_Attempt = tuple[tuple[str, bytes], int]  # a pair from a sender, and whose check it is for


@dataclass(frozen=True, slots=True)
class Guard:
    """Verifies names and passwords of the users file, and ids and secrets of issuers' clients and of machines."""

    passwords: Passwords | None
    clients: Collection[Clients]
    throttle: Throttle
    known_pairs: KnownPairs
    telemetry: Telemetry
    delay: RefusalDelay
    machines: Machines | None = None
    _attempts: SingleFlight[_Attempt, Proof] = field(default_factory=SingleFlight)

    async def authenticate(self, credential: Basic, address: str) -> Proof:
        """Return the principal of a pair that a machine sent from ``address``.

        Concurrent callers with the same pair and address count as one attempt. Raises Rejected for a wrong pair,
        OutOfReach if the issuer does not answer, and Throttled if the pair is not checked.
        """
        # decided by configuration alone, so the response time does not tell which users exist
        prover = next((one for one in self.clients if one.takes(credential.username)), self.passwords)
        if prover is None:
            raise Rejected(Problem.CLIENT_NOT_CONFIGURED if self.clients else Problem.PASSWORD_NOT_ACCEPTED)
        return await self._share(prover, credential, address)

    async def authenticate_user(self, username: str, password: str, address: str) -> Proof:
        """Return the principal of a pair that a person typed at the sign-in page; raises as authenticate() does."""
        if self.passwords is None:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        try:
            credential = parse_pair(username, password)
        except MalformedCredential:
            raise Rejected(Problem.PAIR_WRONG, user=None) from None  # no user can have it
        proof = await self._share(self.passwords, credential, address)
        # only here: a worker's regular calls must not reset the count of a neighbour that guesses its password
        await self.throttle.succeeded(address, username)
        return proof

    async def grant(self, name: str, secret: str, address: str) -> Granted:
        """Return a token for a machine that asked for one from ``address``; raises as authenticate() does."""
        if self.machines is None:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        try:
            credential = parse_pair(name, secret)
        except MalformedCredential:
            raise Rejected(Problem.PAIR_WRONG, user=None) from None  # no machine can have it
        await self._share(self.machines, credential, address)
        return self.machines.issue(credential)

    async def _share(self, prover: _Prover, credential: Basic, address: str) -> Proof:
        pair = self.known_pairs.key_of(sender_of(address), credential)
        return await self._attempts.run((pair, id(prover)), lambda: self._attempt(prover, credential, address, pair))

    async def _attempt(self, prover: _Prover, credential: Basic, address: str, pair: tuple[str, bytes]) -> Proof:
        username, known = credential.username, pair in self.known_pairs
        if not known:
            await self._refuse_if_throttled(address, username)
            await self.throttle.failed(address, username)  # counted first, because guesses may arrive all at once
        try:
            proof = await prover.authenticate(credential)
        except Unclear:
            raise  # the pair may be wrong, so it stays counted, unless it was correct from here before
        except Exception as problem:
            wrong = isinstance(problem, Rejected) and problem.problem in WRONG_PAIRS
            if wrong and known:
                self.known_pairs.discard(pair)
                await self.throttle.failed(address, username)
            elif not wrong and not known:
                await self.throttle.undecided(address, username)
            raise
        self.known_pairs.add(pair)
        if not known:
            await self.throttle.succeeded(address, username)
        return proof

    async def _refuse_if_throttled(self, address: str, username: str) -> None:
        """Return if a password of this sender may be checked; otherwise raise Throttled after a delay."""
        wait = self.throttle.retry_after(address, username)
        if wait:
            self.telemetry.guess_refused(sender_of(address))
            await self.delay.wait()
            raise Throttled(Problem.TOO_MANY_GUESSES, seconds=wait, retry_after=wait)
