"""VerifiedClaims + trust + now → Principal: what a signed token is worth here.

Every check is spelled out, with its source; a claim of the wrong type is a refusal, never a skip. Time is an
argument, and ``trust.leeway`` is the only leeway.
"""

from collections.abc import Mapping
from typing import Any, Final

from service.core.errors import Rejected
from service.core.model import IssuerTrust, Principal, VerifiedClaims

MAX_NUMERIC_DATE: Final = 253_402_300_800.0  # the year 10000: past every calendar that a log can print
MAX_TEXT: Final = 512
MAX_GROUPS: Final = 256
_STRING: Final = frozenset({str})
_NUMBERS: Final = frozenset({int, float})
_NO_SCOPES: Final[frozenset[str]] = frozenset()
_ID_TOKEN_CLAIMS: Final = frozenset({"nonce", "at_hash", "c_hash", "s_hash"})  # OIDC Core §2: of ID tokens alone
_NOT_ACCESS: Final = (
    ("typ", frozenset({"ID", "Refresh", "Offline", "Logout"})),  # Keycloak writes the kind into the claims
    ("token_use", frozenset({"id"})),  # Cognito does
)


def principal_from(verified: VerifiedClaims, trust: IssuerTrust, now: float) -> Principal:
    """Return whom a verified token speaks of, or raise Rejected with a sentence that says what to renew."""
    claims = verified.claims
    _validate_kind(verified, trust)
    if verified.issuer != trust.issuer or claims.get("iss") != trust.issuer:
        raise Rejected("This token's issuer is not trusted here.", reason=f"expected iss {trust.issuer}")
    validate_audience(claims, trust)
    return named_by(claims, trust, validate_times(claims, trust, now))


def named_by(claims: Mapping[str, Any], trust: IssuerTrust, expires: float = float("inf")) -> Principal:
    """Return whom claims speak of, whoever vouches for them; Rejected where what must be there is not."""
    decisive = with_verified_email(claims, trust)
    scopes = _scopes(claims) if "scope" in claims or "scp" in claims else _NO_SCOPES
    if not trust.required_scopes <= scopes:
        wanted = " ".join(sorted(trust.required_scopes - scopes))
        raise Rejected(f"This token lacks the scope {wanted!r}: request it when you obtain the token.")
    for name, accepted in trust.required_claims.items():
        if accepted.isdisjoint(values_at(decisive, name)):
            raise Rejected(f"This token's claim {name!r} is missing or is not one that is accepted here.")
    subject = text_at(claims, "sub")
    name = subject if trust.principal_claim == "sub" else text_at(decisive, trust.principal_claim)
    if not subject or not name:
        raise Rejected(f"This token's claims 'sub' and {trust.principal_claim!r} do not name one principal.")
    return Principal(
        trust.issuer,
        name,
        text_at(claims, trust.email_claim),
        groups_at(claims, trust.groups_claim),
        (trust.role,) if trust.role else (),
        subject,
        scopes,
        expires,
    )


def _validate_kind(verified: VerifiedClaims, trust: IssuerTrust) -> None:
    """Tell an access token from every other kind of JWT that an issuer signs (RFC 8725 §3.11, RFC 9068 §4)."""
    kind = verified.token_type.lower()
    if kind not in trust.token_types and kind.removeprefix("application/") not in trust.token_types:
        raise Rejected(
            "This token is not of a type that is accepted here: send an access token.",
            reason=f"typ {verified.token_type[:40]!r}, expected one of {sorted(trust.token_types)}",
        )
    claims = verified.claims
    if not _ID_TOKEN_CLAIMS.isdisjoint(claims):
        raise Rejected("This is not an access token: send the access token instead.", reason="claims of an ID token")
    for name, kinds in _NOT_ACCESS:
        if name in claims and _word(claims[name]) in kinds:
            raise Rejected("This is not an access token: send the access token instead.", reason=f"by {name}")


def validate_audience(claims: Mapping[str, Any], trust: IssuerTrust) -> None:
    """RFC 7519 §4.1.3: a token is for those it names; RFC 9068 §4 makes that mandatory."""
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not _STRING.issuperset(map(type, named)):
        raise Rejected("This token names no audience: obtain it for Prefect's API.", reason="aud is unusable")
    if trust.audiences.isdisjoint(named):
        raise Rejected(
            "This token is for another audience: obtain it for Prefect's API.",
            reason=f"aud {named[:5]!r:.200}, expected one of {sorted(trust.audiences)}",
        )
    if trust.authorized_parties:
        party = claims.get("azp", claims.get("client_id"))
        if _word(party) not in trust.authorized_parties:
            raise Rejected("This token was issued to a client that is not accepted here.", reason="azp")


