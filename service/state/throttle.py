"""Wrong passwords are counted, by address and by user name at an address; too many, and the sender waits.

A person who is attacked from elsewhere is not locked out: what counts is where the wrong passwords come from. Memory
is bounded, and what does not fit is forgotten, never refused. Senders with a few failures push out each other, and
never one who has reached a limit.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from cachetools import TTLCache

from service.adapters.store import Store, StoreUnavailable
from service.core.errors import MalformedRequest
from service.core.request.proxies import parse_address

CAPACITY: Final = 100_000  # senders below their limits, and as many who have reached one
_OTHERS: Final = ""  # stands for the names that another replica has counted and this one has not

_Failure = tuple[float, str]  # when, and the mark of which user name


class Throttle:
    """Lets an address send at most ``attempts`` wrong passwords within any ``window`` seconds.

    ``per_name`` bounds those for one user name at one address, where that shall be less. An IPv6 address stands for
    its /64, which is one subscriber's; callers whose address nobody tells are one sender together. With a store, the
    replicas' counts are added up; while it cannot be reached, each has its own.
    """

    def __init__(
        self,
        *,
        attempts: int,
        window: float,
        per_name: int | None = None,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
        capacity: int = CAPACITY,
    ) -> None:
        self._attempts = attempts
        self._per_name = min(per_name or attempts, attempts)
        self._window = window
        self._store = store
        self._clock = clock
        # sender → failures, the oldest first; forgotten a window after the last
        self._few: TTLCache[str, Sequence[_Failure]] = TTLCache(capacity, window, clock)
        self._many: TTLCache[str, Sequence[_Failure]] = TTLCache(capacity, window, clock)  # at a limit

    def succeed(self, before: "Throttle") -> None:
        """Go on with what was counted so far; another window begins anew."""
        if self._window == before._window:
            self._few, self._many = before._few, before._many

    def retry_after(self, address: str, username: str) -> int:
        """Return for how many seconds no password is to be looked at, where 0 means go ahead; never waits."""
        failures = self._many.get(sender_of(address))
        if failures is None:
            return 0
        oldest, name = self._clock() - self._window, _mark(username)
        of_all = [when for when, _ in failures if when > oldest]
        of_name = [when for when, whose in failures if when > oldest and whose == name]
        wait = 0.0
        if len(of_all) >= self._attempts:
            wait = of_all[-self._attempts] - oldest
        if len(of_name) >= self._per_name:
            wait = max(wait, of_name[-self._per_name] - oldest)
        return math.ceil(wait)

    async def failed(self, address: str, username: str) -> None:
        """Count a wrong password: here before anything is awaited, on another replica when that counts its next."""
        sender, name = sender_of(address), _mark(username)
        self._put(sender, [*self._take(sender), (self._clock(), name)])
        if self._store is None:
            return
        try:
            of_name, of_all, remaining = await self._store.tally(_tally(sender), name, self._window)
        except StoreUnavailable:
            return  # the log hears of that from the revocations
        known = self._take(sender)
        began = self._clock() - max(0.0, self._window - remaining)
        known += [(began, name)] * (min(of_name, self._attempts) - sum(whose == name for _, whose in known))
        known += [(began, _OTHERS)] * (min(of_all, self._attempts) - len(known))
        self._put(sender, sorted(known))

    async def succeeded(self, address: str, username: str) -> None:
        """Forget the wrong passwords for this user name at this address; those for other names still count."""
        sender, name = sender_of(address), _mark(username)
        self._put(sender, [one for one in self._take(sender) if one[1] != name])
        if self._store is not None:
            with suppress(StoreUnavailable):
                await self._store.strike(_tally(sender), name)

    async def undecided(self, address: str, username: str) -> None:
        """Take one count back: whether that password was wrong is not known."""
        sender, name = sender_of(address), _mark(username)
        failures = self._take(sender)
        last = max((place for place, one in enumerate(failures) if one[1] == name), default=len(failures))
        self._put(sender, failures[:last] + failures[last + 1 :])
        if self._store is not None:
            with suppress(StoreUnavailable):
                await self._store.tally(_tally(sender), name, self._window, by=-1)

    def _take(self, sender: str) -> list[_Failure]:
        """Take out a sender's failures that still count."""
        failures = self._many.pop(sender, ()) or self._few.pop(sender, ())
        oldest = self._clock() - self._window
        return [one for one in failures if one[0] > oldest]

    def _put(self, sender: str, failures: list[_Failure]) -> None:
        """Put a sender's failures where they belong; beyond the limit the last are all that matter."""
        if failures:
            failures = failures[-self._attempts :]
            most = max(Counter(name for _, name in failures).values())
            at_limit = len(failures) == self._attempts or most >= self._per_name
            (self._many if at_limit else self._few)[sender] = failures


@lru_cache(maxsize=4096)
def sender_of(address: str) -> str:
    """Return whom an address stands for: itself, an IPv6 one its /64, one that cannot be read nobody in particular."""
    try:
        parsed = parse_address(address)
    except MalformedRequest:
        return ""
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)


def _mark(username: str) -> str:
    """Return what stands for a user name, in little memory however long it is."""
    return hashlib.sha256(username.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tally(sender: str) -> str:
    return f"failures:{sender}"
