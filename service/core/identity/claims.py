"""VerifiedClaims + trust + now → Principal: whom a token with a valid signature names, and whether it is accepted.

Every check names its source. A claim of the wrong type is a refusal; it is never skipped. Time is an argument, and
``trust.leeway`` is the only leeway.
"""

from collections.abc import Mapping
from typing import Any, Final
from unicodedata import category

from service.core.errors import Rejected
from service.core.model import IssuerTrust, Principal, VerifiedClaims
from service.core.names import is_visible_name
from service.core.problems import Problem

MAX_NUMERIC_DATE: Final = 253_402_300_800.0  # the year 10000, the first that Python cannot print
MAX_TEXT: Final = 512
MAX_GROUPS: Final = 256
MAX_SHOWN: Final = 80  # characters of an unaccepted value that become a fact
_STRING: Final = frozenset({str})
_NUMBERS: Final = frozenset({int, float})
_CONTROLS: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode categories
_NO_SCOPES: Final[frozenset[str]] = frozenset()
_ID_TOKEN_CLAIMS: Final = frozenset({"nonce", "c_hash", "s_hash"})  # OIDC Core §2: of ID tokens alone
_SENDER_CONSTRAINTS: Final = frozenset({"jkt", "x5t#S256"})
_NOT_ACCESS: Final = (
    ("typ", frozenset({"ID", "Refresh", "Offline", "Logout"})),  # Keycloak writes the kind into the claims
    ("token_use", frozenset({"id", "refresh_token"})),  # Cognito does, and Ory Hydra when it is asked about a token
)
_BEARER: Final = frozenset({"bearer"})
_BEARER_OR_BOUND: Final = frozenset({"bearer", "dpop"})


def principal_from(verified: VerifiedClaims, trust: IssuerTrust, now: float) -> Principal:
    """Return the principal that a verified token names, or raise Rejected.

    The issuer's word for an opaque token ends with the principal that it proves.
    """
    if verified.issuer != trust.issuer:
        raise Rejected(Problem.ISSUER_NOT_TRUSTED, expected=trust.issuer)
    if verified.vouched_until is not None:
        principal = principal_if_signed(_of_answer(verified.claims, trust), trust, now)
        return principal._replace(expires=min(principal.expires, verified.vouched_until))
    kind = verified.token_type.lower()
    if kind not in trust.token_types and kind.removeprefix("application/") not in trust.token_types:
        raise Rejected(
            Problem.TOKEN_TYPE_NOT_ACCEPTED, got=verified.token_type[:40], expected=sorted(trust.token_types)
        )
    return principal_if_signed(verified.claims, trust, now)


def _of_answer(answer: Mapping[str, Any], trust: IssuerTrust) -> Mapping[str, Any]:
    """Return what an issuer says of an opaque token (RFC 7662 §2.2) as the claims of a JWT.

    An issuer answers about refresh tokens, too. It names their type as something else than Bearer, or names none; then
    only an audience tells that a token is for a resource. Without ``iss`` a token is of the issuer that answered.
    Without ``sub`` its client is the subject if the configuration names principals by ``client_id``.
    """
    if "token_type" in answer:
        accepted = _BEARER_OR_BOUND if trust.allow_sender_constrained else _BEARER
        if _word(answer["token_type"]).lower() not in accepted:
            raise Rejected(Problem.NOT_AN_ACCESS_TOKEN, claim="token_type")
    elif "aud" not in answer:
        raise Rejected(Problem.NOT_AN_ACCESS_TOKEN, claim="token_type")
    claims = {"iss": trust.issuer, **answer}
    if "sub" not in answer and trust.principal_claim == "client_id":
        claims["sub"] = answer.get("client_id")
    return claims


def principal_if_signed(claims: Mapping[str, Any], trust: IssuerTrust, now: float) -> Principal:
    """Return the principal that an access token with these claims names, or raise Rejected.

    Whether the claims are genuine is for the caller to know.
    """
    _validate_kind(claims, trust)
    if claims.get("iss") != trust.issuer:
        raise Rejected(Problem.ISSUER_NOT_TRUSTED, expected=trust.issuer)
    validate_audience(claims, trust)
    if "cnf" in claims:
        _validate_confirmation(claims["cnf"], trust)
    if groups_are_elsewhere(claims, trust):
        raise Rejected(Problem.GROUPS_ELSEWHERE, claim=trust.groups_claim)
    return named_by(claims, trust, validate_times(claims, trust, now))


