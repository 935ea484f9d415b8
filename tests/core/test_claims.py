"""What a signed token is worth: a table of claims that must not pass, around one that does."""

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from service.core.errors import Rejected
from service.core.identity.claims import claim_at, principal_from
from service.core.model import IssuerTrust, VerifiedClaims
from service.core.problems import Problem
from service.rendering.answers import allow_headers
from tests.support.refusals import logged, refused

NOW = 1_800_000_000.0
TRUST = IssuerTrust(
    issuer="https://idp.example",
    audiences=frozenset({"prefect"}),
    algorithms=frozenset({"RS256"}),
    leeway=30,
    role="worker",
)
GOOD: dict[str, Any] = {
    "iss": "https://idp.example",
    "sub": "svc",
    "aud": "prefect",
    "iat": NOW - 10,
    "exp": NOW + 300,
    "email": "svc@example.com",
    "groups": ["a", "b"],
    "scope": "prefect:read prefect:write",
}
MISSING = object()


def verified(token_type: str = "at+jwt", **changes: Any) -> VerifiedClaims:
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not MISSING}
    return VerifiedClaims("https://idp.example", token_type, claims)


def test_a_good_token_becomes_a_principal() -> None:
    who = principal_from(verified(), TRUST, NOW)
    assert (who.issuer, who.subject, who.name, who.email) == (TRUST.issuer, "svc", "svc", "svc@example.com")
    assert who.groups == ("a", "b")
    assert who.roles == ("worker",)
    assert who.scopes == {"prefect:read", "prefect:write"}
    assert who.expires == NOW + 300


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"exp": MISSING}, "never expires", id="row33-exp-missing"),
        pytest.param({"exp": NOW - 31}, "expired", id="row33-exp-past"),
        pytest.param({"exp": NOW - 30}, "expired", id="row33-exp-is-now-at-the-end-of-the-leeway"),
        pytest.param({"exp": str(NOW + 300)}, "dates", id="row33-exp-string"),
        pytest.param({"exp": None}, "dates", id="row33-exp-null"),
        pytest.param({"exp": True}, "dates", id="row33-exp-bool"),
        pytest.param({"exp": float("inf")}, "dates", id="row33-exp-infinity"),
        pytest.param({"exp": float("nan")}, "dates", id="row33-exp-nan"),
        pytest.param({"exp": 10**400}, "dates", id="row33-exp-huge"),
        pytest.param({"exp": -1}, "dates", id="row33-exp-negative"),
        pytest.param({"exp": [NOW + 300]}, "dates", id="row33-exp-list"),
        pytest.param({"iat": NOW + 31}, "not valid yet", id="row33-iat-future"),
        pytest.param({"iat": "now"}, "dates", id="row33-iat-string"),
        pytest.param({"nbf": NOW + 31}, "not valid yet", id="row33-nbf-future"),
        pytest.param({"nbf": {}}, "dates", id="row33-nbf-object"),
        pytest.param({"aud": MISSING}, "audience", id="row34-aud-missing"),
        pytest.param({"aud": []}, "names no audience", id="row34-aud-empty"),
        pytest.param({"aud": "other"}, "audience", id="row34-aud-other"),
        pytest.param({"aud": ["other", "prefect2"]}, "audience", id="row34-aud-list-other"),
        pytest.param({"aud": ["prefect", 7]}, "audience", id="row34-aud-list-with-number"),
        pytest.param({"aud": {"prefect": 1}}, "audience", id="row34-aud-object"),
        pytest.param({"aud": None}, "audience", id="row34-aud-null"),
        pytest.param({"aud": "prefect "}, "audience", id="row34-aud-with-blank"),
        pytest.param({"iss": "https://idp.example/"}, "issuer", id="row34-iss-trailing-slash"),
        pytest.param({"iss": MISSING}, "issuer", id="row34-iss-missing"),
        pytest.param({"sub": MISSING}, "sub", id="sub-missing"),
        pytest.param({"sub": ""}, "sub", id="sub-empty"),
        pytest.param({"sub": {"a": 1}}, "sub", id="sub-object"),
        pytest.param({"sub": ["a", "b"]}, "sub", id="sub-two"),
        pytest.param({"sub": "a\r\nX-Auth-Request-Roles: admin"}, "sub", id="row16-sub-crlf"),
        pytest.param({"sub": "a\x00"}, "sub", id="row16-sub-nul"),
        pytest.param({"sub": "\ud800"}, "sub", id="row33-sub-lone-surrogate"),
        pytest.param({"sub": "x" * 600}, "sub", id="sub-long"),
        pytest.param({"sub": " svc"}, "sub", id="name-with-a-space-in-front"),
        pytest.param({"sub": "svc\u200b"}, "sub", id="name-with-a-zero-width-space"),
        pytest.param({"sub": "\ufeffsvc"}, "sub", id="name-with-a-byte-order-mark"),
        pytest.param({"groups": ["a\nb"]}, "groups", id="row16-group-newline"),
        pytest.param({"groups": ["g"] * 300}, "groups", id="groups-many"),
        pytest.param({"email": "a\x7f@b"}, "email", id="row16-email-control"),
        pytest.param({"nonce": "n"}, "access token", id="row34-id-token-nonce"),
        pytest.param({"at_hash": "x"}, "looks like one.*accept_id_tokens", id="row34-id-token-at-hash"),
        pytest.param({"typ": "ID"}, "access token", id="row34-keycloak-id-token"),
        pytest.param({"typ": "Refresh"}, "access token", id="row34-keycloak-refresh-token"),
        pytest.param({"token_use": "id"}, "access token", id="row34-cognito-id-token"),
        pytest.param({"cnf": {"jkt": "x"}}, "bound to a key", id="cnf-dpop"),
        pytest.param({"cnf": {"x5t#S256": "x"}}, "bound to a key", id="cnf-mutual-tls"),
        pytest.param({"cnf": {"jkt": "x", "x5t#S256": "x"}}, "bound to a key", id="cnf-both"),
    ],
)
def test_a_claim_that_is_not_right_is_a_refusal(changes: dict[str, Any], word: str) -> None:
    with refused(Rejected, word):
        principal_from(verified(**changes), TRUST, NOW)


