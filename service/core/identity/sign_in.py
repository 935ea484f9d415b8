"""The checks of OpenID Connect on ID tokens, logout tokens, userinfo and error responses, each with its section.

Signatures were verified before. A Rejected of this module is for the log: the caller turns it into a refusal that says
what the person was trying to do.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from service.core.errors import NotPermitted, Rejected, SignInFailed
from service.core.identity.claims import (
    claim_at,
    groups_are_elsewhere,
    groups_of,
    numeric_date,
    text_at,
    validate_audience,
    validate_times,
    values_at,
    with_verified_email,
)
from service.core.model import IssuerTrust, VerifiedClaims
from service.core.names import is_visible_name
from service.core.problems import Problem

LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
LOGOUT_SECONDS: Final = 600.0  # the specification wants two minutes; a provider may have to try again
MAX_ERROR: Final = 80
MAX_DESCRIPTION: Final = 200

_ID_TOKEN_TYPES: Final = frozenset({"", "jwt", "application/jwt"})
_LOGOUT_TOKEN_TYPES: Final = frozenset({"", "jwt", "application/jwt", "logout+jwt", "application/logout+jwt"})
_NOT_IDENTITY: Final = (
    ("typ", ("Bearer", "Refresh", "Offline", "Logout")),  # Keycloak writes the kind into the claims
    ("token_use", ("access",)),  # Cognito does
)
_AT_HASHES: Final[Mapping[str, tuple[tuple[str, int], ...]]] = {  # hashes, and how many bytes are half of each
    "256": (("sha256", 16),),
    "384": (("sha384", 24),),
    "512": (("sha512", 32),),
    # Ed25519, and Ed448, which the algorithm's name does not tell apart. No standard says how long SHAKE256 is there:
    # 114 bytes, as inside Ed448 (RFC 8032 §5.2), are what OpenID's Connect working group chose (connect#1125), and 64,
    # as in CMS (RFC 8702 §3.1), are what Keycloak writes.
    "DSA": (("sha512", 32), ("shake_256", 57), ("shake_256", 32)),
}

_PROVIDER_ERRORS: Final[Mapping[str, Problem]] = {  # RFC 6749 §4.1.2.1 and §5.2, OIDC Core §3.1.2.6
    "access_denied": Problem.PROVIDER_DENIED,
    "invalid_grant": Problem.PROVIDER_CODE_USED,
    "temporarily_unavailable": Problem.PROVIDER_BUSY,
    "server_error": Problem.PROVIDER_BUSY,
    **dict.fromkeys(
        ("login_required", "interaction_required", "account_selection_required", "consent_required"),
        Problem.PROVIDER_WANTS_INTERACTION,
    ),
    **dict.fromkeys(
        (
            "invalid_client",
            "invalid_request",
            "invalid_scope",
            "unauthorized_client",
            "unsupported_grant_type",
            "unsupported_response_type",
        ),
        Problem.PROVIDER_REFUSES_CLIENT,
    ),
}


class SignedIn(NamedTuple):
    """Who signed in, by the provider's word, and the tokens for later calls. Tokens are empty if it sent none.

    ``claims`` are those that grants of roles look at.
    """

    issuer: str
    subject: str
    name: str
    email: str
    groups: tuple[str, ...]
    claims: Mapping[str, list[str]]
    provider_sid: str = ""
    id_token: str = ""
    refresh_token: str = ""

    def __repr__(self) -> str:
        return f"SignedIn(issuer={self.issuer!r}, subject={self.subject!r})"


class LogoutNotice(NamedTuple):
    """Sessions that the provider ended: all of ``subject``, or that of ``sid``; one may be empty.

    ``token_id`` must be remembered until ``until`` (seconds since the epoch): a second use is a replay.
    """

    subject: str
    sid: str
    token_id: str
    issued_at: float
    until: float


def pkce_challenge(verifier: str) -> str:
    """Return the S256 challenge of a code verifier (RFC 7636 §4.2)."""
    return _b64url(hashlib.sha256(verifier.encode("ascii")).digest())


def check_response_issuer(response_issuer: str, trust: IssuerTrust, *, required: bool) -> None:
    """Refuse an authorization response of another provider (RFC 9207 §2.4); an empty ``iss`` names none."""
    if response_issuer != trust.issuer and (response_issuer or required):
        raise Rejected(Problem.RESPONSE_ISSUER_OTHER, got=response_issuer[:MAX_DESCRIPTION])


def validate_id_token(
    verified: VerifiedClaims,
    trust: IssuerTrust,
    client_id: str,
    now: float,
    *,
    nonce: str | None,
    other_audiences: frozenset[str] = frozenset(),
) -> Mapping[str, Any]:
    """Return the claims of an ID token for this client, or raise Rejected (OIDC Core §3.1.3.7).

    ``nonce`` is None for an ID token of a refresh, which should have none (§12.2). ``other_audiences`` may be in it
    beside the client id without an ``azp``, which only some providers write.
    """
    claims = verified.claims
    if verified.token_type.lower() not in _ID_TOKEN_TYPES:
        raise Rejected(Problem.NOT_AN_ID_TOKEN, claim="typ", got=verified.token_type[:40])
    for name, kinds in _NOT_IDENTITY:
        if claims.get(name) in kinds:
            raise Rejected(Problem.NOT_AN_ID_TOKEN, claim=name)
    _validate_provider_token(verified.issuer, claims, trust, now)
    if "azp" in claims:
        if claims["azp"] != client_id:
            raise Rejected(Problem.ID_TOKEN_PARTY_OTHER, claim="azp", got=str(claims["azp"])[:100])
    elif isinstance(claims["aud"], list):
        more = set(claims["aud"]) - {client_id, *other_audiences}
        if more:
            raise Rejected(Problem.ID_TOKEN_AUDIENCES_OTHER, got=[one[:MAX_ERROR] for one in sorted(more)[:5]])
    if nonce is not None and not (nonce and _same(claims.get("nonce"), nonce)):
        raise Rejected(Problem.ID_TOKEN_NONCE_OTHER)
    if not isinstance(claims.get("sub"), str) or not text_at(claims, "sub"):
        raise Rejected(Problem.ID_TOKEN_WITHOUT_SUBJECT)
    return claims


def validate_at_hash(claims: Mapping[str, Any], access_token: str, algorithm: str) -> None:
    """Refuse an access token that does not match the ID token's ``at_hash``, if there is one (OIDC Core §3.1.3.8)."""
    if "at_hash" not in claims:
        return
    for name, half in _AT_HASHES.get(algorithm[-3:], ()):
        digest = hashlib.new(name, access_token.encode())
        whole = digest.digest(half) if name == "shake_256" else digest.digest()  # type: ignore[call-arg]
        if _same(claims["at_hash"], _b64url(whole[:half])):  # the first bytes of SHAKE256 are the same at any length
            return
    raise Rejected(Problem.ACCESS_TOKEN_HASH_OTHER)