def named_by(claims: Mapping[str, Any], trust: IssuerTrust, expires: float = float("inf")) -> Principal:
    """Return the principal that claims name, or raise Rejected if a required scope or claim is missing.

    Whether the claims are genuine is for the caller to know.
    """
    decisive = with_verified_email(claims, trust)
    scopes = _scopes(claims) if "scope" in claims or "scp" in claims else _NO_SCOPES
    if not trust.required_scopes <= scopes:
        raise Rejected(Problem.SCOPE_MISSING, scope=" ".join(sorted(trust.required_scopes - scopes)))
    for name, accepted in trust.required_claims.items():
        if accepted.isdisjoint(values_at(decisive, name)):
            raise Rejected(Problem.CLAIM_NOT_ACCEPTED, claim=name)
    subject = text_at(claims, "sub")
    name = subject if trust.principal_claim == "sub" else text_at(decisive, trust.principal_claim)
    if not subject or not name:
        raise Rejected(Problem.PRINCIPAL_NOT_NAMED, claim=trust.principal_claim)
    if not is_visible_name(name):
        raise Rejected(Problem.CLAIM_UNUSABLE, claim=trust.principal_claim)
    return Principal(
        trust.issuer,
        name,
        text_at(decisive, trust.email_claim),
        groups_of(claims, trust),
        (trust.role,) if trust.role else (),
        subject,
        scopes,
        expires,
    )


def _validate_kind(claims: Mapping[str, Any], trust: IssuerTrust) -> None:
    """Tell an access token from every other kind of JWT that an issuer signs (RFC 8725 §3.11, RFC 9068 §4)."""
    of_id_tokens = _ID_TOKEN_CLAIMS.intersection(claims)
    if of_id_tokens:
        raise Rejected(Problem.NOT_AN_ACCESS_TOKEN, claim=min(of_id_tokens))
    if "at_hash" in claims and not trust.accept_id_tokens:
        raise Rejected(Problem.LOOKS_LIKE_ID_TOKEN)
    for name, kinds in _NOT_ACCESS:
        if name in claims and _word(claims[name]) in kinds:
            raise Rejected(Problem.NOT_AN_ACCESS_TOKEN, claim=name)


def _validate_confirmation(confirmation: object, trust: IssuerTrust) -> None:
    """Refuse a token that only the holder of a key may send (RFC 7800 §3): no proof of the key reaches this service.

    ``allow_sender_constrained`` accepts DPoP (RFC 9449 §6.1) and mutual TLS (RFC 8705 §3.1) without that proof.
    """
    members = frozenset(confirmation) if isinstance(confirmation, Mapping) else frozenset()
    if not (trust.allow_sender_constrained and members and members <= _SENDER_CONSTRAINTS):
        shown = sorted(str(one)[:MAX_SHOWN] for one in members)[:5]
        raise Rejected(Problem.TOKEN_SENDER_CONSTRAINED, members=shown)


def groups_are_elsewhere(claims: Mapping[str, Any], trust: IssuerTrust) -> bool:
    """Tell whether a token's groups are to be had elsewhere (OIDC Core §5.6.2, Entra's overage): they are not none."""
    if not trust.complete_groups:
        return False
    elsewhere = claims.get("_claim_names", {})
    names_them = not isinstance(elsewhere, Mapping) or trust.groups_claim in elsewhere
    return names_them or (trust.groups_claim == "groups" and "true" in values_at(claims, "hasgroups"))


def validate_audience(claims: Mapping[str, Any], trust: IssuerTrust) -> None:
    """Refuse a token that does not name this audience (RFC 7519 §4.1.3, mandatory in RFC 9068 §4)."""
    audience = claims.get("aud")
    if trust.client_id_as_audience and "aud" not in claims:
        audience = claims.get("client_id")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not named or not _STRING.issuperset(map(type, named)):
        raise Rejected(Problem.AUDIENCE_MISSING, expected=sorted(trust.audiences))
    if trust.audiences.isdisjoint(named):
        raise Rejected(
            Problem.AUDIENCE_OTHER, got=[one[:MAX_SHOWN] for one in named[:5]], expected=sorted(trust.audiences)
        )
    if trust.authorized_parties:
        party = claims.get("azp", claims.get("client_id"))
        if _word(party) not in trust.authorized_parties:
            raise Rejected(Problem.PARTY_NOT_ACCEPTED, expected=sorted(trust.authorized_parties))


def validate_times(claims: Mapping[str, Any], trust: IssuerTrust, now: float) -> float:
    """Return exp. A token is valid from nbf and iat until just before exp (RFC 7519 §4.1.4 to §4.1.6)."""
    if "exp" not in claims:
        raise Rejected(Problem.EXPIRY_MISSING)
    expires = numeric_date(claims, "exp")
    if now >= expires + trust.leeway:
        raise Rejected(Problem.TOKEN_EXPIRED, seconds=round(now - expires))
    for name in ("nbf", "iat"):
        if name in claims and now < numeric_date(claims, name) - trust.leeway:
            ahead = round(numeric_date(claims, name) - now)
            raise Rejected(Problem.TOKEN_NOT_YET_VALID, claim=name, seconds=ahead)
    return expires


