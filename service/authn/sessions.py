"""Browser sessions: sealed into a cookie, opened, and renewed at the provider while they last.

Sessions are not stored, so replicas only share the session key. Recent renewals are remembered in ``state.renewals``.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from service.authn.seal import Seal
from service.authn.steps import Steps, in_time
from service.core.errors import NotPermitted, OutOfReach, SessionEnded, SignInFailed
from service.core.identity.grant_index import RoleAssignment
from service.core.identity.sessions import (
    SessionPolicy,
    dump_session,
    ends_at,
    load_session,
    principal_of,
    validate_session,
)
from service.core.model import Proof, Session, SessionCookie
from service.core.problems import Problem
from service.core.request.cookies import CHUNK, MAX_SEALED
from service.state.renewals import Renewals
from service.state.revocation_log import RevocationLog

log = logging.getLogger(__name__)

OUTAGE_GRACE: Final = 3_600.0  # seconds that a session may be overdue for renewal while the provider is down
RETRY_PAUSE: Final = 15.0  # seconds between attempts to reach a provider that is down
PEER_RENEWAL: Final = 60.0  # seconds in which another replica may be renewing the same session
_PURPOSE: Final = "session"

Renew = Callable[[Session], Awaitable[Session]]
ClaimRenewal = Callable[[str, float], Awaitable[bool]]


def _always(_: Session) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class SessionAuthority:
    """How sessions of one issuer are confirmed, and which roles its people get.

    ``is_current`` is called each time a session is opened. ``renew`` is called once ``check_at`` has passed.
    """

    roles: RoleAssignment
    is_current: Callable[[Session], bool] = _always
    renew: Renew | None = None


class _PeerRenewsError(Exception):
    """Another replica is renewing this session."""


class Opened(NamedTuple):
    """A valid session. ``sealed`` is the new value of its cookie, or None if the cookie stays as it is."""

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
        """``claim_renewal`` lets one of several replicas with a shared store renew a session."""
        self.policy = policy
        self._seal = seal
        self._authorities = authorities
        self._revocation_log = revocation_log
        self._renewals = renewals
        self._claim_renewal = claim_renewal

    def seal(self, session: Session) -> str:
        """Return the value of the session's cookie.

        The ID token is left out if the session needs a second cookie with it: it is only a hint for signing out at the
        provider. Raises SignInFailed if the session does not fit into the cookies.
        """
        sealed = self._seal.seal(_PURPOSE, dump_session(session))
        if len(sealed) > CHUNK - 2 and session.id_token:
            return self.seal(session._replace(id_token=""))
        if len(sealed) > MAX_SEALED:
            raise SignInFailed(Problem.SESSION_TOO_LARGE, groups=len(session.groups), size=len(sealed))
        self._renewals.note_sealed(session)
        return sealed

    def read(self, cookie: SessionCookie) -> Session:
        """Return the session in a cookie; raises SessionEnded if the cookie cannot be opened."""
        document = self._seal.open(_PURPOSE, cookie.sealed)
        if document is None:
            raise SessionEnded(Problem.SESSION_UNREADABLE)
        return load_session(document)

    def look_at(self, cookie: SessionCookie) -> Session:
        """Return the session in a cookie, without renewing it; raises SessionEnded if it has ended."""
        session = self.read(cookie)
        self._validate(session, time.time())
        return session

    async def open(self, cookie: SessionCookie) -> Opened:
        """Return the session in a cookie, renewed if it is due. Raises SessionEnded, NotPermitted or OutOfReach."""
        return await in_time(self.opening(cookie))

    def opening(self, cookie: SessionCookie) -> Steps[Opened]:
        """Open a session in steps; waits only if it is due to be renewed."""
        session, now = self.look_at(cookie), time.time()
        self._renewals.note_opened(session)
        fresh = session
        if now >= session.check_at:
            fresh = yield partial(self._checked, session, now)
            self._validate(fresh, time.time())  # it may have been revoked during the renewal
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
        """Return the renewed session. Requests at the same time, or shortly after, share one renewal."""
        renew, renewals, check = self._authorities[session.issuer].renew, self._renewals, (session.id, session.check_at)
        if renew is None or not session.refresh_token:
            return session._replace(check_at=float("inf"))
        renewed = renewals.renewed.get(check)
        if renewed is not None and renewed.check_at > session.check_at:
            return renewed
        session = renewed or session  # its refresh token has changed, and nothing else
        overdue = now - session.check_at
        if now < renewals.retry_at.get(session.issuer, 0.0):
            return _kept(session, overdue)
        try:
            renewed = await renewals.under_way.run(session.id, lambda: self._renew(renew, session))
            if renewed.check_at > session.check_at:
                return renewed
            renewals.retry_at[session.issuer] = now + RETRY_PAUSE
            return _kept(renewed, overdue)
        except OutOfReach:
            renewals.retry_at[session.issuer] = now + RETRY_PAUSE
            return _kept(session, overdue)
        except _PeerRenewsError:  # the new cookie is on its way to the browser
            since = renewals.left_to_peer_at.setdefault(check, now)
            return session if now - since < PEER_RENEWAL else _kept(session, overdue)
        except SessionEnded:
            if self._may_be_renewed_elsewhere(session) and overdue < PEER_RENEWAL:
                return session
            raise

    def _may_be_renewed_elsewhere(self, session: Session) -> bool:
        """Tell whether another replica may have used up the refresh token, and there is no store that would say so."""
        return self._claim_renewal is None and self._renewals.may_have_peers(session)

    async def _renew(self, renew: Renew, session: Session) -> Session:
        claim = self._claim_renewal
        if claim is not None and not await claim(f"renewal:{session.id}:{session.check_at:.0f}", PEER_RENEWAL):
            raise _PeerRenewsError
        try:
            renewed = await renew(session)
        except (SessionEnded, NotPermitted) as refusal:
            if claim is not None or isinstance(refusal, NotPermitted):  # the other replicas have to know
                await self._revocation_log.end(session)
            raise
        self._renewals.renewed[session.id, session.check_at] = renewed
        return renewed


def _kept(session: Session, overdue: float) -> Session:
    """Return the session unchanged while its provider is down, for at most ``OUTAGE_GRACE``."""
    if overdue < OUTAGE_GRACE:
        return session
    raise OutOfReach(Problem.SESSION_NOT_RENEWABLE, seconds=round(overdue))


def new_session_id() -> str:
    """Return a random session id."""
    return secrets.token_urlsafe(16)
