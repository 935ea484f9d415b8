"""Each preset with the example of its documentation: tokens of the provider's shape, its own and a stranger's.

The shapes are those of the providers' documentation. The tokens are signed here.
"""

import json
import re
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.adapters.discovery import KeySource
from service.adapters.jwks import parse_jwks
from service.adapters.outbound import open_client
from service.authn.issuers import Issuer
from service.authn.tokens import Tokens
from service.core.errors import Rejected
from service.core.identity.grant_index import GrantIndex
from service.core.identity.presets import PRESETS
from service.core.model import ALGORITHMS, Bearer
from service.core.problems import Problem
from service.rendering.presets import WORDS
from service.settings import Settings, load
from service.state.issuer_keys import IssuerKeys
from tests.support.issuer import Issuer as Provider
from tests.support.issuer import SigningKey

pytestmark = pytest.mark.anyio

RS256, ES256 = SigningKey.generate("RS256", "rs"), SigningKey.generate("ES256", "es")
TENANT = "11111111-2222-3333-4444-555555555555"
PROJECT = "344374183645413380"
GONE = None  # of a claim: it is not in the token
Outcome = tuple[str, ...] | Problem


class Shape(NamedTuple):
    """A token as the provider writes it, and the roles that it gets."""

    claims: dict[str, Any]
    roles: tuple[str, ...]
    typ: str | None = "JWT"


