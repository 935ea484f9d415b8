"""The throttle: wrong passwords are counted by address, and by user name at an address.

What counts is where wrong passwords come from. So an attack from elsewhere does not lock a user out.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from cachetools import TLRUCache

from service.adapters.store import Store, StoreUnavailable
from service.core.errors import MalformedRequest
from service.core.request.proxies import parse_address

MAX_SENDERS: Final = 100_000  # below their limits, and as many who have reached one
AGGREGATES: Final = ((56, 4), (48, 16))  # larger IPv6 networks, and how many times the limits hold for each
_OTHERS: Final = ""  # the user names that only another replica has counted


class _Failure(NamedTuple):
    at: float  # by the clock of FailedAttempts, in seconds
    name: str  # what stands for the user name
    sender: str  # the address, or the /64, that it came from


class _Counted(NamedTuple):
    failures: Sequence[_Failure]  # the oldest first
    window: float  # seconds


def _forgotten_at(_: str, counted: _Counted, now: float) -> float:
    return now + counted.window


@dataclass(frozen=True, slots=True)
class GuessLimits:
    """How many wrong passwords an address may send within any ``window`` seconds.

    ``attempts``: for all user names together. ``per_name``: for one user name; at most ``attempts``.
    """

    attempts: int
    window: float
    per_name: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_name", min(self.per_name, self.attempts))

    def times(self, factor: int) -> "GuessLimits":
        """Return limits that are ``factor`` times as high, over the same window."""
        return self if factor == 1 else GuessLimits(self.attempts * factor, self.window, self.per_name * factor)


class FailedAttempts:
    """Remembers wrong passwords by sender, for the window of the limits under which they were counted.

    Memory is limited to ``capacity`` senders below their limits, and as many that have reached one. The least recently
    used is dropped; nobody is refused because memory is full. Senders with few failures cannot push out a sender that
    has reached a limit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, capacity: int = MAX_SENDERS) -> None:
        self.clock = clock
        self._few: TLRUCache[str, _Counted] = TLRUCache(capacity, _forgotten_at, clock)
        self._many: TLRUCache[str, _Counted] = TLRUCache(capacity, _forgotten_at, clock)  # at a limit

    def of(self, sender: str, window: float) -> list[_Failure]:
        """Return a sender's failures within the last ``window`` seconds, oldest first."""
        oldest = self.clock() - window
        counted = self._many.get(sender) or self._few.get(sender)
        return [one for one in counted.failures if one.at > oldest] if counted else []

    def replace(self, sender: str, failures: Sequence[_Failure], limits: GuessLimits) -> None:
        """Replace a sender's failures. Only the newest are kept, as many as the limits allow."""
        self._many.pop(sender, None)
        self._few.pop(sender, None)
        if failures:
            kept = failures[-limits.attempts :]
            most = max(Counter(one.name for one in kept).values())
            at_limit = len(kept) >= limits.attempts or most >= limits.per_name
            (self._many if at_limit else self._few)[sender] = _Counted(kept, limits.window)


class Network(NamedTuple):
    """What an address is counted for: itself or a network around it. Limits are multiplied by ``factor``."""

    name: str
    factor: int