def validate_logout_token(verified: VerifiedClaims, trust: IssuerTrust, now: float) -> LogoutNotice:
    """Return the sessions that a logout token ends, or raise Rejected (OIDC Back-Channel Logout §2.6).

    The caller must check that its jti was not used before.
    """
    if verified.token_type.lower() not in _LOGOUT_TOKEN_TYPES:
        raise Rejected(Problem.NOT_A_LOGOUT_TOKEN, claim="typ", got=verified.token_type[:40])
    latest = _issued_at(verified.claims) + LOGOUT_SECONDS
    claims = {"exp": latest, **verified.claims}  # a late addition to the specification: some providers leave it out
    _validate_provider_token(verified.issuer, claims, trust, now)
    until = min(numeric_date(claims, "exp"), latest) + trust.leeway
    if now >= until:
        raise Rejected(Problem.LOGOUT_TOKEN_TOO_OLD, limit=LOGOUT_SECONDS)
    events = claims.get("events")
    if not isinstance(events, Mapping) or not isinstance(events.get(LOGOUT_EVENT), Mapping):
        raise Rejected(Problem.NOT_A_LOGOUT_TOKEN, claim="events")
    if "nonce" in claims:
        raise Rejected(Problem.NOT_A_LOGOUT_TOKEN, claim="nonce")
    subject, sid, token_id = (_optional_text(claims, name) for name in ("sub", "sid", "jti"))
    if not (subject or sid):
        raise Rejected(Problem.LOGOUT_TOKEN_WITHOUT_SESSION)
    if not token_id:
        raise Rejected(Problem.LOGOUT_TOKEN_WITHOUT_ID)
    return LogoutNotice(subject, sid, token_id, _issued_at(claims), until)


def validate_userinfo(verified: VerifiedClaims, trust: IssuerTrust, now: float) -> Mapping[str, Any]:
    """Return the claims of a signed answer of the userinfo endpoint, or raise Rejected (OIDC Core §5.3.2).

    It is an answer to this very call, so it need not have dates; those that it has must be right.
    """
    if verified.token_type.lower() not in _ID_TOKEN_TYPES:
        raise Rejected(Problem.NOT_USERINFO, got=verified.token_type[:40])
    _validate_provider_token(verified.issuer, {"iat": now, "exp": now, **verified.claims}, trust, now)
    return verified.claims


def needs_userinfo(claims: Mapping[str, Any], trust: IssuerTrust, kept: Iterable[str] = ()) -> bool:
    """Tell whether a claim that decides something is missing or empty, which the userinfo endpoint may have.

    ``kept`` names the claims that grants look at.
    """
    wanted = {trust.principal_claim, trust.email_claim, trust.groups_claim, *trust.required_claims, *kept} - {""}
    return any(_is_empty(claim_at(claims, name)) for name in wanted)