def test_a_token_that_looks_like_an_id_token_is_accepted_where_that_is_set_and_for_its_audience_alone() -> None:
    trust = replace(TRUST, accept_id_tokens=True)
    assert principal_from(verified(at_hash="x"), trust, NOW).name == "svc"
    for changes in ({"nonce": "n"}, {"typ": "ID"}, {"aud": "the-client-of-people"}, {"c_hash": "x"}):
        with pytest.raises(Rejected):
            principal_from(verified(at_hash="x", **changes), trust, NOW)


def test_a_token_without_an_audience_says_in_the_log_where_one_is_requested() -> None:
    with refused(Rejected, "Request it for 'prefect'", Problem.AUDIENCE_MISSING) as refusal:
        principal_from(verified(aud=[]), TRUST, NOW)
    assert "issuer.client_credentials.audience" in logged(refusal.value)


def test_groups_in_one_text_are_divided_where_that_is_set() -> None:
    assert principal_from(verified(groups="a,b"), TRUST, NOW).groups == ("a,b",)
    assert principal_from(verified(groups="a, b"), replace(TRUST, groups_separator=","), NOW).groups == ("a", "b")


CONFIRMATIONS = {
    "jwk": {"jwk": {"kty": "EC"}},
    "kid": {"kid": "k"},
    "jku": {"jku": "https://idp.example/jwks"},
    "one-too-many": {"jkt": "x", "jwk": {}},
    "unknown": {"x": "y" * 1000},
    "empty": {},
    "null": None,
    "text": "jkt",
    "list": ["jkt"],
    "false": False,
}


@pytest.mark.parametrize("confirmation", CONFIRMATIONS.values(), ids=CONFIRMATIONS)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_confirmation_that_is_not_known_is_refused_in_any_case(confirmation: object, *, allowed: bool) -> None:
    trust = replace(TRUST, allow_sender_constrained=allowed)
    with refused(Rejected, "bound to a key", Problem.TOKEN_SENDER_CONSTRAINED) as raised:
        principal_from(verified(cnf=confirmation), trust, NOW)
    assert len(logged(raised.value)) < 300


