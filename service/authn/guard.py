"""The one way to prove a name and a password, for the machine gates and the sign-in page alike.

A pair that cannot be one is refused by its characters. Wrong pairs are counted, by address and by name at an address,
before bcrypt or an issuer is paid for; too many, and the sender waits. A pair that was right from an address is not
held up there by the wrong ones of others, until it is wrong itself; so a worker outlives a neighbour with an old
password.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from service.authn.clients import Clients
from service.authn.passwords import Passwords
from service.core.errors import MalformedCredential, Problem, Rejected, Throttled
from service.core.model import Basic, Proof
from service.core.request.headers import parse_pair
from service.state.concurrency import RefusalDelay
from service.state.passwords import KnownPairs
from service.state.single_flight import SingleFlight
from service.state.throttle import Throttle, sender_of
from service.telemetry.events import Telemetry

_Attempt = tuple[tuple[str, bytes], int]  # a pair from a sender, and whose check it is for


@dataclass(frozen=True, slots=True)
class Guard:
    """Proves names and passwords, of the users file and of issuers' clients."""

    passwords: Passwords | None
    clients: Collection[Clients]
    throttle: Throttle
    known_pairs: KnownPairs
    telemetry: Telemetry
    delay: RefusalDelay
    _attempts: SingleFlight[_Attempt, Proof] = field(default_factory=SingleFlight)

    async def authenticate(self, credential: Basic, address: str) -> Proof:
        """Return whom a machine's pair proves, or raise Rejected, OutOfReach, or Throttled where it is not looked at.

        Callers with the same pair at the same address are one try.
        """
        # whose check a name is for is told by configuration alone, so that time tells nothing about the users
        prover = next((one for one in self.clients if one.takes(credential.username)), self.passwords)
        if prover is None:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        return await self._share(prover, credential, address)

    async def authenticate_user(self, username: str, password: str, address: str) -> Proof:
        """Return whom the pair of a user of the users file proves, as a person typed it; raises as above."""
        if self.passwords is None:
            raise Rejected(Problem.PASSWORD_NOT_ACCEPTED)
        try:
            credential = parse_pair(username, password)
        except MalformedCredential:
            raise Rejected(Problem.PAIR_WRONG, user=None) from None  # no such pair can be right, whoever exists
        proof = await self._share(self.passwords, credential, address)
        # a machine's pair that is known keeps the count as it is, or its polls would give a neighbour guess after guess
        await self.throttle.succeeded(address, username)
        return proof

    async def _share(self, prover: Clients | Passwords, credential: Basic, address: str) -> Proof:
        pair = self.known_pairs.key_of(sender_of(address), credential)
        return await self._attempts.run((pair, id(prover)), lambda: self._attempt(prover, credential, address, pair))

    async def _attempt(
        self, prover: Clients | Passwords, credential: Basic, address: str, pair: tuple[str, bytes]
    ) -> Proof:
        username, known = credential.username, pair in self.known_pairs
        if not known:
            await self._refuse_if_throttled(address, username)
            await self.throttle.failed(address, username)  # until it is known to be right: guesses come all at once
        try:
            proof = await prover.authenticate(credential)
        except Rejected:
            if known:
                self.known_pairs.discard(pair)
                await self.throttle.failed(address, username)
            raise
        except Exception:
            if not known:
                await self.throttle.undecided(address, username)
            raise
        self.known_pairs.add(pair)
        if not known:
            await self.throttle.succeeded(address, username)
        return proof

    async def _refuse_if_throttled(self, address: str, username: str) -> None:
        """Return at once where a password may be looked at, or raise Throttled a moment later."""
        wait = self.throttle.retry_after(address, username)
        if wait:
            self.telemetry.guess_refused(sender_of(address))
            await self.delay.wait()
            raise Throttled(Problem.TOO_MANY_GUESSES, seconds=wait, retry_after=wait)
