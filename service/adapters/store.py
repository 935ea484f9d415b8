"""The store that replicas share: Redis 6.2 or newer, or Valkey.

Each call ends in a bounded time, in an answer or in StoreUnavailable, never in anything else: whoever calls knows what
to do alone. Connections are made when they are needed, so a store that comes back is used again by itself. The URL,
which may hold a password, is in no message and no repr.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

TIMEOUT: Final = 0.5  # seconds
PAGE: Final = 500  # entries read at once: a few milliseconds of the event loop
MAX_ENTRIES: Final = 100_000
_CONNECTIONS: Final = 32
_FIELD: Final = "entry"


class StoreError(Exception):
    """A store that is not configured correctly. The message is for the operator."""


class StoreUnavailable(Exception):  # noqa: N818 - a state that passes, named as one
    """The store did not answer in time or failed. The operation may still happen. The message is for the log."""


class Store:
    """Logs, tallies, claims and values that all replicas share. Everything in it expires."""

    def __init__(self, url: str, prefix: str, *, timeout: float = TIMEOUT) -> None:
        """Prepare the client without connecting; a call takes at most ``timeout`` seconds.

        Raises StoreError if the package is missing or the URL is not valid.
        """
        try:
            # imported here: the package is there only where a store is wanted
            from redis.asyncio import Redis  # noqa: PLC0415
            from redis.asyncio.retry import Retry  # noqa: PLC0415
            from redis.backoff import NoBackoff  # noqa: PLC0415
        except ImportError:
            raise StoreError("the store needs one more package: pip install 'prefect-forward-auth[redis]'") from None
        try:
            self._client: Any = Redis.from_url(
                url,
                protocol=2,
                decode_responses=True,
                max_connections=_CONNECTIONS,
                retry=Retry(NoBackoff(), 0),  # a claim that was made and asked for again would be another's
                socket_timeout=None,  # _bounded() is for the whole, and some reads wait on purpose
                socket_connect_timeout=timeout,
            )
        except Exception:  # noqa: BLE001 - whatever it is, it may quote the password
            raise StoreError("expected redis://[user:password@]host[:port][/number], rediss:// or unix://") from None
        self._prefix, self._timeout = prefix, timeout

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    # a log: what is appended by one is read by all, in one order -------------------------------------------

    async def append(self, name: str, entries: Sequence[str], keep: float) -> None:
        """Append to a log. Its entries expire after ``keep`` seconds by the store's clock."""
        key = self._prefix + name
        async with self._bounded(), self._client.pipeline(transaction=False) as batch:
            seconds, _ = await self._client.time()
            for entry in entries:
                batch.xadd(key, {_FIELD: entry}, minid=max(0, int((seconds - keep) * 1000)), approximate=True)
            batch.xtrim(key, maxlen=MAX_ENTRIES, approximate=True)
            batch.pexpire(key, _milliseconds(keep))
            await batch.execute()

    async def read(self, name: str, after: str, *, wait: float = 0) -> list[tuple[str, str]]:
        """Return the next entries after a position ("0" is the start), each with its own position.

        Where there are none yet, wait for the first for ``wait`` seconds.
        """
        async with self._bounded(wait):
            block = _milliseconds(wait) if wait else None
            answer = await self._client.xread({self._prefix + name: after}, count=PAGE, block=block)
            return [(position, fields.get(_FIELD, "")) for _, page in answer or () for position, fields in page]

    # claims and tallies -----------------------------------------------------------------------------------

    async def claim(self, name: str, seconds: float) -> bool:
        """Claim a name for some seconds; tell whether nobody else holds the claim."""
        async with self._bounded():
            return bool(await self._client.set(self._prefix + name, 1, nx=True, px=_milliseconds(seconds)))

    async def tally(self, name: str, member: str, seconds: float, *, by: int = 1) -> tuple[int, int, float]:
        """Add ``by`` to a member's count. Return its count, that of all members, and the seconds until they expire.

        The first count starts the time: ``seconds`` later the whole tally expires.
        """
        key = self._prefix + name
        async with self._bounded(), self._client.pipeline(transaction=True) as batch:
            batch.hincrby(key, member, by)
            batch.hvals(key)
            batch.pttl(key)
            count, counts, remaining = await batch.execute()
            if remaining < 0:
                remaining = _milliseconds(seconds)
                await self._client.pexpire(key, remaining)
            return count, sum(map(int, counts)), remaining / 1000

    async def remove_from_tally(self, name: str, member: str) -> None:
        """Remove a member from a tally."""
        async with self._bounded():
            await self._client.hdel(self._prefix + name, member)

    # hashes: members of one name, each with a value -------------------------------------------------------

    async def put(self, name: str, member: str, value: str, seconds: float) -> int:
        """Store a member's value, and return how many members there are. All expire ``seconds`` after the last put."""
        key = self._prefix + name
        async with self._bounded(), self._client.pipeline(transaction=True) as batch:
            batch.hset(key, member, value)
            batch.pexpire(key, _milliseconds(seconds))
            batch.hlen(key)
            *_, count = await batch.execute()
            return int(count)

    async def members(self, name: str) -> dict[str, str]:
        """Return the members with their values."""
        async with self._bounded():
            found: dict[str, str] = await self._client.hgetall(self._prefix + name)
            return found

    async def remove(self, name: str, *members: str) -> None:
        """Remove members."""
        async with self._bounded():
            await self._client.hdel(self._prefix + name, *members)

    # values -----------------------------------------------------------------------------------------------

    async def keep(self, name: str, value: str, seconds: float) -> None:
        """Store a value under a name for some seconds. A value that was there is replaced."""
        async with self._bounded():
            await self._client.set(self._prefix + name, value, px=_milliseconds(seconds))

    async def keep_all(self, names: Iterable[str], seconds: float) -> None:
        """Keep names without a value for some seconds."""
        async with self._bounded(), self._client.pipeline(transaction=False) as batch:
            for name in names:
                batch.set(self._prefix + name, 1, px=_milliseconds(seconds))
            await batch.execute()

    async def kept(self, names: Sequence[str]) -> list[bool]:
        """Tell for each name whether it is kept."""
        async with self._bounded():
            return [value is not None for value in await self._client.mget([self._prefix + name for name in names])]

    async def recall(self, name: str) -> str | None:
        """Return the value under a name, or None."""
        async with self._bounded():
            value: str | None = await self._client.get(self._prefix + name)
            return value

    @asynccontextmanager
    async def _bounded(self, wait: float = 0) -> AsyncIterator[None]:
        """Limit the time of what happens inside, and turn every error into StoreUnavailable."""
        seconds = self._timeout + wait
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise StoreUnavailable(f"no answer within {seconds:g} s") from None
        except Exception as problem:  # noqa: BLE001 - of several libraries, and none of them may reach a request
            raise StoreUnavailable(f"{type(problem).__name__}: {problem!s:.200}") from None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
