"""The terms of the field as frozen types; nothing here computes.

A *credential* is what was presented, a *principal* is who it proved to be, and a *decision* is the outcome.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from service.core.errors import Code
from service.core.problems import Cause

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)  # RFC 7518 §3.1 and RFC 8037 §3.1, without none and without HMAC


class Gate(StrEnum):
    """Which kinds of credential a verify endpoint takes: the last segment of its path."""

    __hash__ = str.__hash__  # Enum's own is written in Python, and each call needs the hash

    API = "api"
    JWT = "jwt"
    BASIC = "basic"
    UI = "ui"


class Face(StrEnum):
    """Which kind of proxy calls, and so where the original request is: the first segment of the path.

    At ``RELAY`` a proxy does not ask about a WebSocket but hands it over.
    """

    FORWARD_AUTH = "forward-auth"
    AUTH_REQUEST = "auth-request"
    EXT_AUTHZ = "ext-authz"
    RELAY = "relay"


class ForwardedRequest(NamedTuple):
    """The request that reached the proxy, as the upstream will see it.

    ``path`` is percent-decoded once and unambiguous; ``client`` is the client's address, or empty if the proxy
    does not send it; ``target`` is path and query as sent; ``origin`` is scheme, host and port as a browser
    writes them (RFC 6454 §6.1).
    """

    method: str
    scheme: str
    host: str
    path: str
    query: str
    client: str
    target: str = ""
    origin: str = ""


class Browser(NamedTuple):
    """What a browser says about a request, which no script of a page can change (Fetch Metadata)."""

    navigates: bool  # a person opens a page
    same_origin: bool  # a page of this very origin sends it
    another_site: bool  # a page of another site, or of another origin of this one, sends it
    opens_websocket: bool = False


class Bearer(NamedTuple):
    """A token as it was presented, in any form: a JWT or an opaque one, unproven, and never shown."""

    token: bytes

    def __repr__(self) -> str:
        return "Bearer(…)"


class Basic(NamedTuple):
    """A user name and a password as they were presented: unproven, and never shown."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Basic(…)"


class SessionCookie(NamedTuple):
    """A sealed session as the browser presented it: unproven, and never shown."""

    sealed: str

    def __repr__(self) -> str:
        return "SessionCookie(…)"


class NoCredential:
    """Nothing was presented."""

    def __repr__(self) -> str:
        return "NoCredential()"


NO_CREDENTIAL: Final = NoCredential()
Credential = Bearer | Basic | SessionCookie | NoCredential


@dataclass(frozen=True, slots=True)
class IssuerTrust:
    """What an issuer's tokens must carry to be accepted.

    ``audiences`` is never empty. An empty string in ``token_types`` stands for a token without ``typ``.
    ``leeway`` is in seconds, and there is no other leeway. ``allow_sender_constrained`` accepts tokens that are bound
    to a key of their client, without proof of that key. ``complete_groups`` refuses a token that says that its groups
    are elsewhere. With ``groups_from_names``, the groups are the names of an object's members; ``groups_separator``
    divides a claim that has all of them in one text. ``accept_id_tokens`` accepts access tokens that look like ID
    tokens.
    """

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    leeway: float = 30.0
    token_types: frozenset[str] = frozenset({"at+jwt", "jwt", ""})
    required_scopes: frozenset[str] = frozenset()
    required_claims: Mapping[str, frozenset[str]] = field(default_factory=dict)
    authorized_parties: frozenset[str] = frozenset()
    client_id_as_audience: bool = False
    principal_claim: str = "sub"
    email_claim: str = "email"
    groups_claim: str = "groups"
    role: str = ""
    allow_sender_constrained: bool = False
    complete_groups: bool = False
    groups_from_names: bool = False
    groups_separator: str = ""
    accept_id_tokens: bool = False


class VerifiedClaims(NamedTuple):
    """The claims of a token whose signature was verified, or that its issuer said is active.

    Only ``authn.tokens`` makes one. ``vouched_until`` is when an issuer's word ends, in seconds since the epoch, and
    None for a signature. A token that was vouched for has no header, so no type.
    """

    issuer: str
    token_type: str
    claims: Mapping[str, Any]
    vouched_until: float | None = None


class Session(NamedTuple):
    """A browser session: what the sealed cookie holds. Times are in seconds since the epoch.

    ``began`` is the sign-in, ``seen`` the last time the cookie was sealed, ``check_at`` when the provider is asked
    again. ``id`` names the session, ``provider_sid`` the provider's own session (OIDC Back-Channel Logout §2.1).
    ``password_mark`` ties a local session to the password it began with. ``claims`` are those that grants of roles
    look at; the roles themselves are granted anew each time the session is opened.
    """

    id: str
    issuer: str
    subject: str
    name: str
    email: str
    groups: tuple[str, ...]
    claims: Mapping[str, list[str]]
    began: float
    seen: float
    check_at: float
    provider_sid: str = ""
    refresh_token: str = ""
    id_token: str = ""
    password_mark: str = ""

    def __repr__(self) -> str:
        return f"Session(id={self.id!r}, subject={self.subject!r})"


Identity = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]


class Principal(NamedTuple):
    """Who a credential proved to be. ``expires`` is when the credential ends, in seconds since the epoch."""

    issuer: str
    name: str
    email: str = ""
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    subject: str = ""
    scopes: frozenset[str] = frozenset()
    expires: float = float("inf")

    @property
    def identity(self) -> Identity:
        """Return what the upstream is told: issuer, name, e-mail, groups and roles."""
        return self[:5]


class Proof(NamedTuple):
    """A principal, and until when (seconds since the epoch) the proof may be reused without another check."""

    principal: Principal
    until: float


class Allow(NamedTuple):
    """The request may pass, as this principal. ``known`` tells whether the table has its route."""

    principal: Principal
    known: bool = True


class Deny(NamedTuple):
    """The request may not pass, and no other credential is asked for. ``known`` is as with Allow."""

    status: int
    code: Code
    cause: Cause
    known: bool = True


class Challenge(NamedTuple):
    """The request may not pass without another credential."""

    status: int
    code: Code
    cause: Cause


class Unavailable(NamedTuple):
    """Nothing was decided; the same request may be sent again after ``retry_after`` seconds."""

    status: int
    code: Code
    cause: Cause
    retry_after: int


class Login(NamedTuple):
    """The request may not pass before its sender has signed in, at ``location``, a path of the same host."""

    status: int
    code: Code
    cause: Cause
    location: str


Decision = Allow | Deny | Challenge | Login | Unavailable