@dataclass(frozen=True, slots=True)
class Throttle:
    """Counts wrong passwords, and tells how long a sender has to wait under these limits.

    An IPv6 address stands for its /64, which is one subscriber's, and counts for the /56 and the /48 around it as well,
    under limits that are 4 and 16 times as high: a subscriber may have any of these. Callers without a readable address
    are one sender together. With a store, the replicas' counts are added up; while it cannot be reached, each has its
    own.
    """

    failures: FailedAttempts
    limits: GuessLimits
    store: Store | None = None

    def retry_after(self, address: str, username: str) -> int:
        """Return the seconds for which no password of this sender is checked; 0 if it may be checked now."""
        return math.ceil(max(self._wait(network, username) for network in networks_of(address)))

    def _wait(self, network: Network, username: str) -> float:
        limits = self.limits.times(network.factor)
        failures = self.failures.of(network.name, limits.window)
        if len(failures) < limits.per_name:
            return 0.0
        oldest, name = self.failures.clock() - limits.window, _mark(username)
        of_name = [one.at for one in failures if one.name == name]
        wait = 0.0
        if len(failures) >= limits.attempts:
            wait = failures[-limits.attempts].at - oldest
        if len(of_name) >= limits.per_name:
            wait = max(wait, of_name[-limits.per_name] - oldest)
        return wait

    async def failed(self, address: str, username: str) -> None:
        """Count a wrong password. On this replica it counts before the first suspension."""
        failure = _Failure(self.failures.clock(), _mark(username), sender_of(address))
        networks = networks_of(address)
        for network in networks:
            self._replace(network, [*self._of(network), failure])
        if self.store is None:
            return
        for network in networks:
            try:
                counted = await self.store.tally(_tally(network), failure.name, self.limits.window)
            except StoreUnavailable:
                return  # the log hears of that from the revocations
            self._learn(network, failure, *counted)

    def _learn(self, network: Network, failure: _Failure, of_name: int, of_all: int, remaining: float) -> None:
        """Add what the other replicas have counted."""
        known, attempts = self._of(network), self.limits.attempts * network.factor
        began = self.failures.clock() - max(0.0, self.limits.window - remaining)
        missing = min(of_name, attempts) - sum(one.name == failure.name for one in known)
        known += [failure._replace(at=began)] * missing
        known += [_Failure(began, _OTHERS, failure.sender)] * (min(of_all, attempts) - len(known))
        self._replace(network, sorted(known))

    async def succeeded(self, address: str, username: str) -> None:
        """Forget the wrong passwords for this user name from this address. Those for other names still count."""
        sender, name = sender_of(address), _mark(username)
        for network in networks_of(address):
            known = self._of(network)
            kept = [one for one in known if (one.name, one.sender) != (name, sender)]
            self._replace(network, kept)
            if self.store is None:
                continue
            with suppress(StoreUnavailable):
                if network.factor == 1:
                    await self.store.remove_from_tally(_tally(network), name)
                elif len(kept) < len(known):  # what others around sent for this name still counts
                    await self.store.tally(_tally(network), name, self.limits.window, by=len(kept) - len(known))

    async def undecided(self, address: str, username: str) -> None:
        """Take one count back, because the password was not checked."""
        sender, name = sender_of(address), _mark(username)
        for network in networks_of(address):
            failures = self._of(network)
            own = (place for place, one in enumerate(failures) if (one.name, one.sender) == (name, sender))
            last = max(own, default=len(failures))
            self._replace(network, failures[:last] + failures[last + 1 :])
            if self.store is not None:
                with suppress(StoreUnavailable):
                    await self.store.tally(_tally(network), name, self.limits.window, by=-1)

    def _of(self, network: Network) -> list[_Failure]:
        return self.failures.of(network.name, self.limits.window)

    def _replace(self, network: Network, failures: Sequence[_Failure]) -> None:
        self.failures.replace(network.name, failures, self.limits.times(network.factor))


@lru_cache(maxsize=4096)
def networks_of(address: str) -> tuple[Network, ...]:
    """Return what an address is counted for, narrowest first: its ``sender_of()``, and for IPv6 the networks around."""
    narrowest = Network(sender_of(address), 1)
    if not narrowest.name.endswith("/64"):
        return (narrowest,)
    prefix = int(IPv6Address(narrowest.name.removesuffix("/64")))
    around = (
        Network(f"{IPv6Address(prefix >> (128 - bits) << (128 - bits))}/{bits}", factor) for bits, factor in AGGREGATES
    )
    return (narrowest, *around)


@lru_cache(maxsize=4096)
def sender_of(address: str) -> str:
    """Return the sender that an address belongs to: the address, for IPv6 its /64, or "" if it cannot be read."""
    try:
        parsed = parse_address(address)
    except MalformedRequest:
        return ""
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)


def _mark(username: str) -> str:
    """Return a short digest of a user name."""
    return hashlib.sha256(username.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tally(network: Network) -> str:
    return f"failures:{network.name}"
