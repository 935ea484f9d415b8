"""A token, how long it lasts, and the keeper that has a valid one at hand."""

import asyncio
import logging
import random
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from service.core.errors import Refusal
from service.core.identity.compact import decode_segment, parse_json_object

log = logging.getLogger(__name__)

MAX_TOKEN: Final = 16 * 1024
LEEWAY: Final = 2.0  # seconds before its end from which a token is not sent any more
UNKNOWN_LIFE: Final = 300.0  # seconds after which a token is replaced that does not say how long it lasts
MAX_BACK_OFF: Final = 10.0  # seconds
_SHARE: Final = 2 / 3  # of its life, after which a token is replaced
_RENEWAL_PAUSE: Final = 1.0  # seconds between two renewals because of refusals
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1
_SEGMENTS: Final = 3


class SourceError(Exception):
    """A source has no token now. The message is for the log, and contains no secret."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that nobody has verified; ``expires`` is in seconds since the epoch, or None where it is not known."""

    value: str = field(repr=False)
    expires: float | None = None

    @property
    def seconds_left(self) -> float:
        """Return for how many seconds the token is good to be sent."""
        return UNKNOWN_LIFE if self.expires is None else self.expires - LEEWAY - time.time()


class Source(Protocol):
    """Where tokens come from."""

    @property
    def poll(self) -> float | None:
        """Return the time between two looks in seconds, where something else rotates the tokens."""

    async def fetch(self) -> Token:
        """Return a token, or raise SourceError."""

    def __str__(self) -> str: ...


def token_of(value: object, expires: float | None = None) -> Token:
    """Return a token that came from a source, with the expiry that it says itself where none is given."""
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > MAX_TOKEN or not _TOKEN.fullmatch(text):
        raise SourceError("what it gave is not a token" if text else "it gave no token")
    return Token(text, unverified_expiry(text) if expires is None else expires)


def unverified_expiry(token: str) -> float | None:
    """Return the ``exp`` of a JWT (RFC 7519 §4.1.4), or None for any other token."""
    segments = token.split(".")
    if len(segments) != _SEGMENTS:
        return None
    try:
        return _number(parse_json_object(decode_segment(segments[1].encode())).get("exp"))
    except (Refusal, ValueError, RecursionError):
        return None


def expiry_in(answer: dict[str, Any]) -> float | None:
    """Return when a token ends by the answer that it came in: ``expires_in``, or the time itself as number or text."""
    seconds = _number(answer.get("expires_in"))
    if seconds is not None:
        return time.time() + seconds
    for name in ("expires_at", "expires_on", "expirationTimestamp"):
        value = answer.get(name)
        number = _number(value)
        if number is not None:
            return number
        if isinstance(value, str) and value:
            try:
                moment = datetime.fromisoformat(value)
                return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError, OSError):
                raise SourceError(f"its {name} is not a time") from None
    return None


def _number(value: object) -> float | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:20])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class Keeper:
    """Has a valid token at hand: replaces it early, one fetch at a time, and again and again while there is none."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._token: Token | None = None
        self._fetched = 0  # how often
        self._changed = asyncio.Event()  # set, and replaced, with each token
        self._refused = asyncio.Event()  # set from a refusal to the next token
        self._renewed = float("-inf")

    async def token(self, until: float) -> Token:
        """Return a valid token; wait for one until this time of the event loop, or raise TimeoutError."""
        while (token := self._token) is None or token.seconds_left <= 0:
            async with asyncio.timeout_at(until):
                await self._changed.wait()
        return token

    async def renew(self, refused: Token, until: float) -> Token | None:
        """Return a token in place of one that was refused, or None if the source has no other one.

        Waits until this time of the event loop for the source, or raises TimeoutError.
        """
        if self._token is not None and self._token.value == refused.value:
            now = asyncio.get_running_loop().time()
            if not self._refused.is_set():
                if now < self._renewed + _RENEWAL_PAUSE:
                    return None
                self._renewed = now
                self._refused.set()
            fetched = self._fetched
            async with asyncio.timeout_at(until):
                while self._fetched == fetched:
                    await self._changed.wait()
        token = await self.token(until)
        return token if token.value != refused.value else None

    async def run(self) -> None:
        """Fetch tokens until cancelled."""
        failures, told = 0, ""
        while True:
            try:
                token = await self._fetch()
            except SourceError as problem:
                failures += 1
                if str(problem) != told:
                    told = str(problem)
                    log.warning("No new token from %s: %s. Trying again.", self._source, problem)
                pause = self._source.poll or min(MAX_BACK_OFF, 2.0 ** min(failures - 1, 10)) * random.uniform(0.7, 1)  # noqa: S311 - spreads load
                await asyncio.sleep(pause)
                continue
            if failures:
                log.warning("There is a new token from %s.", self._source)
            failures, told = 0, ""
            self._keep(token)
            life = token.seconds_left * _SHARE * random.uniform(0.9, 1)  # noqa: S311 - spreads load
            with suppress(TimeoutError):
                async with asyncio.timeout(self._source.poll or max(1.0, life)):
                    await self._refused.wait()

    async def _fetch(self) -> Token:
        try:
            token = await self._source.fetch()
        except SourceError:
            raise
        except Exception as problem:  # an agent that went on without its keeper would hold every request
            log.exception("No token could be had from %s", self._source)
            raise SourceError(type(problem).__name__) from None
        if token.seconds_left <= 0:
            raise SourceError("its token has ended")
        return token

    def _keep(self, token: Token) -> None:
        self._token = token
        self._fetched += 1
        self._refused.clear()
        self._changed.set()
        self._changed = asyncio.Event()
