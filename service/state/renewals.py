"""Renewals of sessions by refresh token: running, recent, or made by another replica.

A page sends many requests at once, but a refresh token can often be used only once. So all requests share one renewal,
across reloads of the configuration.
"""

import time
from typing import Final

from cachetools import TTLCache

from service.core.identity.sessions import MAX_LIFETIME
from service.core.model import Session
from service.state.single_flight import SingleFlight

MAX_SESSIONS: Final = 5_000
RENEWED_SECONDS: Final = 600.0  # in which requests with the previous cookie may still arrive

SessionCheck = tuple[str, float]  # session id and check_at: identifies one renewal


class Renewals:
    """Remembers renewals. Times are in seconds since the epoch."""

    def __init__(self) -> None:
        self.under_way: SingleFlight[str, Session] = SingleFlight()  # by session id
        self.renewed: TTLCache[SessionCheck, Session] = TTLCache(MAX_SESSIONS, RENEWED_SECONDS)
        self.left_to_peer_at: TTLCache[SessionCheck, float] = TTLCache(MAX_SESSIONS, MAX_LIFETIME)
        self.retry_at: dict[str, float] = {}  # by issuer: the time of the next attempt after a failure
        self._began = time.time()
        self._sealed: TTLCache[str, float] = TTLCache(MAX_SESSIONS, MAX_LIFETIME)  # session id: its last use
        self._has_peers = False

    def note_sealed(self, session: Session) -> None:
        """Remember a session that this process seals."""
        self._sealed[session.id] = max(session.seen, self._sealed.get(session.id, 0.0))

    def note_opened(self, session: Session) -> None:
        """Notice another replica: it has sealed what this process has not, since this process started."""
        if session.seen > self._sealed.get(session.id, self._began):
            self._has_peers = True

    def may_have_peers(self, session: Session) -> bool:
        """Tell whether another replica may have renewed this session."""
        return self._has_peers or session.id not in self._sealed
