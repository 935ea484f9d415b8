"""Signing in by OpenID Connect, as far as it is a matter of values: what a provider's signed words are worth here.

The signature has been verified before; each check here names its section. A Rejected of this module goes to the log:
what a person reads is for the caller to say, who knows what was being tried.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from service.core.errors import NotPermitted, Rejected, SignInFailed
from service.core.identity.claims import (
    claim_at,
    groups_at,
    numeric_date,
    text_at,
    validate_audience,
    validate_times,
    values_at,
    with_verified_email,
)
from service.core.model import IssuerTrust, VerifiedClaims

LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
LOGOUT_SECONDS: Final = 600.0  # the specification wants two minutes; a provider may have to try again
MAX_DESCRIPTION: Final = 200

_ID_TOKEN_TYPES: Final = frozenset({"", "jwt", "application/jwt"})
_LOGOUT_TOKEN_TYPES: Final = frozenset({"", "jwt", "application/jwt", "logout+jwt", "application/logout+jwt"})
_NOT_IDENTITY: Final = (
    ("typ", ("Bearer", "Refresh", "Offline", "Logout")),  # Keycloak writes the kind into the claims
    ("token_use", ("access",)),  # Cognito does
)
_AT_HASHES: Final[Mapping[str, tuple[str, ...]]] = {
    "256": ("sha256",),
    "384": ("sha384",),
    "512": ("sha512",),
    "DSA": ("sha512", "shake_256"),  # Ed25519 and Ed448: the algorithm's name does not tell which
}
_SHAKE_BYTES: Final = 114

_START_AGAIN: Final = "The identity provider asks for something that was not done there: sign in again."
_OUR_FAULT: Final = "The identity provider does not accept this service as it is set up: tell whoever runs it."
_LATER: Final = "The identity provider has a problem just now: try again in a moment."
_UNKNOWN_ERROR: Final = "The identity provider ended the sign-in: try again."
_SENTENCES: Final[Mapping[str, str]] = {
    "access_denied": "The identity provider did not let you in: sign in with another account, or ask for access.",
    "invalid_grant": "This sign-in was used already, or took too long: sign in again.",
    "temporarily_unavailable": _LATER,
    "server_error": _LATER,
    **dict.fromkeys(
        ("login_required", "interaction_required", "account_selection_required", "consent_required"), _START_AGAIN
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
        _OUR_FAULT,
    ),
}


class SignedIn(NamedTuple):
    """Whom the provider vouched for, and what asks it again. Tokens are empty where it sent none.

    ``claims`` are those that grants of roles ask for.
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
    """Sessions that the provider ended: all of ``subject``, or the one of ``sid``, or both where both are given.

    ``token_id`` is to be remembered until ``until`` (seconds since the epoch): a second time, it is a replay.
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
    """Refuse an authorization response that another provider sent (RFC 9207 §2.4); an empty one names nobody."""
    if response_issuer != trust.issuer and (response_issuer or required):
        raise Rejected("This answer is not the provider's.", reason=f"iss of the response is {response_issuer!r:.200}")


def validate_id_token(
    verified: VerifiedClaims, trust: IssuerTrust, client_id: str, now: float, *, nonce: str | None
) -> Mapping[str, Any]:
    """Return the claims of an ID token for this client, or raise Rejected (OIDC Core §3.1.3.7).

    ``nonce`` is None for one that a refresh token brought: such an ID token should have none (§12.2).
    """
    claims = verified.claims
    if verified.token_type.lower() not in _ID_TOKEN_TYPES:
        raise Rejected("This is not an ID token.", reason=f"typ {verified.token_type!r:.40}")
    for name, kinds in _NOT_IDENTITY:
        if claims.get(name) in kinds:
            raise Rejected("This is not an ID token.", reason=f"by {name}")
    _validate_provider_token(verified.issuer, claims, trust, now)
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (several or "azp" in claims) and claims.get("azp") != client_id:
        raise Rejected("This ID token was issued to another client.", reason=f"azp {claims.get('azp')!r:.100}")
    if nonce is not None and not (nonce and _same(claims.get("nonce"), nonce)):
        raise Rejected("This ID token is of another sign-in.", reason="nonce")
    if not isinstance(claims.get("sub"), str) or not text_at(claims, "sub"):
        raise Rejected("This ID token names nobody.", reason="sub")
    return claims


def validate_at_hash(claims: Mapping[str, Any], access_token: str, algorithm: str) -> None:
    """Refuse an access token that the ID token was not issued with, where it says so (OIDC Core §3.1.3.8)."""
    if "at_hash" not in claims:
        return
    for name in _AT_HASHES.get(algorithm[-3:], ()):
        digest = hashlib.new(name, access_token.encode())
        whole = digest.digest(_SHAKE_BYTES) if name == "shake_256" else digest.digest()  # type: ignore[call-arg]
        if _same(claims["at_hash"], _b64url(whole[: len(whole) // 2])):
            return
    raise Rejected("This ID token is of another access token.", reason="at_hash")


def validate_logout_token(verified: VerifiedClaims, trust: IssuerTrust, now: float) -> LogoutNotice:
    """Return what a logout token ends, or raise Rejected (OIDC Back-Channel Logout §2.6).

    Whether its jti was seen before is for the caller to remember.
    """
    if verified.token_type.lower() not in _LOGOUT_TOKEN_TYPES:
        raise Rejected("This is not a logout token.", reason=f"typ {verified.token_type!r:.40}")
    latest = _issued_at(verified.claims) + LOGOUT_SECONDS
    claims = {"exp": latest, **verified.claims}  # it came late to the specification, and some still leave it out
    _validate_provider_token(verified.issuer, claims, trust, now)
    until = min(numeric_date(claims, "exp"), latest) + trust.leeway
    if now >= until:
        raise Rejected("This logout token is too old.", reason=f"good for {LOGOUT_SECONDS:.0f} s at most")
    events = claims.get("events")
    if not isinstance(events, Mapping) or not isinstance(events.get(LOGOUT_EVENT), Mapping):
        raise Rejected("This is not a logout token.", reason="events")
    if "nonce" in claims:
        raise Rejected("This is not a logout token.", reason="it has a nonce, as ID tokens have")
    subject, sid, token_id = (_optional_text(claims, name) for name in ("sub", "sid", "jti"))
    if not (subject or sid):
        raise Rejected("This logout token names no session.", reason="neither sub nor sid")
    if not token_id:
        raise Rejected("This logout token has no id.", reason="jti")
    return LogoutNotice(subject, sid, token_id, _issued_at(claims), until)


def lacks(claims: Mapping[str, Any], trust: IssuerTrust) -> bool:
    """Tell whether a claim that decides something is missing, and the userinfo endpoint may have it."""
    wanted = {trust.principal_claim, trust.email_claim, trust.groups_claim, *trust.required_claims} - {""}
    return any(claim_at(claims, name) is None for name in wanted)


def merge_userinfo(claims: Mapping[str, Any], userinfo: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return both, the signed claims first; userinfo of another subject is refused (OIDC Core §5.3.2)."""
    if userinfo.get("sub") != claims["sub"]:
        raise Rejected("The userinfo is of somebody else.", reason="sub")
    return {**userinfo, **{name: value for name, value in claims.items() if value is not None}}


