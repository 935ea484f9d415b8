"""Attempts to sign in: each has its own state, sealed into its own cookie, so several tabs can sign in at once.

An attempt can be completed only by the browser that has its cookie. A state, a code or a form that an attacker prepared
does not work in another browser (RFC 6749 §10.12, RFC 9700 §4.7).
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
from service.web.page_context import PageRequest

ATTEMPT_SECONDS: Final = 1_800  # a second factor may take a while
MAX_ATTEMPTS: Final = 4  # in one browser; the oldest is dropped first
LOOP_SECONDS: Final = 60.0  # in which sign-ins are counted
MAX_SIGN_INS_PER_PAGE: Final = 2
MAX_SIGN_INS: Final = 20  # for all pages
_PREFIX: Final = NAME + b"-attempt-"
_SIGN_INS: Final = NAME + b"-sign-ins"
_HINT: Final = NAME + b"-hint"
_NAME_LENGTH: Final = 12
MAX_HINT_COOKIE: Final = 3_900  # bytes, of the 4,096 that a browser keeps with name and attributes


class Attempt(NamedTuple):
    """One attempt to sign in: the values that must come back (``state``, ``nonce``), and where it leads."""

    state: str
    nonce: str
    verifier: str
    return_to: str
    began: float


class Attempts:
    """Begins, finds and ends attempts, and detects a browser that signs in again and again."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def begin(self, return_to: str) -> Attempt:
        """Return a new attempt."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return Attempt(state, nonce, verifier, return_to, time.time())

    def keep(self, attempt: Attempt, page_request: PageRequest, response: Response) -> None:
        """Set the attempt's cookie, and delete the cookies of the oldest attempts if there are too many."""
        sealed = self._seal.seal("attempt", json.dumps(list(attempt)).encode())
        page_request.set_cookie(response, _cookie_name(attempt.state), sealed, ATTEMPT_SECONDS)
        held = [(one.began if one else 0.0, name) for name, one in self._held(page_request)]
        for _, name in sorted(held, reverse=True)[MAX_ATTEMPTS - 1 :]:
            page_request.set_cookie(response, name, "", 0)

    def find(self, state: str, page_request: PageRequest) -> Attempt | None:
        """Return the attempt with this state if this browser began it and it has not expired."""
        for _, attempt in self._held(page_request):
            if attempt is not None and compare_digest(attempt.state.encode(), state.encode()):
                return attempt if 0 <= time.time() - attempt.began < ATTEMPT_SECONDS else None
        return None

    def end(self, attempt: Attempt, page_request: PageRequest, response: Response) -> None:
        """Delete the attempt's cookie: an attempt is good for one use."""
        page_request.set_cookie(response, _cookie_name(attempt.state), "", 0)

    def _held(self, page_request: PageRequest) -> list[tuple[str, Attempt | None]]:
        return [
            (name.decode("latin-1"), self._open(value))
            for name, value in page_request.cookies.items()
            if name.startswith(_PREFIX)
        ]

    def _open(self, value: bytes) -> Attempt | None:
        document = self._seal.open("attempt", value.decode("latin-1"))
        fields = [] if document is None else json.loads(document)
        return Attempt(*fields) if len(fields) == len(Attempt._fields) else None

    # somebody else signs in ---------------------------------------------------------------------------------

    def keep_hint(self, id_token: str, page_request: PageRequest, response: Response) -> None:
        """Keep the ID token of a person who may not enter, as a hint for signing out at the provider."""
        sealed = self._seal.seal("hint", id_token.encode())
        if id_token and len(sealed) <= MAX_HINT_COOKIE:
            page_request.set_cookie(response, _HINT.decode(), sealed, ATTEMPT_SECONDS)

    def hint(self, page_request: PageRequest) -> str:
        """Return the ID token of the person who was refused last, or an empty string."""
        return (self._seal.open("hint", page_request.cookies.get(_HINT, b"").decode("latin-1")) or b"").decode()

    def forget_hint(self, page_request: PageRequest, response: Response) -> None:
        """Delete the kept ID token, if there is one."""
        if _HINT in page_request.cookies:
            page_request.set_cookie(response, _HINT.decode(), "", 0)

    def seal_return(self, return_to: str) -> str:
        """Return a state for a sign-out at the provider after which somebody signs in to go to ``return_to``."""
        return self._seal.seal("switch", return_to.encode())

    def open_return(self, state: str) -> str | None:
        """Return where somebody goes who comes back with this state, or None if it is not ours."""
        sealed = self._seal.open("switch", state)
        return sealed.decode() if sealed is not None else None

    # sign-in loops ----------------------------------------------------------------------------------------

    def is_looping(self, page_request: PageRequest, return_to: str) -> bool:
        """Tell whether this browser has just signed in twice for one page, and so does not keep its session.

        A browser that reopens many tabs signs in once for each page, at the same time: that is no loop.
        """
        recent, mark = self._recent_sign_ins(page_request), _mark(return_to)
        of_this_page = sum(page == mark for page, _ in recent)
        return of_this_page >= MAX_SIGN_INS_PER_PAGE or len(recent) >= MAX_SIGN_INS

    def count_sign_in(self, page_request: PageRequest, return_to: str, response: Response) -> None:
        """Count a successful sign-in for a page."""
        recent = [*self._recent_sign_ins(page_request), (_mark(return_to), time.time())][-MAX_SIGN_INS:]
        sealed = self._seal.seal("sign-ins", json.dumps(recent).encode())
        page_request.set_cookie(response, _SIGN_INS.decode(), sealed, int(LOOP_SECONDS))

    def forget_sign_ins(self, page_request: PageRequest, response: Response) -> None:
        """Count from zero again, so that a person can try again, or sign in as somebody else."""
        page_request.set_cookie(response, _SIGN_INS.decode(), "", 0)

    def _recent_sign_ins(self, page_request: PageRequest) -> list[tuple[str, float]]:
        """Return the pages, as marks, for which this browser has signed in lately, and when."""
        document = self._seal.open("sign-ins", page_request.cookies.get(_SIGN_INS, b"").decode("latin-1"))
        now = time.time()
        recent = [] if document is None else json.loads(document)
        return [(page, at) for page, at in recent if 0 <= now - at < LOOP_SECONDS]


def _mark(return_to: str) -> str:
    """Return a short hash of a page's address, without the fragment."""
    return sha256(return_to.partition("#")[0].encode()).hexdigest()[:8]


def _cookie_name(state: str) -> str:
    return f"{_PREFIX.decode()}{state[:_NAME_LENGTH]}"