RIGHT = {
    "github-actions": Shape(
        {
            "iss": "https://token.actions.githubusercontent.com",
            "aud": "prefect",
            "sub": "repo:acme/flows:ref:refs/heads/main",
            "repository": "acme/flows",
            "repository_id": "123456789",
            "repository_owner": "acme",
            "repository_owner_id": "65",
            "repository_visibility": "private",
            "ref": "refs/heads/main",
            "ref_type": "branch",
            "ref_protected": "true",
            "sha": "6bf1c2e9f8f34e2ab0f4a3c1f4e1b1fd3d1a5d4a",
            "event_name": "push",
            "workflow": "deploy",
            "workflow_ref": "acme/flows/.github/workflows/deploy.yml@refs/heads/main",
            "job_workflow_ref": "acme/flows/.github/workflows/deploy.yml@refs/heads/main",
            "actor": "octocat",
            "actor_id": "12",
            "run_id": "1",
            "run_attempt": "1",
            "runner_environment": "github-hosted",
            "head_ref": "",
            "base_ref": "",
        },
        ("deployer",),
    ),
    "gitlab-ci": Shape(
        {
            "iss": "https://gitlab.com",
            "aud": "prefect",
            "sub": "project_path:acme/flows:ref_type:branch:ref:main",
            "namespace_id": "72",
            "namespace_path": "acme",
            "project_id": "12345678",
            "project_path": "acme/flows",
            "user_id": "1",
            "user_login": "sample-user",
            "user_email": "sample-user@example.com",
            "user_access_level": "developer",
            "pipeline_id": "574",
            "pipeline_source": "push",
            "job_id": "302",
            "ref": "main",
            "ref_type": "branch",
            "ref_path": "refs/heads/main",
            "ref_protected": "true",
            "runner_id": 1,
            "runner_environment": "gitlab-hosted",
        },
        ("deployer",),
    ),
    "kubernetes": Shape(
        {
            "iss": "https://kubernetes.default.svc.cluster.local",
            "aud": ["prefect"],
            "sub": "system:serviceaccount:prefect:worker",
            "kubernetes.io": {
                "namespace": "prefect",
                "node": {"name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
                "pod": {"name": "worker-0", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
                "serviceaccount": {"name": "worker", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
            },
        },
        ("worker",),
        typ=None,
    ),
    "google": Shape(
        {
            "iss": "https://accounts.google.com",
            "aud": "prefect",
            "azp": "107517467455664443765",
            "sub": "107517467455664443765",
            "email": "worker@my-project.iam.gserviceaccount.com",
            "email_verified": True,
        },
        ("worker",),
    ),
    "entra": Shape(
        {
            "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
            "aud": "66666666-7777-8888-9999-000000000000",
            "tid": TENANT,
            "ver": "2.0",
            "azp": "aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb",
            "azpacr": "1",
            "oid": "cccccccc-0000-1111-2222-dddddddddddd",
            "sub": "cccccccc-0000-1111-2222-dddddddddddd",
            "roles": ["Prefect.Worker"],
            "idtyp": "app",
        },
        ("worker",),
    ),
    "keycloak": Shape(
        {
            "iss": "https://idp.example.com/realms/data",
            "aud": ["prefect", "account"],
            "sub": "5f6b1c1e-9d0f-4f7e-8a39-1f2d3c4b5a69",
            "typ": "Bearer",
            "azp": "night-worker",
            "realm_access": {"roles": ["offline_access", "prefect-worker"]},
            "resource_access": {"prefect.example.com": {"roles": ["deploys"]}},
            "scope": "profile email",
            "clientId": "night-worker",
            "preferred_username": "service-account-night-worker",
            "email_verified": False,
        },
        ("worker",),
    ),
    "auth0": Shape(
        {
            "iss": "https://my-tenant.eu.auth0.com/",
            "aud": "https://prefect.example.com",
            "sub": "my_client_id@clients",
            "azp": "my_client_id",
            "gty": "client-credentials",
            "scope": "work:prefect",
            "permissions": ["work:prefect"],
            "https://example.com/groups": ["night"],
        },
        ("worker",),
    ),
    "okta": Shape(
        {
            "iss": "https://my-org.okta.com/oauth2/aus1a2b3c4D5e6F7g8h9",
            "ver": 1,
            "aud": "api://prefect",
            "cid": "0oa1a2b3c4D5e6F7g8h9",
            "sub": "0oa1a2b3c4D5e6F7g8h9",
            "scp": ["prefect"],
        },
        ("worker",),
        typ=None,
    ),
    "authentik": Shape(
        {
            "iss": "https://authentik.example.com/application/o/prefect/",
            "aud": "prefect",
            "azp": "prefect",
            "uid": "x",
            "sub": "c7d2e1f0a9b8",
            "preferred_username": "night-worker",
            "groups": ["prefect-workers"],
            "scope": "profile",
        },
        ("worker",),
    ),
    "cognito": Shape(
        {
            "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
            "aud": GONE,
            "sub": "1example23456789",
            "token_use": "access",
            "scope": "prefect/work",
            "version": 2,
            "client_id": "1example23456789",
        },
        ("worker",),
        typ=None,
    ),
    "zitadel": Shape(
        {
            "iss": "https://my-instance.zitadel.cloud",
            "aud": [PROJECT],
            "sub": "345377791925026818",
            "client_id": "night-worker",
            f"urn:zitadel:iam:org:project:{PROJECT}:roles": {"worker": {"344373908297744388": "acme.zitadel.cloud"}},
        },
        ("worker",),
    ),
}

# what differs from the right token, and what becomes of it
NOT_ACCEPTED = Problem.CLAIM_NOT_ACCEPTED
STRANGERS: list[tuple[str, str, dict[str, Any], Outcome]] = [
    ("github-actions", "another-repository", {"repository": "mallory/flows", "repository_id": "666"}, NOT_ACCEPTED),
    ("github-actions", "the-same-name-taken-over", {"repository_id": "987654321"}, NOT_ACCEPTED),
    ("github-actions", "no-repository", {"repository_id": GONE}, NOT_ACCEPTED),
    ("github-actions", "another-branch", {"ref": "refs/heads/mallory"}, ()),
    ("github-actions", "a-pull-request", {"ref": "refs/pull/7/merge", "event_name": "pull_request"}, ()),
    ("github-actions", "a-pull-request-target", {"event_name": "pull_request_target"}, ()),
    ("github-actions", "the-default-audience", {"aud": "https://github.com/acme"}, Problem.AUDIENCE_OTHER),
    ("gitlab-ci", "another-project", {"project_id": "666", "project_path": "mallory/flows"}, NOT_ACCEPTED),
    ("gitlab-ci", "another-branch", {"ref": "mallory"}, ()),
    ("gitlab-ci", "a-tag-named-like-the-branch", {"ref_type": "tag"}, ()),
    ("gitlab-ci", "a-branch-that-is-not-protected", {"ref_protected": "false"}, ()),
    ("gitlab-ci", "another-audience", {"aud": "https://vault.example.com"}, Problem.AUDIENCE_OTHER),
    (
        "kubernetes",
        "another-namespace",
        {
            "sub": "system:serviceaccount:mallory:worker",
            "kubernetes.io": {"namespace": "mallory", "serviceaccount": {"name": "worker"}},
        },
        NOT_ACCEPTED,
    ),
    (
        "kubernetes",
        "another-service-account",
        {
            "sub": "system:serviceaccount:prefect:default",
            "kubernetes.io": {"namespace": "prefect", "serviceaccount": {"name": "default"}},
        },
        (),
    ),
    ("kubernetes", "another-cluster", {"iss": "https://oidc.eks.example/id/OTHER"}, Problem.ISSUER_NOT_TRUSTED),
    ("kubernetes", "a-token-of-the-old-kind", {"kubernetes.io": GONE, "exp": GONE}, Problem.EXPIRY_MISSING),
    ("google", "another-service-account", {"email": "worker@evil.iam.gserviceaccount.com"}, NOT_ACCEPTED),
    ("google", "an-address-that-is-not-verified", {"email_verified": False}, NOT_ACCEPTED),
    ("google", "no-address", {"email": GONE, "email_verified": GONE}, NOT_ACCEPTED),
    ("google", "a-person", {"at_hash": "x", "email": "me@gmail.com"}, Problem.LOOKS_LIKE_ID_TOKEN),
    (
        "entra",
        "another-tenant",
        {"iss": "https://login.microsoftonline.com/99999999-2222-3333-4444-555555555555/v2.0"},
        Problem.ISSUER_NOT_TRUSTED,
    ),
    ("entra", "a-tenant-that-is-not-the-issuers", {"tid": "99999999-2222-3333-4444-555555555555"}, NOT_ACCEPTED),
    ("entra", "an-app-without-a-role", {"roles": GONE}, ()),
    ("entra", "an-app-with-another-role", {"roles": ["Prefect.Viewer"]}, ()),
    ("entra", "another-api", {"aud": "api://other"}, Problem.AUDIENCE_OTHER),
    ("keycloak", "another-client", {"realm_access": {"roles": ["offline_access"]}}, ()),
    ("keycloak", "a-role-of-another-client", {"realm_access": GONE, "resource_access": {"x": {"roles": ["y"]}}}, ()),
    ("keycloak", "a-token-for-the-account-page", {"aud": "account"}, Problem.AUDIENCE_OTHER),
    ("keycloak", "an-id-token", {"typ": "ID"}, Problem.NOT_AN_ACCESS_TOKEN),
    ("auth0", "a-user-who-signed-up", {"gty": GONE, "sub": "auth0|123456"}, NOT_ACCEPTED),
    ("auth0", "a-machine-without-the-permission", {"permissions": []}, ()),
    ("auth0", "another-api", {"aud": "https://other.example.com"}, Problem.AUDIENCE_OTHER),
    ("okta", "another-client", {"cid": "0oaOTHER"}, ()),
    ("okta", "without-the-scope", {"scp": ["openid"]}, Problem.SCOPE_MISSING),
    ("okta", "another-authorization-server", {"iss": "https://my-org.okta.com"}, Problem.ISSUER_NOT_TRUSTED),
    ("authentik", "another-provider", {"aud": "grafana"}, Problem.AUDIENCE_OTHER),
    ("authentik", "not-in-the-group", {"groups": ["staff"]}, ()),
    ("authentik", "without-the-scope", {"groups": GONE}, ()),
    ("cognito", "another-app-client", {"client_id": "2other"}, Problem.AUDIENCE_OTHER),
    ("cognito", "an-id-token", {"token_use": "id", "aud": "1example23456789"}, Problem.NOT_AN_ACCESS_TOKEN),
    ("cognito", "no-kind-of-token", {"token_use": GONE}, NOT_ACCEPTED),
    ("cognito", "without-the-scope", {"scope": "aws.cognito.signin.user.admin"}, Problem.SCOPE_MISSING),
    ("zitadel", "another-project", {"aud": ["999"]}, Problem.AUDIENCE_OTHER),
    ("zitadel", "without-a-role", {f"urn:zitadel:iam:org:project:{PROJECT}:roles": {}}, ()),
    (
        "zitadel",
        "a-role-of-the-same-name-in-its-own-project",
        {
            f"urn:zitadel:iam:org:project:{PROJECT}:roles": GONE,
            "urn:zitadel:iam:org:project:999:roles": {"worker": {"1": "evil.zitadel.cloud"}},
            "urn:zitadel:iam:org:project:roles": {"worker": {"1": "evil.zitadel.cloud"}},
        },
        (),
    ),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


KEY_SET = json.dumps({"keys": [RS256.jwk(), ES256.jwk()]}).encode()


def configured(toml: str) -> Settings:
    Path("forward-auth.toml").write_text(toml)
    return load({}).settings


async def outcome(toml: str, claims: dict[str, Any], typ: str | None = "JWT", key: SigningKey = RS256) -> Outcome:
    """Return the roles that a signed token gets under a configuration, or why it is refused."""
    settings = configured(toml)
    issuers = {}
    async with open_client("test") as client:
        for one in settings.all_issuers:
            keys = IssuerKeys(KeySource.configured(one.url), client)
            keys.keys = parse_jwks(KEY_SET, ALGORITHMS, one.url)
            keys.fetched_at = time.monotonic()
            issuers[one.url] = Issuer(one.trust(), keys)
        token = Provider().mint(key=key, header={"typ": typ}, **claims)
        try:
            proof = await Tokens(issuers, GrantIndex(settings.all_grants)).authenticate(Bearer(token.encode()))
        except Rejected as refusal:
            return refusal.cause.problem
        return proof.principal.roles


def test_each_preset_has_a_token_and_a_stranger() -> None:
    assert set(RIGHT) == set(PRESETS) == set(WORDS) == {preset for preset, *_ in STRANGERS}
    assert all(set(WORDS[name].claims) == set(PRESETS[name].claims) for name in PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
async def test_the_right_token_gets_its_role(preset: str) -> None:
    shape = RIGHT[preset]
    assert await outcome(WORDS[preset].example, shape.claims, shape.typ) == shape.roles


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [pytest.param(preset, changes, end, id=f"{preset}-{who}") for preset, who, changes, end in STRANGERS],
)
async def test_a_stranger_gets_nothing(preset: str, changes: dict[str, Any], expected: Outcome) -> None:
    shape = RIGHT[preset]
    assert await outcome(WORDS[preset].example, {**shape.claims, **changes}, shape.typ) == expected


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_required_claim_cannot_be_met_with_another_type(preset: str) -> None:
    """An object, or nothing, in place of each claim that decides."""
    shape = RIGHT[preset]
    settings = tomllib.loads(WORDS[preset].example)
    deciding = [*settings["issuers"][0].get("required_claims", {}), *PRESETS[preset].required]
    for claim in {"kubernetes.io" if one.startswith("kubernetes.io.") else one for one in deciding}:
        for value in ({}, [], None, {"x": "y"}, [[shape.claims[next(iter(shape.claims))]]]):
            got = await outcome(WORDS[preset].example, {**shape.claims, claim: value}, shape.typ)
            assert got in {Problem.CLAIM_NOT_ACCEPTED, Problem.CLAIM_AMBIGUOUS}


async def test_a_type_or_an_algorithm_that_the_provider_never_uses_is_refused_until_it_is_set() -> None:
    github, claims = WORDS["github-actions"].example, RIGHT["github-actions"].claims
    assert await outcome(github, claims, "at+jwt") is Problem.TOKEN_TYPE_NOT_ACCEPTED
    assert await outcome(github, claims, key=ES256) is Problem.ALGORITHM_NOT_ACCEPTED
    more = github.replace('audiences = ["prefect"]', 'audiences = ["prefect"]\nalgorithms = "RS256,ES256"')
    assert await outcome(more, claims, key=ES256) == ("deployer",)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        pytest.param({"groups": ["11111111-aaaa"]}, ("worker",), id="groups"),
        pytest.param({}, (), id="none"),
        pytest.param({"hasgroups": True}, Problem.GROUPS_ELSEWHERE, id="hasgroups"),
        pytest.param({"hasgroups": "true"}, Problem.GROUPS_ELSEWHERE, id="hasgroups-text"),
        pytest.param({"hasgroups": False}, (), id="hasgroups-false"),
        pytest.param(
            {
                "_claim_names": {"groups": "src1"},
                "_claim_sources": {"src1": {"endpoint": "https://graph.microsoft.com/v1.0/users/1/getMemberObjects"}},
            },
            Problem.GROUPS_ELSEWHERE,
            id="overage",
        ),
        pytest.param({"_claim_names": {"photo": "src1"}}, (), id="something-else-is-elsewhere"),
        pytest.param({"_claim_names": 17}, Problem.GROUPS_ELSEWHERE, id="unreadable"),
    ],
)
async def test_too_many_groups_of_entra_are_never_none(claims: dict[str, Any], expected: Outcome) -> None:
    toml = WORDS["entra"].example.replace('preset = "entra"', 'preset = "entra"\ngroups_claim = "groups"')
    toml = toml.replace('groups = ["Prefect.Worker"]', 'groups = ["11111111-aaaa"]')
    assert await outcome(toml, {**RIGHT["entra"].claims, **claims}) == expected


async def test_an_overage_does_not_matter_where_roles_decide() -> None:
    claims = {**RIGHT["entra"].claims, "_claim_names": {"groups": "src1"}, "hasgroups": True}
    assert await outcome(WORDS["entra"].example, claims) == ("worker",)


async def test_entra_v1_tokens_name_their_app_and_their_tenant_otherwise() -> None:
    old, new = f"https://login.microsoftonline.com/{TENANT}/v2.0", f"https://sts.windows.net/{TENANT}/"
    toml = WORDS["entra"].example.replace(old, new).replace("66666666-7777-8888-9999-000000000000", "api://prefect")
    claims = {**RIGHT["entra"].claims, "iss": new, "aud": "api://prefect", "ver": "1.0", "azp": GONE}
    claims["appid"] = "aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb"
    assert await outcome(toml, claims) == ("worker",)
    toml = toml.replace("[[grants]]", 'role = "viewer"\nrequired_claims = { appid = ["someone-else"] }\n[[grants]]', 1)
    assert await outcome(toml, claims) is Problem.CLAIM_NOT_ACCEPTED


@pytest.mark.parametrize(
    ("preset", "groups_claim", "group"),
    [
        ("keycloak", "resource_access.prefect.example.com.roles", "deploys"),
        ("auth0", "https://example.com/groups", "night"),
    ],
)
async def test_groups_may_be_taken_from_another_claim(preset: str, groups_claim: str, group: str) -> None:
    toml = WORDS[preset].example.replace("audiences =", f'groups_claim = "{groups_claim}"\naudiences =')
    toml, other = (re.sub(r"(?m)^groups = .*", f'groups = ["{one}"]', toml) for one in (group, "other"))
    assert await outcome(toml, RIGHT[preset].claims) == ("worker",)
    assert await outcome(other, RIGHT[preset].claims) == ()


async def test_what_a_preset_demands_of_each_token_cannot_be_set_away() -> None:
    toml = WORDS["cognito"].example.replace("audiences =", 'required_claims = { token_use = ["id", "x"] }\naudiences =')
    shape = RIGHT["cognito"]
    assert await outcome(toml, {**shape.claims, "token_use": "x"}, shape.typ) is Problem.CLAIM_NOT_ACCEPTED
    assert await outcome(toml, shape.claims, shape.typ) == ("worker",)