def test_an_issuer_can_be_allowed_to_bind_its_tokens_to_a_key() -> None:
    trust = replace(TRUST, allow_sender_constrained=True)
    for confirmation in ({"jkt": "x"}, {"x5t#S256": "x"}, {"jkt": "x", "x5t#S256": "x"}):
        assert principal_from(verified(cnf=confirmation), trust, NOW).subject == "svc"
    with refused(Rejected, "expired"):
        principal_from(verified(cnf={"jkt": "x"}, exp=NOW - 60), trust, NOW)


@pytest.mark.parametrize("token_type", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", ""])
def test_types_that_real_providers_send_are_accepted(token_type: str) -> None:
    assert principal_from(verified(token_type), TRUST, NOW).subject == "svc"


@pytest.mark.parametrize("token_type", ["logout+jwt", "dpop+jwt", "secevent+jwt", "JOSE", "jwt ", "id_token"])
def test_row34_another_type_is_refused(token_type: str) -> None:
    with refused(Rejected, "type"):
        principal_from(verified(token_type), TRUST, NOW)


def test_row34_with_rfc9068_alone_a_plain_jwt_is_refused() -> None:
    strict = replace(TRUST, token_types=frozenset({"at+jwt"}))
    with pytest.raises(Rejected):
        principal_from(verified("JWT"), strict, NOW)


def test_row34_a_token_of_another_issuer_with_the_same_subject_is_refused() -> None:
    other = replace(TRUST, issuer="https://other.example")
    with refused(Rejected, "issuer"):
        principal_from(verified(), other, NOW)


def test_row33_there_is_one_leeway() -> None:
    assert principal_from(verified(exp=NOW - 29.5), TRUST, NOW)
    assert principal_from(verified(nbf=NOW + 30, iat=NOW + 30), TRUST, NOW)
    none = replace(TRUST, leeway=0)
    with pytest.raises(Rejected):
        principal_from(verified(exp=NOW), none, NOW)


def test_an_expired_token_says_since_when() -> None:
    with refused(Rejected, "expired 12 minutes ago"):
        principal_from(verified(exp=NOW - 12 * 60), TRUST, NOW)


def test_required_scopes_are_all_required() -> None:
    trust = replace(TRUST, required_scopes=frozenset({"prefect:read", "prefect:admin"}))
    with refused(Rejected, "prefect:admin"):
        principal_from(verified(), trust, NOW)
    assert principal_from(verified(scp=["prefect:admin"]), trust, NOW)


@pytest.mark.parametrize("value", [MISSING, "x", [], {}, None, ["x"], 1])
def test_a_required_claim_must_have_an_accepted_value(value: object) -> None:
    trust = replace(TRUST, required_claims={"repository_owner": frozenset({"acme"})})
    with refused(Rejected, "repository_owner"):
        principal_from(verified(repository_owner=value), trust, NOW)
    assert principal_from(verified(repository_owner="acme"), trust, NOW)


def test_nested_claims_are_found_by_dots() -> None:
    trust = replace(TRUST, groups_claim="realm_access.roles", required_claims={"realm_access.roles": frozenset({"r"})})
    who = principal_from(verified(realm_access={"roles": ["r", "s"]}), trust, NOW)
    assert who.groups == ("r", "s")


def test_the_authorized_party_can_be_required() -> None:
    trust = replace(TRUST, authorized_parties=frozenset({"ci"}))
    for changes in ({}, {"azp": "other"}, {"azp": ["ci"]}, {"azp": "other", "client_id": "ci"}):
        with pytest.raises(Rejected):
            principal_from(verified(**changes), trust, NOW)
    assert principal_from(verified(client_id="ci"), trust, NOW)


def test_a_missing_email_and_groups_are_nobodys_fault() -> None:
    who = principal_from(verified(email=MISSING, groups=MISSING), TRUST, NOW)
    assert (who.email, who.groups) == ("", ())


@pytest.mark.parametrize("said", [False, "false"])
def test_an_unverified_address_names_nobody_and_meets_no_demand(said: object) -> None:
    by_name = replace(TRUST, principal_claim="email")
    by_rule = replace(TRUST, required_claims={"email": frozenset({"svc@example.com"})})
    elsewhere = replace(TRUST, principal_claim="mail", email_claim="mail")
    for trust in (by_name, by_rule, elsewhere):
        with pytest.raises(Rejected):
            principal_from(verified(mail="svc@example.com", email_verified=said), trust, NOW)
        assert principal_from(verified(mail="svc@example.com", email_verified=True), trust, NOW)
        assert principal_from(verified(mail="svc@example.com"), trust, NOW)
    assert principal_from(verified(email_verified=said), TRUST, NOW).email == ""  # nor is it handed on


@pytest.mark.parametrize(
    ("claims", "path", "value"),
    [
        ({"a": "1"}, "a", "1"),
        ({"a": {"b": "1"}}, "a.b", "1"),
        ({"a.b": "1"}, "a.b", "1"),
        ({"a.b": "1", "a": {"b": "2"}}, "a.b", "1"),
        (
            {"resource_access": {"prefect.example.com": {"roles": "1"}}},
            "resource_access.prefect.example.com.roles",
            "1",
        ),
        ({"https://example.com/roles": "1"}, "https://example.com/roles", "1"),
        ({"https://example.com/x": {"roles": "1"}}, "https://example.com/x.roles", "1"),
        ({"a": {"b.c": {"d": "1"}, "b": {"c.d": "2"}}}, "a.b.c.d", "1"),  # the longest name, at each step
        ({"a.b": {"x": "1"}, "a": {"b": {"c": "2"}}}, "a.b.c", None),  # and no way back from it
        ({"a.b": "1"}, "a.b.c", None),
        ({"a.b": None, "a": {"b": "1"}}, "a.b", None),
        ({"a": ["b"]}, "a.b", None),
        ({}, "a.b", None),
        ({"": {"a": "1"}}, ".a", None),
    ],
)
def test_a_claim_is_found_by_the_longest_names_that_exist(claims: dict[str, Any], path: str, value: str | None) -> None:
    assert claim_at(claims, path) == value


def test_a_required_claim_may_be_below_a_client_id_with_dots() -> None:
    trust = replace(TRUST, required_claims={"resource_access.prefect.example.com.roles": frozenset({"user"})})
    roles = {"prefect.example.com": {"roles": ["user"]}}
    assert principal_from(verified(resource_access=roles), trust, NOW)
    with refused(Rejected, "resource_access"):
        principal_from(verified(resource_access={"prefect": {"example": roles}}), trust, NOW)


@pytest.mark.parametrize(
    "group", ["Data\xa0Team", "👩\u200d💻 engineers", "zoë", "a\tb", "a\u2028b", "\ud800", "a\x7f"]
)
def test_a_group_may_have_any_character_but_controls(group: str) -> None:
    if group.isascii() or group in {"a\u2028b", "\ud800"}:
        with refused(Rejected, "groups"):
            principal_from(verified(groups=["staff", group]), TRUST, NOW)
    else:
        principal = principal_from(verified(groups=["staff", group]), TRUST, NOW)
        assert principal.groups == ("staff", group)
        header = dict(allow_headers(principal.identity))[b"x-auth-request-groups"].decode("ascii")
        assert [unquote(one) for one in header.split(",")] == ["staff", group]


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"aud": MISSING, "client_id": "prefect"}, True),
        ({"aud": MISSING, "client_id": "another"}, False),
        ({"aud": MISSING, "client_id": MISSING}, False),
        ({"aud": MISSING, "client_id": {"prefect": 1}}, False),
        ({"aud": None, "client_id": "prefect"}, False),
        ({"aud": "another", "client_id": "prefect"}, False),
        ({"aud": "prefect", "client_id": "another"}, True),
        ({"aud": MISSING, "client_id": "prefect", "token_use": "id"}, False),
    ],
)
def test_a_client_id_is_an_audience_only_where_that_is_configured(changes: dict[str, Any], accepted: bool) -> None:  # noqa: FBT001
    for trust in (TRUST, replace(TRUST, client_id_as_audience=True)):
        if accepted and (trust.client_id_as_audience or changes["aud"] == "prefect"):
            assert principal_from(verified(**changes), trust, NOW)
        else:
            with refused(Rejected):
                principal_from(verified(**changes), trust, NOW)
