"""Wrong passwords are counted, by address and by user name at an address; too many, and the sender waits.

A person who is attacked from elsewhere is never locked out: what counts is where the wrong passwords come from. The
memory is bounded, and what does not fit is forgotten, never refused; strangers with a few failures push out each
other, and not those who have reached a limit.
"""

import time
from collections.abc import Callable
from typing import Final

from service.adapters.store import Store

CAPACITY: Final = 100_000


class Throttle:
    """Bounds the wrong passwords of an address to ``attempts`` within any ``window`` seconds, and those for one user.

    ``per_name`` bounds those for one user name at one address (by default ``attempts`` as well).
    """

    def __init__(
        self,
        *,
        attempts: int,
        window: float,
        per_name: int | None = None,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    def retry_after(self, address: str, username: str) -> int:
        """Return for how many seconds no password is to be looked at; 0 means go ahead. Looks at memory alone."""
        raise NotImplementedError

    async def failed(self, address: str, username: str) -> None:
        """Count a wrong password; it holds here at once, and elsewhere with the next wrong one there."""
        raise NotImplementedError

    async def succeeded(self, address: str, username: str) -> None:
        """Forget the wrong passwords for this user name at this address; those for other names stay."""
        raise NotImplementedError
