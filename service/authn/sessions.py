"""Browser sessions: sealed into a cookie, opened, and confirmed by whoever began them while they last.

Nothing is stored here, so replicas share the key alone. What is remembered for a short while is a renewal that has
just been made: see ``state.renewals``.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from service.authn.seal import Seal
from service.core.errors import NotPermitted, OutOfReach, Problem, SessionEnded, SignInFailed
from service.core.identity.grants import RoleAssignment
from service.core.identity.sessions import (
    SessionPolicy,
    dump_session,
    ends_at,
    load_session,
    principal_of,
    validate_session,
)
from service.core.model import Proof, Session, SessionCookie
from service.core.request.cookies import CHUNK, MAX_SEALED
from service.state.renewals import Renewals
from service.state.revocation_log import RevocationLog

log = logging.getLogger(__name__)

OUTAGE_GRACE: Final = 3_600.0  # seconds for which a session lasts while its provider cannot be asked
RETRY_PAUSE: Final = 15.0  # seconds before a provider that was out of reach is asked again
PEER_RENEWAL: Final = 60.0  # seconds in which another replica may have used the same refresh token
_PURPOSE: Final = "session"

Renew = Callable[[Session], Awaitable[Session]]
ClaimRenewal = Callable[[str, float], Awaitable[bool]]


def _always(_: Session) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class SessionAuthority:
    """Who answers for the sessions of one issuer.

    ``roles`` are those that its people get. ``is_current`` is asked on each look, ``renew`` when ``check_at`` has come.
    """

    roles: RoleAssignment
    is_current: Callable[[Session], bool] = _always
    renew: Renew | None = None


class _PeerRenewsError(Exception):
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
        authorities: Mapping[str, SessionAuthority],
        revocation_log: RevocationLog,
        renewals: Renewals,
        claim_renewal: ClaimRenewal | None = None,
    ) -> None:
        """Take ``claim_renewal`` where replicas share a store: it tells one of them that a renewal is its to make."""
        self.policy = policy
        self._seal = seal
        self._authorities = authorities
        self._revocation_log = revocation_log
        self._renewals = renewals
        self._claim_renewal = claim_renewal

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
        """Return the session behind a cookie, confirmed; or raise SessionEnded, or OutOfReach where none can say."""
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
        if self._revocation_log.revocations.revoked(session):
            raise SessionEnded(Problem.SESSION_REVOKED)
        authority = self._authorities.get(session.issuer)
        if authority is None or not authority.is_current(session):
            raise SessionEnded(Problem.SESSION_WITHOUT_AUTHORITY)

    def _proof(self, session: Session, now: float) -> Proof:
        until = min(ends_at(session, self.policy), session.seen + self.policy.touch)
        check_at = session.check_at if session.check_at > now else now + RETRY_PAUSE
        roles = self._authorities[session.issuer].roles
        return Proof(roles.assign(principal_of(session, self.policy), session.claims), min(until, check_at))

    async def _checked(self, session: Session, now: float) -> Session:
        """Return the session as its issuer renews it; all who ask at once, or just afterwards, share one renewal."""
        renew, renewals, check = self._authorities[session.issuer].renew, self._renewals, (session.id, session.check_at)
        if renew is None or not session.refresh_token:
            return session._replace(check_at=float("inf"))
        renewed = renewals.renewed.get(check)
        if renewed is not None:
            return renewed
        overdue = now - session.check_at
        if now < renewals.retry_at.get(session.issuer, 0.0):
            return _kept(session, overdue)
        try:
            return await renewals.under_way.run(session.id, lambda: self._renew(renew, session))
        except OutOfReach:
            renewals.retry_at[session.issuer] = now + RETRY_PAUSE
            return _kept(session, overdue)
        except _PeerRenewsError:  # its cookie is on the way to the browser, if all is well there
            since = renewals.left_to_peer_at.setdefault(check, now)
            return session if now - since < PEER_RENEWAL else _kept(session, overdue)
        except SessionEnded:
            if self._claim_renewal is None and overdue < PEER_RENEWAL:  # likewise: nobody could say whose it was
                return session
            raise

    async def _renew(self, renew: Renew, session: Session) -> Session:
        claim = self._claim_renewal
        if claim is not None and not await claim(f"renewal:{session.id}:{session.check_at:.0f}", PEER_RENEWAL):
            raise _PeerRenewsError
        try:
            renewed = await renew(session)
        except (SessionEnded, NotPermitted) as refusal:
            if claim is not None or isinstance(refusal, NotPermitted):  # nobody else could be told otherwise
                await self._revocation_log.end(session)
            raise
        self._renewals.renewed[session.id, session.check_at] = renewed
        return renewed


def _kept(session: Session, overdue: float) -> Session:
    """Return a session as it was while its issuer is out of reach, for a bounded time."""
    if overdue < OUTAGE_GRACE:
        return session
    raise OutOfReach(Problem.SESSION_NOT_RENEWABLE, seconds=round(overdue))


def new_session_id() -> str:
    """Return a name for a session that nobody can guess."""
    return secrets.token_urlsafe(16)