def signed_in_from(claims: Mapping[str, Any], trust: IssuerTrust, kept: Iterable[str] = ()) -> SignedIn:
    """Return whom validated claims name, and the ``kept`` ones; NotPermitted where those required are others."""
    subject = text_at(claims, "sub")
    name = text_at(claims, trust.principal_claim)
    if not name:
        raise Rejected("Nobody is named.", reason=f"the claim {trust.principal_claim!r} is missing")
    for required, accepted in trust.required_claims.items():
        if accepted.isdisjoint(values_at(claims, required)):
            raise NotPermitted(
                "You are known to the identity provider, but not permitted to enter here: ask for access.",
                reason=f"the claim {required!r} is missing or is not one that is accepted here",
                subject=subject,
                name=name,
            )
    decisive = with_verified_email(claims, trust)
    decided_by = (trust.principal_claim, *trust.required_claims)
    if any(values_at(decisive, one) != values_at(claims, one) for one in decided_by):
        raise NotPermitted(
            "Your e-mail address is not confirmed at the identity provider: confirm it there, then sign in again.",
            reason="email_verified is false, and the address decides who may enter",
            subject=subject,
            name=name,
        )
    return SignedIn(
        trust.issuer,
        subject,
        name,
        text_at(claims, trust.email_claim),
        groups_at(claims, trust.groups_claim),
        {path: values for path in kept if (values := values_at(decisive, path))},
        _optional_text(claims, "sid"),
    )


def provider_error(error: str, description: str = "") -> SignInFailed:
    """Return an error of the provider (RFC 6749 §4.1.2.1, OIDC Core §3.1.2.6) as a sentence for the person.

    The provider's own words go to the log alone: whoever makes the link writes them.
    """
    said = f"{error} {description}".strip()
    reason = "".join(one if one.isprintable() else "?" for one in said[:MAX_DESCRIPTION])
    return SignInFailed(_SENTENCES.get(error, _UNKNOWN_ERROR), reason=f"the provider answered: {reason}")


def _validate_provider_token(issuer: str, claims: Mapping[str, Any], trust: IssuerTrust, now: float) -> None:
    """Check what ID tokens and logout tokens have in common: issuer, audience, dates."""
    if issuer != trust.issuer or claims.get("iss") != trust.issuer:
        raise Rejected("This token is another provider's.", reason=f"expected iss {trust.issuer}")
    validate_audience(claims, trust)
    validate_times(claims, trust, now)
    _issued_at(claims)


def _issued_at(claims: Mapping[str, Any]) -> float:
    if "iat" not in claims:
        raise Rejected("This token does not say when it was issued.", reason="no iat")
    return numeric_date(claims, "iat")


def _optional_text(claims: Mapping[str, Any], name: str) -> str:
    """Return the string at a claim, or an empty one where there is no such claim."""
    if not isinstance(claims.get(name, ""), str):
        raise Rejected("This token's claims cannot be used.", reason=f"{name} is not a string")
    return text_at(claims, name)


def _same(presented: object, expected: str) -> bool:
    """Compare without telling how much is right."""
    if not isinstance(presented, str):
        return False
    return hmac.compare_digest(presented.encode("utf-8", "surrogatepass"), expected.encode())


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
