"""Browser sessions: sealed into a cookie, opened, and vouched for again while they last.

Nothing is stored here, so replicas share the key alone. What is remembered for a short while is a renewal that has
just been made, since a page asks for many things at once and a refresh token may be good for one use.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from cachetools import TTLCache

from service.authn.seal import Seal
from service.core.errors import NotPermitted, OutOfReach, SessionEnded, SignInFailed
from service.core.identity.sessions import (
    SessionPolicy,
    dump_session,
    ends_at,
    load_session,
    principal_of,
    validate_session,
)
from service.core.model import Principal, Proof, Session, SessionCookie
from service.core.problems import Problem
from service.core.request.cookies import CHUNK, MAX_SEALED

log = logging.getLogger(__name__)

GRACE: Final = 3_600.0  # seconds for which a session lasts while whoever vouches for it cannot be asked
RETRY: Final = 15.0  # seconds before a provider that was out of reach is asked again
SIBLING: Final = 60.0  # seconds in which another replica may have used the same refresh token
_PURPOSE: Final = "session"


class Revocations(Protocol):
    """Sessions that were ended before their time."""

    def revoked(self, session: Session) -> bool:
        """Tell whether this one was."""

    async def revoke_session(self, session_id: str) -> bool:
        """End one, for all replicas."""


Renew = Callable[[Session], Awaitable[Session]]
Claim = Callable[[str, float], Awaitable[bool]]
Admit = Callable[[Principal, Mapping[str, Any]], Principal]
Stands = Callable[[Session], bool]


@dataclass(slots=True)
class Vouchers:
    """Who vouches for the sessions of one issuer: ``stands`` on each look, ``renew`` when ``check_at`` has come.

    ``admit`` adds the roles that a principal is granted, by the claims that the session kept.
    """

    stands: Stands = field(default=lambda _: True)
    renew: Renew | None = None
    admit: Admit = field(default=lambda principal, _: principal)


class _SiblingRenewsError(Exception):
    """Another replica is asking the provider about this very session."""


class Opened(NamedTuple):
    """A session that is good, and the cookie to replace it with, if there is a new one."""

    session: Session
    proof: Proof
    sealed: str | None


class Sessions:
    """Seals, opens and renews sessions."""

    def __init__(
        self,
        seal: Seal,
        policy: SessionPolicy,
        vouchers: dict[str, Vouchers],
        revocations: Revocations,
        claim: Claim | None = None,
    ) -> None:
        """Take ``claim``, where replicas share a store: it tells one of them that a renewal is its own to make."""
        self.policy = policy
        self._seal = seal
        self._vouchers = vouchers
        self._revocations = revocations
        self._claim = claim
        self._flights: dict[str, asyncio.Task[Session]] = {}
        self._renewed: TTLCache[tuple[str, float], str] = TTLCache(5_000, ttl=600)
        self._left_since: TTLCache[tuple[str, float], float] = TTLCache(5_000, ttl=policy.lifetime)
        self._resting: dict[str, float] = {}

    def succeed(self, before: "Sessions") -> None:
        """Share the renewals that were made or are under way: a refresh token may be good for one use."""
        self._flights, self._renewed = before._flights, before._renewed
        self._left_since, self._resting = before._left_since, before._resting

    def seal(self, session: Session) -> str:
        """Return the cookie's value, without the ID token where that would take a second cookie.

        The ID token is but a hint when signing out at the provider. Raises SignInFailed for what no cookies hold.
        """
        sealed = self._seal.seal(_PURPOSE, dump_session(session))
        if len(sealed) > CHUNK - 2 and session.id_token:
            return self.seal(session._replace(id_token=""))
        if len(sealed) > MAX_SEALED:
            raise SignInFailed(Problem.SESSION_TOO_LARGE, groups=len(session.groups), size=len(sealed))
        return sealed

    def read(self, cookie: SessionCookie) -> Session:
        """Return the session that a cookie holds, as it was sealed, or raise SessionEnded."""
        document = self._seal.open(_PURPOSE, cookie.sealed)
        if document is None:
            raise SessionEnded(Problem.SESSION_UNREADABLE)
        return load_session(document)

    def look_at(self, cookie: SessionCookie) -> Session:
        """Return the session that a cookie holds if it has not ended, or raise SessionEnded; nobody is asked."""
        session = self.read(cookie)
        self._validate(session, time.time())
        return session

    async def open(self, cookie: SessionCookie) -> Opened:
        """Return the session behind a cookie, vouched for; or raise SessionEnded, or OutOfReach where none can say."""
        session, now = self.look_at(cookie), time.time()
        fresh = session
        if now >= session.check_at:
            fresh = await self._checked(session, now)
            self._validate(fresh, time.time())  # it may have been revoked meanwhile
        if fresh is not session or now - session.seen >= self.policy.touch:
            fresh = fresh._replace(seen=now)
        return Opened(fresh, self._proof(fresh, now), self.seal(fresh) if fresh is not session else None)

    def _validate(self, session: Session, now: float) -> None:
        validate_session(session, self.policy, now)
        if self._revocations.revoked(session):
            raise SessionEnded(Problem.SESSION_REVOKED)
        voucher = self._vouchers.get(session.issuer)
        if voucher is None or not voucher.stands(session):
            raise SessionEnded(Problem.SESSION_WITHOUT_AUTHORITY)

    def _proof(self, session: Session, now: float) -> Proof:
        until = min(ends_at(session, self.policy), session.seen + self.policy.touch)
        check_at = session.check_at if session.check_at > now else now + RETRY
        principal = self._vouchers[session.issuer].admit(principal_of(session, self.policy), session.claims)
        return Proof(principal, min(until, check_at))

    async def _checked(self, session: Session, now: float) -> Session:
        """Return the session as its issuer renews it; all who ask at once, or just afterwards, share one renewal."""
        renew = self._vouchers[session.issuer].renew
        if renew is None or not session.refresh_token:
            return session._replace(check_at=float("inf"))
        done = self._renewed.get((session.id, session.check_at))
        if done is not None:
            return self.read(SessionCookie(done))
        overdue = now - session.check_at
        if now < self._resting.get(session.issuer, 0.0):
            return _kept(session, overdue)
        flight = self._flights.get(session.id)
        if flight is None:
            flight = asyncio.ensure_future(self._renew(renew, session))
            self._flights[session.id] = flight
            flight.add_done_callback(lambda done: self._landed(session, done))
        try:
            return await asyncio.shield(flight)
        except OutOfReach:
            self._resting[session.issuer] = now + RETRY
            return _kept(session, overdue)
        except _SiblingRenewsError:  # its cookie is on the way to the browser, if all is well there
            since = self._left_since.setdefault((session.id, session.check_at), now)
            return session if now - since < SIBLING else _kept(session, overdue)
        except SessionEnded:
            if self._claim is None and overdue < SIBLING:  # likewise: nobody could say whose it was to renew
                return session
            raise

    async def _renew(self, renew: Renew, session: Session) -> Session:
        if self._claim is not None and not await self._claim(f"renewal:{session.id}:{session.check_at:.0f}", SIBLING):
            raise _SiblingRenewsError
        try:
            return await renew(session)
        except (SessionEnded, NotPermitted) as refusal:
            if self._claim is not None or isinstance(refusal, NotPermitted):  # nobody else could be told otherwise
                await self._revocations.revoke_session(session.id)
            raise

    def _landed(self, session: Session, flight: asyncio.Future[Session]) -> None:
        del self._flights[session.id]
        if not flight.cancelled() and flight.exception() is None:
            with suppress(SignInFailed):  # whoever waits for it is told
                self._renewed[session.id, session.check_at] = self.seal(flight.result())


def _kept(session: Session, overdue: float) -> Session:
    """Return a session as it was while its issuer is out of reach, for a bounded time."""
    if overdue < GRACE:
        return session
    raise OutOfReach(Problem.SESSION_NOT_RENEWABLE, seconds=round(overdue))


def new_session_id() -> str:
    """Return a name for a session that nobody can guess."""
    return secrets.token_urlsafe(16)
