"""Every way to be refused: what a refusal is, as values. How it reads is for ``rendering`` to say.

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

A refusal carries a ``Cause``: a problem of a closed set, and the facts about it. The caller reads a sentence made of
it, the log has the problem and its facts. No fact ever holds a secret: no token, no password, no claim's value that the
caller did not prove.
"""

from collections.abc import Mapping
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple


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


class Problem(StrEnum):
    """The closed set of what can be wrong; the log has these words. The remarks name the facts beside each."""

    # the forwarded request, or a request for a page
    HEADER_REPEATED = auto()  # header
    HEADER_MISSING = auto()  # header
    METHOD_UNKNOWN = auto()  # got
    SCHEME_UNKNOWN = auto()  # got
    HOST_INVALID = auto()  # got
    URL_TOO_LONG = auto()  # size
    URL_NOT_PLAIN = auto()  # got
    URL_NOT_ABSOLUTE = auto()  # size
    PATH_ESCAPE_INCOMPLETE = auto()
    PATH_NOT_UTF8 = auto()
    PATH_HIDES_CHARACTER = auto()
    PATH_HAS_PARAMETERS = auto()
    PATH_HAS_EMPTY_OR_DOT_SEGMENTS = auto()
    CLIENT_ADDRESS_INVALID = auto()  # got
    FORWARDED_FOR_TOO_LONG = auto()  # size
    VERIFY_METHOD_NOT_GET = auto()  # got
    COOKIES_TOO_LARGE = auto()  # size
    FORM_UNREADABLE = auto()  # fields
    REQUEST_MISSING = auto()
    PEER_NOT_TRUSTED = auto()  # peer
    CROSS_SITE_REQUEST = auto()

    # nothing was presented
    NO_CREDENTIAL = auto()
    NO_JWT = auto()
    NO_PASSWORD = auto()
    NOT_SIGNED_IN = auto()
    NO_CREDENTIAL_ON_WEBSOCKET = auto()

    # the Authorization header
    AUTHORIZATION_TOO_LARGE = auto()  # size
    AUTHORIZATION_SCHEME_UNKNOWN = auto()
    BEARER_NOT_A_TOKEN = auto()
    BASIC_NOT_BASE64 = auto()
    BASIC_WITHOUT_COLON = auto()
    BASIC_TOKEN_AS_NAME = auto()
    PAIR_UNUSABLE = auto()
    JWT_NOT_ACCEPTED = auto()
    PASSWORD_NOT_ACCEPTED = auto()

    # the form and the signature of a JWT
    TOKEN_NOT_A_JWT = auto()  # segments
    TOKEN_NOT_BASE64URL = auto()
    TOKEN_NOT_CANONICAL = auto()
    TOKEN_NOT_JSON_OBJECT = auto()
    TOKEN_TOO_MANY_CONTAINERS = auto()  # limit
    TOKEN_NAME_REPEATED = auto()
    TOKEN_JSON_CONSTANT = auto()  # got
    TOKEN_HEADER_INVALID = auto()  # member
    TOKEN_UNREADABLE = auto()  # error
    TOKEN_TOO_LONG = auto()  # limit
    TOKEN_EXTENSION_UNSUPPORTED = auto()
    TOKEN_ENCRYPTED = auto()
    ALGORITHM_NOT_ACCEPTED = auto()  # got, expected
    SIGNING_KEY_UNKNOWN = auto()  # kid, algorithm, keys
    SIGNATURE_INVALID = auto()  # kid, algorithm

    # the claims of a JWT
    ISSUER_NOT_TRUSTED = auto()  # got, expected
    TOKEN_TYPE_NOT_ACCEPTED = auto()  # got, expected
    NOT_AN_ACCESS_TOKEN = auto()  # claim
    AUDIENCE_MISSING = auto()  # expected
    AUDIENCE_OTHER = auto()  # got, expected
    PARTY_NOT_ACCEPTED = auto()  # expected
    EXPIRY_MISSING = auto()
    TOKEN_EXPIRED = auto()  # seconds
    TOKEN_NOT_YET_VALID = auto()  # claim, seconds
    DATE_INVALID = auto()  # claim
    SCOPE_MISSING = auto()  # scope
    CLAIM_NOT_ACCEPTED = auto()  # claim
    PRINCIPAL_NOT_NAMED = auto()  # claim
    CLAIM_AMBIGUOUS = auto()  # claim
    CLAIM_UNUSABLE = auto()  # claim
    GROUPS_TOO_MANY = auto()  # count, limit

    # names and passwords
    PAIR_WRONG = auto()  # user, where it is known
    PAIR_WRONG_AT_ISSUER = auto()  # issuer, error
    PASSWORD_CHANGED = auto()
    CLIENT_TOKEN_NOT_ACCEPTED = auto()  # because
    TOO_MANY_GUESSES = auto()  # seconds
    PASSWORD_CHECKS_FULL = auto()  # waiting
    CLIENT_CHECKS_FULL = auto()  # waiting, issuer

    # an issuer, or a provider, that does not decide
    ISSUER_OUT_OF_REACH = auto()  # because
    KEYS_OUT_OF_REACH = auto()  # issuer, because
    KEY_NOT_KNOWN_YET = auto()  # kid
    GRANT_REFUSED = auto()  # issuer, error
    SESSION_NOT_RENEWABLE = auto()  # seconds

    # sessions
    SESSION_UNREADABLE = auto()
    SESSION_COOKIE_REPEATED = auto()
    SESSION_COOKIE_INCOMPLETE = auto()
    SESSION_OUTDATED = auto()
    SESSION_LIFETIME_OVER = auto()
    SESSION_IDLE_TOO_LONG = auto()
    SESSION_FROM_THE_FUTURE = auto()
    SESSION_REVOKED = auto()
    SESSION_WITHOUT_AUTHORITY = auto()
    SESSION_ENDED_BY_PROVIDER = auto()  # because
    SESSION_TOO_LARGE = auto()  # groups, size

    # signing in
    SIGN_IN_NOT_SET_UP = auto()
    SIGN_IN_NOT_SET_UP_LOCALLY = auto()
    SIGN_IN_OVER_HTTP = auto()  # origin
    SIGN_IN_NOT_BEGUN = auto()
    SIGN_IN_UNPROVEN = auto()  # because
    PROVIDER_DENIED = auto()  # error, description
    PROVIDER_CODE_USED = auto()  # error, description
    PROVIDER_WANTS_INTERACTION = auto()  # error, description
    PROVIDER_REFUSES_CLIENT = auto()  # error, description
    PROVIDER_BUSY = auto()  # error, description
    PROVIDER_ERROR = auto()  # error, description
    PERSON_NOT_PERMITTED = auto()  # claim
    EMAIL_NOT_VERIFIED = auto()

    # what a provider signed, or sent, is not what was asked for
    RESPONSE_ISSUER_OTHER = auto()  # got
    PROVIDER_TOKEN_ISSUER_OTHER = auto()  # expected
    NOT_AN_ID_TOKEN = auto()  # got, or claim
    ID_TOKEN_PARTY_OTHER = auto()  # got
    ID_TOKEN_NONCE_OTHER = auto()
    ID_TOKEN_WITHOUT_SUBJECT = auto()
    ID_TOKEN_MISSING = auto()
    ACCESS_TOKEN_HASH_OTHER = auto()
    SUBJECT_OTHER = auto()
    USERINFO_REFUSED = auto()  # status
    USERINFO_SUBJECT_OTHER = auto()
    ISSUED_AT_MISSING = auto()
    NOT_A_LOGOUT_TOKEN = auto()  # got, or claim
    LOGOUT_TOKEN_TOO_OLD = auto()  # limit
    LOGOUT_TOKEN_WITHOUT_SESSION = auto()
    LOGOUT_TOKEN_WITHOUT_ID = auto()
    LOGOUT_TOKEN_USED = auto()
    LOGOUT_TOKEN_UNREADABLE = auto()  # because
    PROVIDER_NOT_CONFIGURED = auto()

    # roles: who, request, verdict, holders
    CAPABILITY_LACKING = auto()
    LIMIT_LACKING = auto()
    SECRETS_LACKING = auto()
    SECRETS_LACKING_BODY = auto()

    INTERNAL = auto()