def numeric_date(claims: Mapping[str, Any], name: str) -> float:
    """Return the NumericDate (RFC 7519 §2) at a claim that is present, or raise Rejected if it is not one."""
    value = claims[name]
    if type(value) not in _NUMBERS or not 0 <= value < MAX_NUMERIC_DATE:  # bool is an int, and no date
        raise Rejected(Problem.DATE_INVALID, claim=name)
    return float(value)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """RFC 9068 §2.2.3 has ``scope``, a string; Okta and Entra write ``scp``, a list or a string."""
    words: list[str] = []
    for name in ("scope", "scp"):
        if name in claims:
            for value in values_at(claims, name):
                words += value.split()
    return frozenset(words)


def with_verified_email(claims: Mapping[str, Any], trust: IssuerTrust) -> Mapping[str, Any]:
    """Return the claims for decisions: without the e-mail address if ``email_verified`` is false.

    Anybody who registers at the issuer can claim an unverified address (OIDC Core §5.1). If ``email_verified`` is
    missing, the address stays.
    """
    if "email_verified" not in claims or "false" not in values_at(claims, "email_verified"):
        return claims
    return {**claims, "email": None, trust.email_claim: None}


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """Return the value at a claim, or None.

    The claim may be nested (``realm_access.roles``), and names may have dots themselves: at each step the longest name
    that exists is taken, so ``resource_access.prefect.example.com.roles`` finds the client ``prefect.example.com``.
    """
    if path in claims or "." not in path:
        return claims.get(path)
    end = path.rfind(".")
    while end > 0:
        nested = claims.get(path[:end])
        if nested is not None:
            return claim_at(nested, path[end + 1 :]) if isinstance(nested, Mapping) else None
        end = path.rfind(".", 0, end)
    return None


def values_at(claims: Mapping[str, Any], path: str) -> list[str]:
    """Return the strings at a claim, numbers and booleans as JSON writes them. Other values are left out."""
    value = claim_at(claims, path)
    if isinstance(value, str):
        return [value]
    members = value if isinstance(value, list) else [value]
    return [
        str(member).lower() if isinstance(member, bool) else str(member)
        for member in members
        if isinstance(member, str | int)
    ]


def groups_of(claims: Mapping[str, Any], trust: IssuerTrust) -> tuple[str, ...]:
    """Return the groups that claims have, none if there is no such claim; raise Rejected for too many."""
    path = trust.groups_claim
    value = claim_at(claims, path) if path else None
    if value is None:
        return ()
    if trust.groups_from_names and isinstance(value, Mapping):
        groups = list(value)
    elif trust.groups_separator and isinstance(value, str):
        groups = [group for one in value.split(trust.groups_separator) if (group := one.strip())]
    else:
        groups = values_at(claims, path)
    if len(groups) > MAX_GROUPS:
        raise Rejected(Problem.GROUPS_TOO_MANY, count=len(groups), limit=MAX_GROUPS)
    return tuple([_without_controls(group, path) for group in groups])


def groups_in_one_text(claims: Mapping[str, Any], trust: IssuerTrust) -> bool:
    """Tell whether all groups stand in one text with commas, which counts as one group as long as nothing divides it.

    That of an LDAP group is a distinguished name, whose commas divide nothing.
    """
    value = claim_at(claims, trust.groups_claim) if trust.groups_claim else None
    return isinstance(value, str) and "," in value and "=" not in value and not trust.groups_separator


def text_at(claims: Mapping[str, Any], path: str) -> str:
    """Return the one string at a claim, or an empty string; raise Rejected if there are several."""
    value = claim_at(claims, path) if path else None
    if isinstance(value, str):
        return _without_controls(value, path)
    values = values_at(claims, path) if value is not None else []
    if len(values) > 1:
        raise Rejected(Problem.CLAIM_AMBIGUOUS, claim=path)
    return _without_controls(values[0], path) if values else ""


def _without_controls(value: str, name: str) -> str:
    """Return text for a header and a log line; refuse control characters, line separators and surrogates."""
    if len(value) > MAX_TEXT or (not value.isprintable() and any(map(_is_control, value))):
        raise Rejected(Problem.CLAIM_UNUSABLE, claim=name)
    return value


def _is_control(character: str) -> bool:
    return category(character) in _CONTROLS


def _word(value: Any) -> str:
    """Return a string as it is, and for anything else the empty string, which is in none of the sets."""
    return value if isinstance(value, str) else ""
