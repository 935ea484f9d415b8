"""Renewals of sessions: under way, just made, or left to another replica.

A page asks for many things at once, and a refresh token may be good for one use: so all of them share one renewal,
whichever configuration they began with.
"""

from typing import Final

from cachetools import TTLCache

from service.core.identity.sessions import MAX_LIFETIME
from service.core.model import Session
from service.state.single_flight import SingleFlight

MAX_SESSIONS: Final = 5_000
RENEWED_SECONDS: Final = 600.0  # for which requests with the cookie of before may still come

SessionCheck = tuple[str, float]  # the id of a session, and its check_at: one renewal


class Renewals:
    """Remembers renewals; times are in seconds since the epoch."""

    def __init__(self) -> None:
        self.under_way: SingleFlight[str, Session] = SingleFlight()  # by the id of the session
        self.renewed: TTLCache[SessionCheck, Session] = TTLCache(MAX_SESSIONS, RENEWED_SECONDS)
        self.left_to_peer_at: TTLCache[SessionCheck, float] = TTLCache(MAX_SESSIONS, MAX_LIFETIME)
        self.retry_at: dict[str, float] = {}  # by issuer: not asked again before