def validate_times(claims: Mapping[str, Any], trust: IssuerTrust, now: float) -> float:
    """Return exp. A token is good from nbf and iat up to, and not at, exp (RFC 7519 §4.1.4 to §4.1.6)."""
    if "exp" not in claims:
        raise Rejected("This token never expires: only tokens with an expiry are accepted.", reason="no exp")
    expires = numeric_date(claims, "exp")
    if now >= expires + trust.leeway:
        raise Rejected(f"This token expired {_ago(now - expires)} ago: obtain a new one.")
    for name in ("nbf", "iat"):
        if name in claims and now < numeric_date(claims, name) - trust.leeway:
            raise Rejected(
                "This token is not valid yet: check the clocks of the issuer and of this service.",
                reason=f"{name} is {numeric_date(claims, name) - now:.0f} s ahead",
            )
    return expires


def numeric_date(claims: Mapping[str, Any], name: str) -> float:
    """Return a NumericDate (RFC 7519 §2) that is there, or raise Rejected for what is none."""
    value = claims[name]
    if type(value) not in _NUMBERS or not 0 <= value < MAX_NUMERIC_DATE:  # bool is an int, and no date
        raise Rejected("This token's dates cannot be read.", reason=f"{name} is no NumericDate")
    return float(value)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}" + ("s" if count > 1 else "")
    return "less than a minute"


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """RFC 9068 §2.2.3 has ``scope``, a string; Okta and Entra write ``scp``, a list or a string."""
    words: list[str] = []
    for name in ("scope", "scp"):
        if name in claims:
            for value in values_at(claims, name):
                words += value.split()
    return frozenset(words)


def with_verified_email(claims: Mapping[str, Any], trust: IssuerTrust) -> Mapping[str, Any]:
    """Return the claims that may decide: an e-mail address that the issuer says is unverified counts as absent.

    Whoever registers at the issuer could have written it (OIDC Core §5.1). Nothing said is no such word.
    """
    if "false" not in values_at(claims, "email_verified"):
        return claims
    return {**claims, "email": None, trust.email_claim: None}


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a claim, which may be nested (``realm_access.roles``) or have dots in its name."""
    value = claims.get(path)
    if value is None and "." in path and path not in claims:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def values_at(claims: Mapping[str, Any], path: str) -> list[str]:
    """Return the strings at a claim, numbers and booleans as JSON writes them; anything else is passed over."""
    value = claim_at(claims, path)
    if isinstance(value, str):
        return [value]
    members = value if isinstance(value, list) else [value]
    return [
        str(member).lower() if isinstance(member, bool) else str(member)
        for member in members
        if isinstance(member, str | int)
    ]


def groups_at(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """Return the groups at a claim, none where there is no such claim, or raise Rejected for too many."""
    value = claim_at(claims, path) if path else None
    if value is None:
        return ()
    groups = values_at(claims, path)
    if len(groups) > MAX_GROUPS:
        raise Rejected("This token names too many groups.", reason=f"{len(groups)}, at most {MAX_GROUPS}")
    return tuple([_clean(group, path) for group in groups])


def text_at(claims: Mapping[str, Any], path: str) -> str:
    """Return the one string at a claim, or an empty one; of several, none is the right one."""
    value = claim_at(claims, path) if path else None
    if isinstance(value, str):
        return _clean(value, path)
    values = values_at(claims, path) if value is not None else []
    if len(values) > 1:
        raise Rejected(f"This token's claim {path!r} does not name one principal.")
    return _clean(values[0], path) if values else ""


def _clean(value: str, name: str) -> str:
    """Pass text that a header and a log line can carry; control characters and surrogates are refused."""
    if len(value) > MAX_TEXT or not value.isprintable():
        raise Rejected(f"This token's claim {name!r} has characters, or a length, that cannot be used.")
    return value


def _word(value: Any) -> str:
    """Return a string, and of anything else one that is in no set."""
    return value if isinstance(value, str) else ""