NO_FACTS: Final[Mapping[str, Any]] = MappingProxyType({})


class Cause(NamedTuple):
    """What is wrong, and what is known about it, by the names that ``Problem`` lists."""

    problem: Problem
    facts: Mapping[str, Any] = NO_FACTS


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A request that is not let through, and its cause."""

    code: ClassVar[Code] = Code.INTERNAL_ERROR
    status: ClassVar[int] = 503

    def __init__(self, problem: Problem, **facts: Any) -> None:
        super().__init__(problem)
        self.cause = Cause(problem, facts)

    @property
    def detail(self) -> str:
        from service.rendering.sentences import SENTENCES

        return SENTENCES.get(self.problem, str(self.problem))

    @property
    def reason(self) -> str:
        return (
            str(self.cause.facts.get("reason"))
            if "reason" in self.cause.facts
            else f"{self.problem} {dict(self.cause.facts)}"
        )

    @property
    def problem(self) -> Problem:
        """Return what is wrong."""
        return self.cause.problem


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

    def __init__(self, problem: Problem, *, subject: str = "", name: str = "", **facts: Any) -> None:
        super().__init__(problem, **facts)
        self.subject = subject
        self.name = name


class UntrustedPeer(Refusal):
    """A verify call from an address that is not one of the trusted proxies."""

    code = Code.UNTRUSTED_PROXY
    status = 403


class Later(Refusal):
    """Nothing was decided: the caller may ask again after ``retry_after`` seconds."""

    def __init__(self, problem: Problem, *, retry_after: int = 5, **facts: Any) -> None:
        super().__init__(problem, **facts)
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
