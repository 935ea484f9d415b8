"""Every way to be refused, drawn as a tree.

::

    Refusal
    ├── Malformed                  400 invalid_request     nothing could be understood
    │   ├── MalformedRequest         … of the forwarded request: denied
    │   └── MalformedCredential      … of the credential: challenged
    ├── Rejected                   401 invalid_token       understood, and not proven
    ├── SessionEnded               401 session_ended       was signed in, and is no more
    ├── SignInFailed               400 sign_in_failed      tried to sign in, and may try again
    ├── NotPermitted               403 insufficient_scope  proven, and not one of those who may enter
    ├── UntrustedPeer              403 untrusted_proxy     the caller is no proxy of ours
    └── Later                                              not decided: ask again
        ├── OutOfReach             503 issuer_unavailable    … when the issuer's keys can be had
        ├── Throttled              429 throttled             … when there is less to do
        └── Broken                 503 internal_error        … our own fault, still a refusal

A refusal has two audiences. ``detail`` is a public sentence that says what to do next; ``reason`` is what was
got and expected, for the log alone. Neither ever holds a secret: no token, no password, no claim's value that
the caller did not prove.
"""

from enum import StrEnum


class Code(StrEnum):
    """The closed set of codes that a caller may see in a body (RFC 6750 §3.1 where that has a word)."""

    INVALID_REQUEST = "invalid_request"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - RFC 6750's word, not a secret
    INSUFFICIENT_SCOPE = "insufficient_scope"
    CREDENTIAL_REQUIRED = "credential_required"
    SESSION_ENDED = "session_ended"
    CROSS_ORIGIN = "cross_origin"
    SIGN_IN_FAILED = "sign_in_failed"
    UNTRUSTED_PROXY = "untrusted_proxy"
    ISSUER_UNAVAILABLE = "issuer_unavailable"
    THROTTLED = "throttled"
    INTERNAL_ERROR = "internal_error"
    NOT_FOUND = "not_found"


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A request that is not let through, with a sentence for its sender and a reason for the log."""

    code: Code = Code.INTERNAL_ERROR
    status: int = 503

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason or detail


class Malformed(Refusal):
    """Bytes that no type could be parsed from."""

    code = Code.INVALID_REQUEST
    status = 400


class MalformedRequest(Malformed):
    """A forwarded request that is incomplete, repeated, or means different things to different readers."""


class MalformedCredential(Malformed):
    """An Authorization header that is none of the known forms."""


class Rejected(Refusal):
    """A credential that was understood and proves nothing."""

    code = Code.INVALID_TOKEN
    status = 401


class SessionEnded(Refusal):
    """A session that was one and is no more, or that cannot be read: whoever sent it signs in again."""

    code = Code.SESSION_ENDED
    status = 401


class SignInFailed(Refusal):
    """An attempt to sign in that came to nothing; the person is told, and may try again."""

    code = Code.SIGN_IN_FAILED
    status = 400


class NotPermitted(Refusal):
    """A person whom the provider vouched for, and who may not enter; ``subject`` and ``name`` say who it is."""

    code = Code.INSUFFICIENT_SCOPE
    status = 403

    def __init__(self, detail: str, *, reason: str = "", subject: str = "", name: str = "") -> None:
        super().__init__(detail, reason=reason)
        self.subject = subject
        self.name = name


class UntrustedPeer(Refusal):
    """A verify call from an address that is not one of the trusted proxies."""

    code = Code.UNTRUSTED_PROXY
    status = 403


class Later(Refusal):
    """Nothing was decided: the caller may ask again after ``retry_after`` seconds."""

    def __init__(self, detail: str, *, reason: str = "", retry_after: int = 5) -> None:
        super().__init__(detail, reason=reason)
        self.retry_after = retry_after


class OutOfReach(Later):
    """An issuer, or its keys, cannot be reached and no fresh enough copy is at hand."""

    code = Code.ISSUER_UNAVAILABLE
    status = 503


class Throttled(Later):
    """More is being asked at once than may be."""

    code = Code.THROTTLED
    status = 429


class Broken(Later):
    """A fault of this service, answered as one: refused, never a traceback."""

    code = Code.INTERNAL_ERROR
    status = 503
