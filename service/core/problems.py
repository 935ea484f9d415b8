"""What can be wrong, as a closed set, and what is known about it. ``rendering`` turns both into a sentence.

The caller reads the sentence; the log has the problem and its facts. No fact ever holds a secret: no token, no
password, no query, no claim's value that the caller did not prove. What a caller sent is cut to a bounded length where
it becomes a fact.
"""

from collections.abc import Mapping
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Problem(StrEnum):
    """The closed set of what can be wrong. The log has these words; the remarks name the facts of each."""

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
    FORM_TYPE_WRONG = auto()
    FORM_TOO_LONG = auto()
    REQUEST_MISSING = auto()
    NOT_FOUND = auto()
    METHOD_NOT_ALLOWED = auto()
    PEER_NOT_TRUSTED = auto()  # peer
    CROSS_SITE_REQUEST = auto()
    CROSS_SITE_PREFLIGHT = auto()

    # nothing was presented
    NO_CREDENTIAL = auto()
    NO_JWT = auto()
    NO_PASSWORD = auto()
    NOT_SIGNED_IN = auto()
    NO_CREDENTIAL_ON_WEBSOCKET = auto()

    # the Authorization header
    AUTHORIZATION_TOO_LARGE = auto()  # size
    AUTHORIZATION_SCHEME_UNKNOWN = auto()
    AUTHORIZATION_SCHEME_DPOP = auto()
    BEARER_NOT_A_TOKEN = auto()
    BASIC_NOT_BASE64 = auto()
    BASIC_WITHOUT_COLON = auto()
    BASIC_TOKEN_AS_NAME = auto()
    PAIR_UNUSABLE = auto()
    JWT_NOT_ACCEPTED = auto()
    PASSWORD_NOT_ACCEPTED = auto()
    CLIENT_NOT_CONFIGURED = auto()

    # a WebSocket that is handed over to the relay
    RELAY_WITHOUT_PREFECT = auto()
    RELAY_FULL = auto()
    ONLY_RELAYED = auto()  # as for roles
    FIRST_MESSAGE_LATE = auto()
    FIRST_MESSAGE_UNREADABLE = auto()
    PREFECT_OUT_OF_REACH = auto()  # because

    # the form and the signature of a JWT
    TOKEN_NOT_A_JWT = auto()
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
    TOKEN_ENCRYPTED = auto()  # segments, of a JWE
    ALGORITHM_NOT_ACCEPTED = auto()  # got, expected
    SIGNING_KEY_UNKNOWN = auto()  # kid, algorithm, keys
    KEY_IDS_MISSING = auto()  # issuer, algorithm
    SIGNATURE_INVALID = auto()  # kid, algorithm

    # the claims of a JWT
    ISSUER_NOT_TRUSTED = auto()  # got, expected
    TOKEN_TYPE_NOT_ACCEPTED = auto()  # got, expected
    NOT_AN_ACCESS_TOKEN = auto()  # claim
    LOOKS_LIKE_ID_TOKEN = auto()
    AUDIENCE_MISSING = auto()  # expected
    AUDIENCE_OTHER = auto()  # got, expected
    PARTY_NOT_ACCEPTED = auto()  # expected
    TOKEN_SENDER_CONSTRAINED = auto()  # members
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
    GROUPS_ELSEWHERE = auto()  # claim
    TOKEN_NOT_LISTED = auto()  # token, name
    TOKEN_REVOKED = auto()  # token, name
    TOKENS_OUT_OF_REACH = auto()  # because
    TOKEN_NOT_ACTIVE = auto()  # issuer
    TOKEN_CHECKS_FULL = auto()  # waiting, issuer

    # names and passwords
    PAIR_WRONG = auto()  # user, where it is known
    PAIR_WRONG_AT_ISSUER = auto()  # issuer, error, description, perhaps hint
    CLIENT_REFUSED = auto()  # issuer, error, description, perhaps hint
    CLIENT_NOT_AUTHORIZED = auto()  # issuer, error, description
    PASSWORD_CHANGED = auto()
    CLIENT_TOKEN_NOT_ACCEPTED = auto()  # because
    CLIENT_TOKEN_NOT_A_JWT = auto()  # issuer
    CLIENT_TOKEN_ENCRYPTED = auto()  # issuer
    TOO_MANY_GUESSES = auto()  # seconds
    PASSWORD_CHECKS_FULL = auto()  # waiting
    CLIENT_CHECKS_FULL = auto()  # waiting, issuer

    # an issuer, or a provider, that does not decide
    ISSUER_OUT_OF_REACH = auto()  # because
    ISSUER_MISCONFIGURED = auto()  # issuer, because
    KEYS_OUT_OF_REACH = auto()  # issuer, because
    NO_USABLE_KEY = auto()  # issuer, because
    KEY_NOT_KNOWN_YET = auto()  # kid
    GRANT_REFUSED = auto()  # issuer, error, description
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
    SIGN_IN_LOOPS = auto()
    SIGN_IN_UNPROVEN = auto()  # because, perhaps hint
    PROVIDER_DENIED = auto()  # error, description
    PROVIDER_CODE_USED = auto()  # error, description
    PROVIDER_WANTS_INTERACTION = auto()  # error, description
    PROVIDER_REFUSES_CLIENT = auto()  # error, description, perhaps hint
    PROVIDER_BUSY = auto()  # error, description
    PROVIDER_ERROR = auto()  # error, description
    PERSON_NOT_PERMITTED = auto()  # claim
    EMAIL_NOT_VERIFIED = auto()

    # what a provider signed, or sent, is not what was asked for
    RESPONSE_ISSUER_OTHER = auto()  # got
    PROVIDER_TOKEN_ISSUER_OTHER = auto()  # expected
    NOT_AN_ID_TOKEN = auto()  # got, or claim
    ID_TOKEN_PARTY_OTHER = auto()  # got
    ID_TOKEN_AUDIENCES_OTHER = auto()  # got
    ID_TOKEN_NONCE_OTHER = auto()
    ID_TOKEN_WITHOUT_SUBJECT = auto()
    ID_TOKEN_MISSING = auto()
    PROVIDER_ENCRYPTS = auto()
    ACCESS_TOKEN_HASH_OTHER = auto()
    SUBJECT_OTHER = auto()
    NOT_USERINFO = auto()  # got
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

    # no role of the principal's opens the request: name, issuer, roles, route, needed, holders
    CAPABILITY_MISSING = auto()
    ROUTE_UNKNOWN = auto()
    OUTSIDE_LIMITS = auto()
    SECRETS_NOT_PERMITTED = auto()
    SECRETS_BODY_NOT_SENT = auto()

    # what the page for people without access says
    NO_ROLE = auto()
    NO_GROUPS = auto()  # claim, preset
    ROLES_NOT_ENOUGH = auto()

    # values of the configuration, and documents, that cannot be used
    CLAIM_RULE_EMPTY = auto()
    GRANT_INCOMPLETE = auto()
    ROLE_LIMITS_INVALID = auto()  # role, expected
    ROLE_ADMIN_LIMITED = auto()  # role
    ROLE_ROUTES_UNKNOWN = auto()  # role, routes
    BASE_PATH_INVALID = auto()
    ROUTE_INCOMPLETE = auto()  # got
    CAPABILITY_UNKNOWN = auto()  # got, expected
    PATH_PARAMETER_INVALID = auto()  # got
    OPENAPI_WITHOUT_PATHS = auto()

    # an issuer with a preset would let strangers in
    PRESET_ISSUER_OTHER = auto()  # preset
    PRESET_AUDIENCE_SHARED = auto()  # preset, got
    PRESET_CLAIM_NEEDED = auto()  # preset, claims
    PRESET_ROLE_FOR_ALL = auto()  # preset, claims
    PRESET_CLAIM_REFUSED = auto()  # preset, claim

    INTERNAL = auto()


NO_FACTS: Final[Mapping[str, Any]] = MappingProxyType({})


class Cause(NamedTuple):
    """What is wrong, and what is known about it, by the names that ``Problem`` lists."""

    problem: Problem
    facts: Mapping[str, Any] = NO_FACTS
