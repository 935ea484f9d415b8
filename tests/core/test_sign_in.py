"""What a provider's signed words are worth at sign-in. The signature is another module's business."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from service.core.errors import NotPermitted, Rejected
from service.core.identity.claims import claim_at, groups_in_one_text
from service.core.identity.sign_in import (
    LOGOUT_EVENT,
    check_response_issuer,
    lacks_groups,
    merge_access_token,
    merge_userinfo,
    needs_userinfo,
    pkce_challenge,
    provider_error,
    signed_in_from,
    validate_at_hash,
    validate_id_token,
    validate_logout_token,
)
from service.core.model import IssuerTrust, VerifiedClaims
from service.core.problems import Problem
from service.rendering.sentences import sentence_for_person
from tests.support.refusals import logged, refused, told

NOW = 1_800_000_000.0
MISSING = object()
ISSUER = "https://idp.example"
TRUST = IssuerTrust(ISSUER, frozenset({"gate"}), frozenset({"RS256"}))
ID_TOKEN = {
    "iss": ISSUER,
    "sub": "248",
    "aud": "gate",
    "iat": NOW - 1,
    "exp": NOW + 300,
    "nonce": "n",
    "email": "alice@example.test",
    "groups": ["data"],
    "sid": "s-1",
}
LOGOUT = {
    "iss": ISSUER,
    "sub": "248",
    "sid": "s-1",
    "aud": "gate",
    "iat": NOW - 1,
    "exp": NOW + 120,
    "jti": "l-1",
    "events": {LOGOUT_EVENT: {}},
}


def changed(claims: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**claims, **changes}.items() if value is not MISSING}


def id_token(token_type: str = "JWT", *, expected: str | None = "n", **changes: Any) -> Any:
    verified = VerifiedClaims(ISSUER, token_type, changed(ID_TOKEN, changes))
    return validate_id_token(verified, TRUST, "gate", NOW, nonce=expected)


def logout_token(token_type: str = "logout+jwt", **changes: Any) -> Any:
    return validate_logout_token(VerifiedClaims(ISSUER, token_type, changed(LOGOUT, changes)), TRUST, NOW)


def test_the_challenge_is_that_of_rfc7636_appendix_b() -> None:
    assert (
        pkce_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )


# ID tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_type", ["JWT", "jwt", "", "application/jwt"])
def test_an_id_token_says_who_signed_in(token_type: str) -> None:
    kept = {"groups", "email", "missing"}
    who = signed_in_from(id_token(token_type), TRUST, kept)
    claims = {"groups": ["data"], "email": ["alice@example.test"]}
    assert who[:7] == (ISSUER, "248", "248", "alice@example.test", ("data",), claims, "s-1")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": ["gate", "other"], "azp": "gate"}, id="several-audiences"),
        pytest.param({"aud": ["gate"]}, id="audience-list-of-one"),
        pytest.param({"azp": "gate"}, id="azp"),
        pytest.param({"exp": NOW - 29}, id="within-leeway"),
        pytest.param({"typ": "ID", "token_use": "id"}, id="kinds-of-keycloak-and-cognito"),
    ],
)
def test_what_is_right_passes(changes: dict[str, Any]) -> None:
    assert id_token(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"nonce": "other"}, Problem.ID_TOKEN_NONCE_OTHER, id="row36-nonce-of-another"),
        pytest.param({"nonce": MISSING}, Problem.ID_TOKEN_NONCE_OTHER, id="row36-nonce-missing"),
        pytest.param({"nonce": ["n"]}, Problem.ID_TOKEN_NONCE_OTHER, id="nonce-list"),
        pytest.param({"nonce": "\ud800"}, Problem.ID_TOKEN_NONCE_OTHER, id="nonce-surrogate"),
        pytest.param({"nonce": ""}, Problem.ID_TOKEN_NONCE_OTHER, id="nonce-empty"),
        pytest.param({"aud": "other"}, Problem.AUDIENCE_OTHER, id="row34-foreign-audience"),
        pytest.param({"aud": MISSING}, Problem.AUDIENCE_MISSING, id="audience-missing"),
        pytest.param({"aud": ["gate", "other"]}, Problem.ID_TOKEN_AUDIENCES_OTHER, id="several-audiences-without-azp"),
        pytest.param(
            {"aud": ["gate", "other"], "azp": "other"}, Problem.ID_TOKEN_PARTY_OTHER, id="row34-azp-of-another"
        ),
        pytest.param({"azp": "other"}, Problem.ID_TOKEN_PARTY_OTHER, id="azp-of-another-and-one-audience"),
        pytest.param({"azp": None}, Problem.ID_TOKEN_PARTY_OTHER, id="azp-null"),
        pytest.param({"azp": ["gate"]}, Problem.ID_TOKEN_PARTY_OTHER, id="azp-list"),
        pytest.param({"iss": "https://idp.example/"}, Problem.PROVIDER_TOKEN_ISSUER_OTHER, id="other-issuer"),
        pytest.param({"iss": MISSING}, Problem.PROVIDER_TOKEN_ISSUER_OTHER, id="issuer-missing"),
        pytest.param({"exp": NOW - 31}, Problem.TOKEN_EXPIRED, id="expired"),
        pytest.param({"exp": MISSING}, Problem.EXPIRY_MISSING, id="exp-missing"),
        pytest.param({"exp": "1900000000"}, Problem.DATE_INVALID, id="exp-string"),
        pytest.param({"exp": True}, Problem.DATE_INVALID, id="exp-bool"),
        pytest.param({"iat": MISSING}, Problem.ISSUED_AT_MISSING, id="iat-missing"),
        pytest.param({"iat": NOW + 31}, Problem.TOKEN_NOT_YET_VALID, id="iat-in-the-future"),
        pytest.param({"nbf": NOW + 31}, Problem.TOKEN_NOT_YET_VALID, id="nbf-in-the-future"),
        pytest.param({"sub": MISSING}, Problem.ID_TOKEN_WITHOUT_SUBJECT, id="sub-missing"),
        pytest.param({"sub": ""}, Problem.ID_TOKEN_WITHOUT_SUBJECT, id="sub-empty"),
        pytest.param({"sub": 248}, Problem.ID_TOKEN_WITHOUT_SUBJECT, id="sub-number"),
        pytest.param({"sub": "a\nb"}, Problem.CLAIM_UNUSABLE, id="row16-sub-newline"),
        pytest.param({"typ": "Bearer"}, Problem.NOT_AN_ID_TOKEN, id="row34-keycloak-access-token"),
        pytest.param({"typ": "Logout"}, Problem.NOT_AN_ID_TOKEN, id="row34-keycloak-logout-token"),
        pytest.param({"token_use": "access"}, Problem.NOT_AN_ID_TOKEN, id="row34-cognito-access-token"),
    ],
)
def test_what_is_wrong_with_an_id_token_is_a_refusal(changes: dict[str, Any], problem: Problem) -> None:
    with refused(Rejected, problem=problem):
        id_token(**changes)


@pytest.mark.parametrize("token_type", ["at+jwt", "logout+jwt", "application/at+jwt", "secevent+jwt", "dpop+jwt"])
def test_row34_another_kind_of_token_is_no_id_token(token_type: str) -> None:
    with refused(Rejected, problem=Problem.NOT_AN_ID_TOKEN):
        id_token(token_type)


def test_a_refreshed_id_token_needs_no_nonce_and_an_empty_one_is_none() -> None:
    assert id_token(expected=None)
    assert id_token(expected=None, nonce=MISSING)
    for forgotten in ({"nonce": ""}, {"nonce": MISSING}, {}):
        with pytest.raises(Rejected):
            id_token(expected="", **forgotten)


def at_hash(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("RS256", hashlib.sha256(b"token").digest()),
        ("ES384", hashlib.sha384(b"token").digest()),
        ("PS512", hashlib.sha512(b"token").digest()),
        pytest.param("EdDSA", hashlib.sha512(b"token").digest(), id="Ed25519"),
        pytest.param("EdDSA", hashlib.shake_256(b"token").digest(114), id="Ed448"),
        pytest.param("EdDSA", hashlib.shake_256(b"token").digest(64), id="Ed448-of-Keycloak"),
    ],
)
def test_at_hash_ties_the_access_token_to_the_id_token(algorithm: str, digest: bytes) -> None:
    claims = {"at_hash": at_hash(digest)}
    validate_at_hash(claims, "token", algorithm)
    with pytest.raises(Rejected):
        validate_at_hash(claims, "another", algorithm)


def test_at_hash_is_that_of_oidc_core_appendix_a() -> None:
    validate_at_hash({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}, "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", "RS256")
    validate_at_hash({}, "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", "RS256")


@pytest.mark.parametrize("value", ["", None, 7, ["77QmUPtjPfzWtF2AnpK9RQ"], "77QmUPtjPfzWtF2AnpK9RQ="])
def test_an_at_hash_that_is_there_has_to_be_right(value: object) -> None:
    with pytest.raises(Rejected):
        validate_at_hash({"at_hash": value}, "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", "RS256")


# who may enter --------------------------------------------------------------------------------------------------


def test_required_claims_decide_who_may_enter_and_say_who_may_not() -> None:
    trust = replace(TRUST, required_claims={"groups": frozenset({"prefect"})}, principal_claim="email")
    with pytest.raises(NotPermitted) as refusal:
        signed_in_from(id_token(), trust)
    assert (refusal.value.status, refusal.value.name, refusal.value.subject) == (403, "alice@example.test", "248")
    assert logged(refusal.value) == "person_not_permitted claim=groups"
    assert signed_in_from(id_token(groups=["prefect"]), trust).name == "alice@example.test"


@pytest.mark.parametrize("verified", [False, "false"])
def test_an_unconfirmed_address_names_nobody_and_opens_nothing(verified: object) -> None:
    claims = id_token(email_verified=verified)
    assert signed_in_from(claims, TRUST).email == ""  # nor is it handed on
    by_name = replace(TRUST, principal_claim="email")
    by_rule = replace(TRUST, required_claims={"email": frozenset({"alice@example.test"})})
    for trust in (by_name, by_rule):
        with refused(NotPermitted, "confirm"):
            signed_in_from(claims, trust)
        assert signed_in_from(id_token(email_verified=True), trust)
        assert signed_in_from(id_token(), trust)
    assert signed_in_from(claims, TRUST, ["email", "sub"]).claims == {"sub": ["248"]}  # nor is a role granted by it


def test_somebody_without_the_naming_claim_is_nobody() -> None:
    with pytest.raises(Rejected):
        signed_in_from(id_token(), replace(TRUST, principal_claim="preferred_username"))


@pytest.mark.parametrize("name", [" alice", "alice\u200b", "ali\nce"])
def test_nobody_signs_in_by_a_name_that_is_not_what_one_sees(name: str) -> None:
    with pytest.raises(Rejected) as refusal:
        signed_in_from(id_token(preferred_username=name), replace(TRUST, principal_claim="preferred_username"))
    assert refusal.value.cause.problem is Problem.CLAIM_UNUSABLE


@pytest.mark.parametrize(
    ("claims", "answer"),
    [
        ({"sub": "1", "email": "a@b", "groups": ["a"]}, False),
        ({"sub": "1", "email": "a@b", "groups": []}, True),
        ({"sub": "1", "email": "", "groups": ["a"]}, True),
        ({"sub": "1", "email": "a@b"}, True),
        ({"sub": "1", "groups": ["a"]}, True),
        ({"sub": "1", "email": None, "groups": []}, True),
    ],
)
def test_userinfo_is_worth_asking_where_a_claim_is_missing(claims: dict[str, Any], *, answer: bool) -> None:
    assert needs_userinfo(claims, TRUST) is answer
    assert needs_userinfo(claims, replace(TRUST, required_claims={"department": frozenset({"data"})}))
    assert needs_userinfo(claims, TRUST, {"department"})  # a grant looks at it
    assert needs_userinfo({**claims, "department": 0}, TRUST, {"department"}) is answer


def test_userinfo_adds_and_does_not_replace() -> None:
    claims = {"sub": "1", "groups": ["signed"], "email": None}
    both = merge_userinfo(claims, {"sub": "1", "groups": ["unsigned"], "email": "a@b", "iss": "x"})
    assert both == {"sub": "1", "groups": ["signed"], "email": "a@b", "iss": "x"}


def test_what_is_empty_hides_nothing() -> None:
    claims = {"sub": "1", "groups": [], "realm_access": {"roles": [], "more": ["a"]}, "admin": False}
    userinfo = {"sub": "1", "groups": ["data"], "realm_access": {"roles": ["b"], "more": ["c"]}, "admin": True}
    both = merge_userinfo(claims, userinfo)
    expected = {"groups": ["data"], "realm_access": {"roles": ["b"], "more": ["a"]}, "admin": False}
    assert both == {"sub": "1", **expected}


@pytest.mark.parametrize("userinfo", [{}, {"sub": "2"}, {"sub": None}, {"sub": ["1"]}])
def test_userinfo_of_somebody_else_is_refused(userinfo: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        merge_userinfo({"sub": "1"}, userinfo)


# the access token, and what else providers do ------------------------------------------------------------------

ACCESS = {
    "iss": ISSUER,
    "sub": "248",
    "azp": "gate",
    "aud": "account",
    "exp": NOW + 60,
    "realm_access": {"roles": ["a"]},
}


def with_access_token(claims: Mapping[str, Any], **changes: Any) -> Mapping[str, Any]:
    verified = VerifiedClaims(changes.pop("by", ISSUER), "JWT", changed(ACCESS, changes))
    return merge_access_token(claims, verified, TRUST, "gate", NOW)


def test_an_access_token_adds_what_the_id_token_lacks() -> None:
    both = with_access_token(id_token(groups=[]), groups=["data"], email="other@example.test")
    assert claim_at(both, "realm_access.roles") == ["a"]
    assert (both["groups"], both["email"], both["aud"]) == (["data"], "alice@example.test", "gate")
    assert with_access_token(id_token(), azp=MISSING, client_id="gate")["realm_access"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sub": "249"}, id="of-somebody-else"),
        pytest.param({"sub": MISSING}, id="of-nobody"),
        pytest.param({"azp": "other"}, id="for-another-client"),
        pytest.param({"azp": MISSING}, id="for-no-client"),
        pytest.param({"iss": "https://other.example"}, id="another-issuers"),
        pytest.param({"by": "https://other.example"}, id="signed-by-another"),
        pytest.param({"exp": NOW - 60}, id="expired"),
        pytest.param({"exp": MISSING}, id="for-ever"),
    ],
)
def test_an_access_token_of_anybody_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        with_access_token(id_token(), **changes)


def test_other_audiences_are_accepted_where_they_are_listed() -> None:
    claims = changed(ID_TOKEN, {"aud": ["gate", "project"]})
    verified = VerifiedClaims(ISSUER, "JWT", claims)
    listed = frozenset({"project"})
    assert validate_id_token(verified, TRUST, "gate", NOW, nonce="n", other_audiences=listed) == claims
    with refused(Rejected, problem=Problem.ID_TOKEN_AUDIENCES_OTHER) as refusal:
        validate_id_token(verified, TRUST, "gate", NOW, nonce="n")
    assert "got=['project']" in logged(refusal.value)
    assert "oidc.other_audiences" in logged(refusal.value)
    alone = VerifiedClaims(ISSUER, "JWT", {**claims, "aud": ["project"]})
    with refused(Rejected, problem=Problem.AUDIENCE_OTHER):
        validate_id_token(alone, TRUST, "gate", NOW, nonce="n", other_audiences=listed)


def test_groups_in_one_text_are_divided_where_that_is_set() -> None:
    claims = id_token(groups="data, ops,,x")
    assert signed_in_from(claims, TRUST).groups == ("data, ops,,x",)
    assert groups_in_one_text(claims, TRUST)
    divided = replace(TRUST, groups_separator=",")
    assert signed_in_from(claims, divided).groups == ("data", "ops", "x")
    assert not groups_in_one_text(claims, divided)
    for groups in (["a,b"], "cn=a,dc=b", "alone", None):
        assert not groups_in_one_text(id_token(groups=groups), TRUST)
    assert not groups_in_one_text(claims, replace(TRUST, groups_claim=""))
    assert signed_in_from(id_token(groups=["a,b"]), divided).groups == ("a,b",)


def test_a_claim_with_groups_is_missing_or_it_is_there() -> None:
    assert lacks_groups(id_token(groups=MISSING), TRUST)
    assert not lacks_groups(id_token(groups=[]), TRUST)
    assert not lacks_groups(id_token(groups=MISSING), replace(TRUST, groups_claim=""))


def test_groups_that_are_elsewhere_are_not_none() -> None:
    trust = replace(TRUST, complete_groups=True)
    with pytest.raises(NotPermitted) as refusal:
        signed_in_from(id_token(groups=MISSING, _claim_names={"groups": "src1"}), trust)
    assert "too many" in told(refusal.value)
    assert "more groups" in sentence_for_person(refusal.value.cause)
    assert signed_in_from(id_token(), trust).groups == ("data",)


# logout tokens --------------------------------------------------------------------------------------------------


def test_a_logout_token_says_what_ends_and_how_long_to_remember_it() -> None:
    assert logout_token() == ("248", "s-1", "l-1", NOW - 1, NOW + 120 + TRUST.leeway)


@pytest.mark.parametrize(
    ("token_type", "changes"),
    [
        pytest.param("logout+jwt", {"sid": MISSING}, id="sub-alone"),
        pytest.param("JWT", {"sub": MISSING}, id="sid-alone"),
        pytest.param("", {}, id="untyped"),
        pytest.param("application/logout+jwt", {"typ": "Logout"}, id="keycloak"),
        pytest.param("logout+jwt", {"exp": MISSING}, id="before-exp-was-required"),
        pytest.param("logout+jwt", {"events": {LOGOUT_EVENT: {"more": 1}, "urn:other": {}}}, id="more-events"),
        pytest.param("logout+jwt", {"exp": NOW + 86_400}, id="long-lived-and-fresh"),
    ],
)
def test_logout_tokens_that_providers_send_are_accepted(token_type: str, changes: dict[str, Any]) -> None:
    notice = logout_token(token_type, **changes)
    assert NOW < notice.until <= NOW + 600 + TRUST.leeway


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"events": MISSING}, Problem.NOT_A_LOGOUT_TOKEN, id="no-events"),
        pytest.param({"events": {"urn:other": {}}}, Problem.NOT_A_LOGOUT_TOKEN, id="another-event"),
        pytest.param({"events": [LOGOUT_EVENT]}, Problem.NOT_A_LOGOUT_TOKEN, id="events-list"),
        pytest.param({"events": {LOGOUT_EVENT: None}}, Problem.NOT_A_LOGOUT_TOKEN, id="event-null"),
        pytest.param({"events": LOGOUT_EVENT}, Problem.NOT_A_LOGOUT_TOKEN, id="events-string"),
        pytest.param({"nonce": "n"}, Problem.NOT_A_LOGOUT_TOKEN, id="nonce"),
        pytest.param({"nonce": None}, Problem.NOT_A_LOGOUT_TOKEN, id="nonce-null"),
        pytest.param({"sub": MISSING, "sid": MISSING}, Problem.LOGOUT_TOKEN_WITHOUT_SESSION, id="nobody"),
        pytest.param({"sub": "", "sid": ""}, Problem.LOGOUT_TOKEN_WITHOUT_SESSION, id="nobody-in-particular"),
        pytest.param({"sub": ["248"]}, Problem.CLAIM_UNUSABLE, id="sub-list"),
        pytest.param({"sid": {"a": 1}}, Problem.CLAIM_UNUSABLE, id="sid-object"),
        pytest.param({"jti": MISSING}, Problem.LOGOUT_TOKEN_WITHOUT_ID, id="no-jti"),
        pytest.param({"jti": 7}, Problem.CLAIM_UNUSABLE, id="jti-number"),
        pytest.param({"iat": MISSING}, Problem.ISSUED_AT_MISSING, id="no-iat"),
        pytest.param({"iat": NOW + 31}, Problem.TOKEN_NOT_YET_VALID, id="of-the-future"),
        pytest.param({"exp": NOW - 31}, Problem.TOKEN_EXPIRED, id="expired"),
        pytest.param({"exp": MISSING, "iat": NOW - 700}, Problem.TOKEN_EXPIRED, id="old-without-exp"),
        pytest.param({"exp": NOW + 300, "iat": NOW - 700}, Problem.LOGOUT_TOKEN_TOO_OLD, id="old-and-long-lived"),
        pytest.param({"exp": None}, Problem.DATE_INVALID, id="exp-null"),
        pytest.param({"aud": "other"}, Problem.AUDIENCE_OTHER, id="audience"),
        pytest.param({"aud": MISSING}, Problem.AUDIENCE_MISSING, id="no-audience"),
        pytest.param({"iss": "https://other.example"}, Problem.PROVIDER_TOKEN_ISSUER_OTHER, id="issuer"),
    ],
)
def test_what_is_wrong_with_a_logout_token_is_a_refusal(changes: dict[str, Any], problem: Problem) -> None:
    with refused(Rejected, problem=problem):
        logout_token(**changes)


@pytest.mark.parametrize("token_type", ["at+jwt", "secevent+jwt", "id_token"])
def test_row34_another_kind_of_token_ends_nothing(token_type: str) -> None:
    with refused(Rejected, problem=Problem.NOT_A_LOGOUT_TOKEN):
        logout_token(token_type)


# the way back ---------------------------------------------------------------------------------------------------


def test_an_answer_of_another_provider_is_refused() -> None:
    check_response_issuer(ISSUER, TRUST, required=True)
    check_response_issuer("", TRUST, required=False)
    for issuer, required in (("", True), ("https://other.example", False), (ISSUER + "/", False)):
        with pytest.raises(Rejected):
            check_response_issuer(issuer, TRUST, required=required)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        ("access_denied", "ask for access"),
        ("login_required", "sign in again"),
        ("consent_required", "sign in again"),
        ("server_error", "try again"),
        ("invalid_scope", "whoever runs it"),
        ("unauthorized_client", "whoever runs it"),
        ("invalid_grant", "too long"),
        ("", "try again"),
        ("<b>what is this</b>", "try again"),
    ],
)
def test_a_providers_error_is_a_sentence_that_says_what_to_do(error: str, word: str) -> None:
    assert word in told(provider_error(error))


def test_a_providers_own_words_reach_the_log_alone_and_printable() -> None:
    refusal = provider_error("access_denied", "<script>\r\nforged: line\x1b[31m" + "x" * 1000)
    assert "script" not in told(refusal)
    assert logged(refusal).isprintable()
    assert "error=access_denied description='<script>??forged: line?[31mxxx" in logged(refusal)
    assert len(logged(refusal)) < 300


def test_nothing_secret_is_in_a_repr() -> None:
    who = signed_in_from(id_token(), TRUST)._replace(id_token="secret-1", refresh_token="secret-2")
    assert "secret" not in f"{who!r} {who}"
