"""Every way to be refused, as values. How a refusal reads is for ``rendering`` to say.

::

    Refusal
    ├── Malformed                  400 invalid_request     could not be parsed
    │   ├── MalformedRequest         … of the forwarded request: denied
    │   └── MalformedCredential      … of the credential: challenged
    ├── Rejected                   401 invalid_token       a credential that is not valid
    ├── SessionEnded               401 session_ended       was signed in, and has to sign in again
    ├── SignInFailed               400 sign_in_failed      tried to sign in, and may try again
    ├── NotPermitted               403 insufficient_scope  known to the provider, and not permitted here
    ├── UntrustedPeer              403 untrusted_proxy     the caller is no trusted proxy
    ├── NotFound                   404 not_found           no page or endpoint has this path
    └── Later                                              not decided: try again
        ├── OutOfReach             503 issuer_unavailable    … when the issuer can be reached
        │   └── Unclear              … it answered, and not clearly about the credential
        ├── Throttled              429 throttled             … when there is less load
        └── Broken                 503 internal_error        … after a fault of this service

The class decides the status and the code. The ``Cause`` that a refusal carries says what exactly is wrong.
"""

from enum import StrEnum, auto
from typing import Any, ClassVar

from service.core.problems import Cause, Problem


class Code(StrEnum):
    """The closed set of codes that a caller may see in a body (RFC 6750 §3.1 where that has a word)."""

    INVALID_REQUEST = auto()
    INVALID_TOKEN = auto()
    INSUFFICIENT_SCOPE = auto()
    CREDENTIAL_REQUIRED = auto()
    SESSION_ENDED = auto()
    CROSS_ORIGIN = auto()
    SIGN_IN_FAILED = auto()
    UNTRUSTED_PROXY = auto()
    ISSUER_UNAVAILABLE = auto()
    THROTTLED = auto()
    INTERNAL_ERROR = auto()
    NOT_FOUND = auto()


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A request that is not let through, and its cause."""

    code: ClassVar[Code] = Code.INTERNAL_ERROR
    status: ClassVar[int] = 503

    def __init__(self, problem: Problem, **facts: Any) -> None:
        super().__init__(problem)
        self.cause = Cause(problem, facts)

    @property
    def problem(self) -> Problem:
        """Return what is wrong."""
        return self.cause.problem


class Malformed(Refusal):
    """Bytes that could not be parsed."""

    code = Code.INVALID_REQUEST
    status = 400


class MalformedRequest(Malformed):
    """A forwarded request that is incomplete or ambiguous."""


class MalformedCredential(Malformed):
    """An Authorization header in none of the known forms."""


class Rejected(Refusal):
    """A credential that could be parsed and is not valid."""

    code = Code.INVALID_TOKEN
    status = 401


class SessionEnded(Refusal):
    """A session that has ended or cannot be read: the person has to sign in again."""

    code = Code.SESSION_ENDED
    status = 401


class SignInFailed(Refusal):
    """An attempt to sign in that failed. The person may try again."""

    code = Code.SIGN_IN_FAILED
    status = 400


class NotPermitted(Refusal):
    """A person whom the provider authenticated, and who may not enter. ``subject`` and ``name`` say who it is.

    ``id_token`` is the provider's word, good as a hint for signing out there; empty if it sent none.
    """

    code = Code.INSUFFICIENT_SCOPE
    status = 403

    def __init__(self, problem: Problem, *, subject: str = "", name: str = "", **facts: Any) -> None:
        super().__init__(problem, **facts)
        self.subject = subject
        self.name = name
        self.id_token = ""


class UntrustedPeer(Refusal):
    """A verify call from an address that is not one of the trusted proxies."""

    code = Code.UNTRUSTED_PROXY
    status = 403


class NotFound(Refusal):
    """A path that no page or endpoint has."""

    code = Code.NOT_FOUND
    status = 404


class Later(Refusal):
    """Nothing was decided: the caller may try again after ``retry_after`` seconds."""

    def __init__(self, problem: Problem, *, retry_after: int = 5, **facts: Any) -> None:
        super().__init__(problem, **facts)
        self.retry_after = retry_after


class OutOfReach(Later):
    """An issuer or its keys cannot be reached, and no recent copy of the keys is available."""

    code = Code.ISSUER_UNAVAILABLE
    status = 503


class Unclear(OutOfReach):
    """An issuer answered with an error that may be about the credential or its own: it counts as an attempt."""


class Throttled(Later):
    """Too many requests at once, or too many wrong passwords."""

    code = Code.THROTTLED
    status = 429


class Broken(Later):
    """A fault of this service. The answer is a refusal, and never contains a traceback."""

    code = Code.INTERNAL_ERROR
    status = 503


class UnusableError(ValueError):
    """A value of the configuration, or a document, that the core cannot use."""

    def __init__(self, problem: Problem, **facts: Any) -> None:
        super().__init__(problem)
        self.cause = Cause(problem, facts)
