"""Proof → roles."""

import pytest

from service.core.errors import UnusableError
from service.core.globs import matches_any
from service.core.identity.grant_index import GrantIndex
from service.core.identity.grants import ClaimRule, Grant, claims_that_decide
from service.core.model import Principal
from tests.support.refusals import refused

IDP = "https://idp.example"
SVC = Principal(IDP, "svc", groups=("etl", "all"), subject="svc", scopes=frozenset({"prefect:run", "openid"}))
NESTED = "realm_access.roles"
CLAIMS = {
    "azp": "ci",
    "realm_access": {"roles": ["deployer", "offline"]},
    "https://acme.example/team": "data",
    "repository": "acme/etl",
    "sub": "repo:acme/etl:ref:refs/heads/main",
    "verified": True,
    "level": 3,
    "odd": {"not": "a list"},
}


@pytest.mark.parametrize(
    ("conditions", "unmet"),
    [
        pytest.param({}, "", id="everybody-of-the-issuer"),
        pytest.param({"users": ("alice", "svc")}, "", id="user"),
        pytest.param({"users": ("alice", "SVC")}, "users", id="user-of-another-case"),
        pytest.param({"users": ("s*",)}, "", id="user-by-pattern"),
        pytest.param({"clients": ("ci",)}, "", id="client"),
        pytest.param({"clients": ("c",)}, "clients", id="client-in-part"),
        pytest.param({"groups": ("ops", "etl")}, "", id="one-of-the-groups"),
        pytest.param({"groups": ("ops", "et")}, "groups", id="no-group"),
        pytest.param({"scopes": frozenset({"prefect:run", "openid"})}, "", id="scopes"),
        pytest.param({"scopes": frozenset({"prefect:run", "prefect:deploy"})}, "scopes", id="a-scope-is-missing"),
        pytest.param({"groups": ("etl",), "users": ("alice",)}, "users", id="each-condition"),
        pytest.param({"claims": {NESTED: ClaimRule(any_of=frozenset({"x", "offline"}))}}, "", id="nested"),
        pytest.param({"claims": {NESTED: ClaimRule(all_of=frozenset({"deployer", "offline"}))}}, "", id="all"),
        pytest.param({"claims": {NESTED: ClaimRule(all_of=frozenset({"offline", "x"}))}}, NESTED, id="all-but-one"),
        pytest.param({"claims": {NESTED: ClaimRule(equals="offline")}}, NESTED, id="equals-is-the-only-one"),
        pytest.param({"claims": {"repository": ClaimRule(equals="acme/etl")}}, "", id="equals"),
        pytest.param({"claims": {"https://acme.example/team": ClaimRule(equals="data")}}, "", id="dots-in-its-name"),
        pytest.param({"claims": {"verified": ClaimRule(equals="true")}}, "", id="boolean"),
        pytest.param({"claims": {"level": ClaimRule(equals="3")}}, "", id="number"),
        pytest.param({"claims": {"sub": ClaimRule(glob=("repo:acme/*:ref:refs/heads/main",))}}, "", id="glob"),
        pytest.param({"claims": {"sub": ClaimRule(glob=("repo:acme/*",))}}, "sub", id="glob-stays-in-its-part"),
        pytest.param({"claims": {"sub": ClaimRule(glob=("repo:acme/**",))}}, "", id="glob-over-parts"),
        pytest.param({"claims": {"missing": ClaimRule(glob=("**",))}}, "missing", id="a-missing-claim-holds-nothing"),
        pytest.param({"claims": {"odd": ClaimRule(glob=("**",))}}, "odd", id="an-object-holds-nothing"),
        pytest.param({"claims": {"odd.not.a": ClaimRule(glob=("**",))}}, "odd.not.a", id="too-deep"),
        pytest.param(
            {"claims": {"repository": ClaimRule(equals="acme/etl", glob=("other/*",))}}, "repository", id="each-demand"
        ),
    ],
)
def test_a_grant_holds_when_each_of_its_conditions_is_met(conditions: dict[str, object], unmet: str) -> None:
    grant = Grant(("deployer",), IDP, **conditions)  # type: ignore[arg-type]
    assert grant.unmet(SVC, CLAIMS) == unmet
    assert GrantIndex([grant]).with_roles(SVC, CLAIMS).roles == (() if unmet else ("deployer",))


def test_row34_another_issuers_same_name_gets_nothing() -> None:
    grant = Grant(("admin",), IDP, users=("svc",))
    assert grant.unmet(SVC._replace(issuer="https://other.example"), CLAIMS) == "issuer"
    assert grant.unmet(SVC._replace(issuer=f"{IDP}/"), CLAIMS) == "issuer"


@pytest.mark.parametrize(
    ("pattern", "value", "is_met"),
    [
        ("*@example.com", "a@example.com", True),
        ("*@example.com", "a@evil.example@example.com", False),
        ("*@example.com", "a@example.com.evil.example", False),
        ("*@example.com", "a@exampleXcom", False),
        ("**@example.com", "a@evil.example@example.com", True),
        ("a[bc]", "ab", False),
        ("a[bc]", "a[bc]", True),
        ("a?", "ab", False),
        ("*", "", True),
        ("a", "a\n", False),
        ("**", "a\nb", True),
    ],
)
def test_row20_a_pattern_says_what_it_seems_to(pattern: str, value: str, *, is_met: bool) -> None:
    assert matches_any([pattern], value) == is_met


def test_roles_come_from_each_grant_that_holds_once() -> None:
    grants = [
        Grant(("runner", "viewer"), IDP, groups=("etl",)),
        Grant(("viewer", "worker"), IDP),
        Grant(("admin",), IDP, users=("root",)),
    ]
    assert GrantIndex(grants).with_roles(SVC._replace(roles=("viewer",))).roles == ("viewer", "runner", "worker")
    assert GrantIndex([]).with_roles(SVC).roles == ()


def test_without_claims_no_rule_for_a_claim_holds() -> None:
    grant = Grant(("admin",), IDP, claims={"repository": ClaimRule(glob=("**",))})
    assert GrantIndex([grant]).with_roles(SVC).roles == ()
    assert GrantIndex([Grant(("admin",), IDP, clients=("**",))]).with_roles(SVC).roles == ()


def test_a_client_goes_by_the_first_name_that_is_there() -> None:
    grant = Grant(("worker",), IDP, clients=("ci",))
    assert grant.unmet(SVC, {"client_id": "ci", "azp": "other"}) == ""
    assert grant.unmet(SVC, {"client_id": "other", "azp": "ci"}) == "clients"
    assert grant.unmet(SVC, {"appid": "ci"}) == ""


def test_row19_rules_that_would_always_hold_are_refused() -> None:
    with refused(UnusableError, "always hold"):
        ClaimRule()
    with refused(UnusableError, "issuer"):
        Grant(("admin",), "")
    with refused(UnusableError, "roles"):
        Grant((), IDP)


def test_the_claims_that_decide_are_those_that_a_person_can_have() -> None:
    rule = ClaimRule(any_of=frozenset({"x"}))
    by_claim = Grant(("viewer",), IDP, claims={"department": rule, "azp": rule}, clients=("ci",))
    by_group = Grant(("viewer",), IDP, groups=("data",))
    assert claims_that_decide([by_claim], "groups") == {"department"}
    assert claims_that_decide([by_claim, by_group], "groups") == {"department", "groups"}
    assert claims_that_decide([by_group], "") == set()
    assert claims_that_decide([], "groups") == set()