def merge_userinfo(claims: Mapping[str, Any], userinfo: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the claims of both; signed ones win unless they are empty.

    Userinfo of another subject is refused (OIDC Core §5.3.2).
    """
    if userinfo.get("sub") != claims["sub"]:
        raise Rejected(Problem.USERINFO_SUBJECT_OTHER)
    return _merged(claims, userinfo)


def signed_in_from(claims: Mapping[str, Any], trust: IssuerTrust, kept: Iterable[str] = ()) -> SignedIn:
    """Return who signed in, with the claims named in ``kept``; raise NotPermitted if a required claim differs."""
    subject = text_at(claims, "sub")
    name = text_at(claims, trust.principal_claim)
    if not name:
        raise Rejected(Problem.PRINCIPAL_NOT_NAMED, claim=trust.principal_claim)
    if not is_visible_name(name):
        raise Rejected(Problem.CLAIM_UNUSABLE, claim=trust.principal_claim)
    for required, accepted in trust.required_claims.items():
        if accepted.isdisjoint(values_at(claims, required)):
            raise NotPermitted(Problem.PERSON_NOT_PERMITTED, claim=required, subject=subject, name=name)
    if groups_are_elsewhere(claims, trust):
        raise NotPermitted(Problem.GROUPS_ELSEWHERE, claim=trust.groups_claim, subject=subject, name=name)
    decisive = with_verified_email(claims, trust)
    decided_by = (trust.principal_claim, *trust.required_claims)
    if any(values_at(decisive, one) != values_at(claims, one) for one in decided_by):
        raise NotPermitted(Problem.EMAIL_NOT_VERIFIED, subject=subject, name=name)
    return SignedIn(
        trust.issuer,
        subject,
        name,
        text_at(decisive, trust.email_claim),
        groups_of(claims, trust),
        {path: values for path in kept if (values := values_at(decisive, path))},
        _optional_text(claims, "sid"),
    )


def provider_error(error: str, description: str = "", **more: str) -> SignInFailed:
    """Return the refusal for an error response (RFC 6749 §4.1.2.1, OIDC Core §3.1.2.6).

    The response's own words are for the log only: anybody can write them into a link to the callback. ``more`` is, too.
    """
    return SignInFailed(
        _PROVIDER_ERRORS.get(error, Problem.PROVIDER_ERROR),
        error=_printable(error[:MAX_ERROR]),
        description=_printable(description[:MAX_DESCRIPTION]),
        **more,
    )


def merge_access_token(
    claims: Mapping[str, Any], verified: VerifiedClaims, trust: IssuerTrust, client_id: str, now: float
) -> Mapping[str, Any]:
    """Return the claims with those that only the access token has; those of the ID token win unless they are empty.

    The access token must be this person's, and this client's. Its audience is another service. ``now`` is in seconds
    since the epoch.
    """
    access = verified.claims
    if verified.issuer != trust.issuer or access.get("iss") != trust.issuer or access.get("sub") != claims["sub"]:
        raise Rejected(Problem.SUBJECT_OTHER)
    if access.get("azp", access.get("client_id")) != client_id:
        raise Rejected(Problem.PARTY_NOT_ACCEPTED, expected=[client_id])
    validate_times(access, trust, now)
    return _merged(claims, access)


def lacks_groups(claims: Mapping[str, Any], trust: IssuerTrust) -> bool:
    """Tell whether there is no claim with groups at all."""
    return bool(trust.groups_claim) and claim_at(claims, trust.groups_claim) is None


def _merged(claims: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims, with those of ``others`` that they lack, at every depth."""
    merged = dict(claims)
    for name, other in others.items():
        own = claims.get(name)
        if _is_empty(own):
            merged[name] = other
        elif isinstance(own, Mapping) and isinstance(other, Mapping):
            merged[name] = _merged(own, other)
    return merged


def _is_empty(value: object) -> bool:
    """Tell whether a claim says nothing. A number or a boolean always says something."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


def _validate_provider_token(issuer: str, claims: Mapping[str, Any], trust: IssuerTrust, now: float) -> None:
    """Check what ID tokens and logout tokens have in common: issuer, audience and dates."""
    if issuer != trust.issuer or claims.get("iss") != trust.issuer:
        raise Rejected(Problem.PROVIDER_TOKEN_ISSUER_OTHER, expected=trust.issuer)
    validate_audience(claims, trust)
    validate_times(claims, trust, now)
    _issued_at(claims)


def _issued_at(claims: Mapping[str, Any]) -> float:
    if "iat" not in claims:
        raise Rejected(Problem.ISSUED_AT_MISSING)
    return numeric_date(claims, "iat")


def _optional_text(claims: Mapping[str, Any], name: str) -> str:
    """Return the string at a claim, or an empty string if there is no such claim."""
    if not isinstance(claims.get(name, ""), str):
        raise Rejected(Problem.CLAIM_UNUSABLE, claim=name)
    return text_at(claims, name)


def _same(presented: object, expected: str) -> bool:
    """Compare in constant time."""
    if not isinstance(presented, str):
        return False
    return hmac.compare_digest(presented.encode("utf-8", "surrogatepass"), expected.encode())


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
