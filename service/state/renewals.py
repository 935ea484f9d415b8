"""Renewals of sessions by refresh token: running, recent, or made by another replica.

A page sends many requests at once, but a refresh token can often be used only once. So all requests share one renewal,
across reloads of the configuration.
"""

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
