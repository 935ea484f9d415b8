"""Attempts to sign in: each has a state of its own, sealed into a cookie of its own, so tabs do not meet.

Whoever ends an attempt must hold the cookie that began it: a state, a code or a form that somebody else prepared is
worth nothing in another browser (RFC 6749 §10.12, RFC 9700 §4.7).
"""

import json
import secrets
import time
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from starlette.responses import Response

from service.authn.seal import Seal
from service.core.request.cookies import NAME
from service.web.visits import Visit

LASTS: Final = 1_800  # seconds; a second factor may have to be fetched
AT_ONCE: Final = 4  # tabs; the oldest goes first
ROUND: Final = 60.0  # seconds
MAX_ROUNDS: Final = 2  # for one page
MAX_TABS: Final = 20  # for all together
_PREFIX: Final = NAME + b"-attempt-"
_ROUNDS: Final = NAME + b"-rounds"
_NAME_LENGTH: Final = 12


class Attempt(NamedTuple):
    """One attempt to sign in: what must come back (``state``, ``nonce``), and what it was begun for."""

    state: str
    nonce: str
    verifier: str
    return_to: str
    began: float


class Attempts:
    """Begins attempts, finds the one that is being ended, and counts rounds that lead nowhere."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def begin(self, return_to: str) -> Attempt:
        """Return a new attempt."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return Attempt(state, nonce, verifier, return_to, time.time())

    def keep(self, attempt: Attempt, visit: Visit, response: Response) -> None:
        """Let the browser hold the attempt, and let go of those that are too many."""
        sealed = self._seal.seal("attempt", json.dumps(list(attempt)).encode())
        visit.set_cookie(response, _cookie_name(attempt.state), sealed, LASTS)
        held = [(one.began if one else 0.0, name) for name, one in self._held(visit)]
        for _, name in sorted(held, reverse=True)[AT_ONCE - 1 :]:
            visit.set_cookie(response, name, "", 0)

    def find(self, state: str, visit: Visit) -> Attempt | None:
        """Return the attempt of this state if this browser began it, a while ago at most."""
        for _, attempt in self._held(visit):
            if attempt is not None and compare_digest(attempt.state.encode(), state.encode()):
                return attempt if 0 <= time.time() - attempt.began < LASTS else None
        return None

    def end(self, attempt: Attempt, visit: Visit, response: Response) -> None:
        """Let the browser let go of an attempt: it is good for one end."""
        visit.set_cookie(response, _cookie_name(attempt.state), "", 0)

    def _held(self, visit: Visit) -> list[tuple[str, Attempt | None]]:
        return [
            (name.decode("latin-1"), self._open(value))
            for name, value in visit.cookies.items()
            if name.startswith(_PREFIX)
        ]

    def _open(self, value: bytes) -> Attempt | None:
        document = self._seal.open("attempt", value.decode("latin-1"))
        fields = [] if document is None else json.loads(document)
        return Attempt(*fields) if len(fields) == len(Attempt._fields) else None

    # rounds -----------------------------------------------------------------------------------------------

    def _rounds(self, visit: Visit) -> list[tuple[str, float]]:
        """Return where to, and when, this browser has signed in within the last minute."""
        document = self._seal.open("rounds", visit.cookies.get(_ROUNDS, b"").decode("latin-1"))
        now = time.time()
        return [] if document is None else [(to, at) for to, at in json.loads(document) if 0 <= now - at < ROUND]

    def go_in_circles(self, visit: Visit, return_to: str) -> bool:
        """Tell whether whoever comes to sign in has just done so twice for one page: the session does not hold.

        A browser that opens many tabs again signs in once for each, at the same time.
        """
        rounds, mark = self._rounds(visit), _mark(return_to)
        return sum(to == mark for to, _ in rounds) >= MAX_ROUNDS or len(rounds) >= MAX_TABS

    def count_round(self, visit: Visit, return_to: str, response: Response) -> None:
        """Note that a sign-in for this page has succeeded."""
        rounds = [*self._rounds(visit), (_mark(return_to), time.time())][-MAX_TABS:]
        visit.set_cookie(response, _ROUNDS.decode(), self._seal.seal("rounds", json.dumps(rounds).encode()), int(ROUND))

    def forget_rounds(self, visit: Visit, response: Response) -> None:
        """Let a person try again, or sign in as somebody else."""
        visit.set_cookie(response, _ROUNDS.decode(), "", 0)


def _mark(return_to: str) -> str:
    """Return what stands for a page in little room; one page has many fragments."""
    return sha256(return_to.partition("#")[0].encode()).hexdigest()[:8]


def _cookie_name(state: str) -> str:
    return f"{_PREFIX.decode()}{state[:_NAME_LENGTH]}"
