"""Roles and grants in the configuration: how they are written, and what is a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.core.identity.grants import ClaimRule
from service.core.prefect.routes import Capability
from service.settings import ConfigError, Settings, load

USERS = {"FORWARD_AUTH_USERS__FILE": "/run/secrets/users.htpasswd"}
ISSUER = {"FORWARD_AUTH_ISSUER__URL": "https://idp.example", "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(toml: str) -> Settings:
    Path("forward-auth.toml").write_text(toml)
    return load({**USERS, **ISSUER}).settings


def test_roles_and_grants_stand_in_tables() -> None:
    settings = configured(
        """
        [roles.night-shift]
        capabilities = ["read", "run"]
        routes = ["GET /api/work_pools/{name}/queues/{queue}"]
        work_pools = ["night-*"]
        flows = "etl, elt"

        [[grants]]
        issuer = "https://idp.example"
        roles = ["night-shift", "viewer"]
        clients = ["scheduler"]
        scopes = "prefect, prod"
        [grants.claims]
        team = ["data", "ops"]
        "repo.owner" = { equals = "acme" }
        ref = { glob = ["refs/heads/*"] }

        [[grants]]
        issuer = "local"
        users = "alice"
        roles = "admin"
        """
    )
    role = settings.access().roles["night-shift"]
    assert role.capabilities == {Capability.READ, Capability.RUN}
    assert role.limits == {"work_pool": ("night-*",), "flow": ("etl", "elt")}
    first, second = settings.all_grants
    assert (first.roles, first.issuer, first.clients) == (
        ("night-shift", "viewer"),
        "https://idp.example",
        ("scheduler",),
    )
    assert first.claims == {
        "team": ClaimRule(any_of=frozenset({"data", "ops"})),
        "repo.owner": ClaimRule(equals="acme"),
        "ref": ClaimRule(glob=("refs/heads/*",)),
    }
    assert (second.issuer, second.users, second.roles) == ("local", ("alice",), ("admin",))


def test_variables_carry_them_as_json_and_the_only_issuer_need_not_be_named() -> None:
    grants = [{"users": "alice,bob", "roles": "admin"}]
    roles = {"auditor": {"capabilities": ["read", "read-secret"]}}
    settings = load(
        {**USERS, "FORWARD_AUTH_GRANTS": json.dumps(grants), "FORWARD_AUTH_ROLES": json.dumps(roles)}
    ).settings
    (grant,) = settings.all_grants
    assert (grant.issuer, grant.users, grant.roles) == ("local", ("alice", "bob"), ("admin",))
    assert settings.access().roles["auditor"].capabilities == {Capability.READ, Capability.READ_SECRET}


def test_where_prefect_is_mounted_decides_what_a_path_is() -> None:
    routes = (
        configured(
            """
        [prefect]
        api_base_path = "/team/api"
        ui_base_path = "/team"
        routes = { "POST /team/api/brand_new/{id}" = "run" }
        """
        )
        .access()
        .routes
    )
    assert routes.find("POST", "/api/flows/filter") is None
    filtered, new = routes.find("POST", "/team/api/flows/filter"), routes.find("POST", "/team/api/brand_new/7")
    assert filtered is not None
    assert filtered.capabilities == {Capability.READ}
    assert new is not None
    assert new.capabilities == {Capability.RUN}


def test_an_api_among_the_pages_opens_none_of_its_new_routes_to_everybody() -> None:
    routes = configured('[prefect]\napi_base_path = "/v2/api"').access().routes
    assert routes.find("GET", "/v2/api/brand/new") is None
    assert routes.find("GET", "/v2/runs") is not None


def problems(changes: dict[str, Any]) -> list[str]:
    """Return what is wrong with a configuration that is good but for the changes, given as variables."""
    given = {}
    for section, value in changes.items():
        keys = value.items() if section in {"users", "issuer", "prefect"} else [("", value)]
        for key, content in keys:
            name = f"FORWARD_AUTH_{section}__{key}".removesuffix("__").upper()
            given[name] = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(ConfigError) as error:
        load({**USERS, **ISSUER, **given})
    return error.value.problems


MISTAKES = {
    "role-of-a-grant": ({"grants": [{"issuer": "local", "roles": ["boss"]}]}, "grants.0.roles: there is no role boss"),
    "role-of-all-users": ({"users": {"role": "boss"}}, "users.role: there is no role boss"),
    "role-of-an-issuer": ({"issuer": {"role": "boss"}}, "issuer.role: there is no role boss"),
    "capability": (
        {"roles": {"x": {"capabilities": ["fly"]}}},
        "roles.x.capabilities: there is no capability fly: there are admin,",
    ),
    "empty-role": ({"roles": {"x": {}}}, "roles.x: a role has capabilities or routes"),
    "route": (
        {"roles": {"x": {"routes": ["GET /api/nothing"]}}},
        "roles.x: the role 'x' names routes that are not known: GET /api/nothing",
    ),
    "limited-admin": (
        {"roles": {"x": {"capabilities": ["admin"], "work_pools": ["a"]}}},
        "roles.x: the role 'x' has 'admin'",
    ),
    "built-in": ({"roles": {"viewer": {"capabilities": ["admin"]}}}, "roles: built in, and not to be changed: viewer"),
    "no-issuer-among-several": ({"grants": [{"roles": ["viewer"]}]}, "grants.0.issuer: needed is one of https://idp"),
    "other-issuer": (
        {"grants": [{"issuer": "https://other.example", "roles": ["viewer"]}]},
        "grants.0.issuer: needed is one of https://idp.example, local",
    ),
    "empty-rule": (
        {"grants": [{"issuer": "local", "roles": ["viewer"], "claims": {"team": {}}}]},
        "grants.0.claims.team: name equals, any_of, all_of or glob",
    ),
    "roles-rendered-empty": (
        {"grants": [{"issuer": "local", "users": "alice", "roles": []}]},
        "grants.0.roles: a grant gives at least one role",
    ),
    "no-roles": ({"grants": [{"issuer": "local"}]}, "grants.0.roles: this key is needed"),
    "typing-error": (
        {"grants": [{"issuer": "local", "roles": ["viewer"], "group": "x"}]},
        "grants.0.group: no such key",
    ),
    "base-path": ({"prefect": {"api_base_path": "api/"}}, "prefect.api_base_path: a base path begins with a slash"),
    "ui-base-path": ({"prefect": {"ui_base_path": "/ui/"}}, "prefect.ui_base_path: a base path begins with a slash"),
    "one-place-for-both": ({"prefect": {"ui_base_path": "/api"}}, "prefect: a base path begins"),
    "stale-before-refreshed": (
        {"issuer": {"keys__max_stale": "0"}},
        "issuer.keys: max_stale is less than refresh, 300: keys would run out",
    ),
    "added-route": (
        {"prefect": {"routes": {"GET /x": "fly"}}},
        "prefect.routes: 'fly' is not a capability: expected one of admin,",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in "\n".join(problems(changes))


EMPTY = ["grants.0." + key for key in ("users", "clients", "groups", "scopes")]
EMPTY += ["grants.0.claims.team." + key for key in ("any_of", "all_of", "glob")]
EMPTY += ["grants.0.claims"]
EMPTY += ["roles.x." + key for key in ("work_pools", "flows", "deployments")]


@pytest.mark.parametrize("empty", [[], ","], ids=["nothing", "no-word"])
@pytest.mark.parametrize("place", EMPTY)
def test_a_condition_that_came_out_empty_is_refused_and_does_not_hold_for_everybody(place: str, empty: Any) -> None:
    *_, section, key = place.split(".")
    empty = {} if key == "claims" else empty
    grant = {"issuer": "local", "roles": "admin"}
    changes = {
        "0": {"grants": [{**grant, key: empty}]},
        "team": {"grants": [{**grant, "claims": {"team": {"equals": "data", key: empty}}}]},
        "x": {"roles": {"x": {"capabilities": "work", key: empty}}},
    }
    (problem,) = problems(changes[section])
    assert problem.startswith(f"{place}: is empty, and so would hold for everybody")


def test_several_are_named_at_once_each_with_its_source() -> None:
    found = problems({"users": {"role": "boss"}, "grants": [{"roles": ["viewer", "chief"]}]})
    assert [one.partition(":")[0] for one in found] == ["grants.0.issuer", "grants.0.roles", "users.role"]
    assert found[0].endswith("(environment, FORWARD_AUTH_GRANTS)")
    assert found[2].endswith("(environment, FORWARD_AUTH_USERS__ROLE)")


@pytest.mark.parametrize("where", ["grants.users", "grants.claims", "roles.flows", "client_credentials.clients"])
def test_a_pattern_that_is_too_long_to_match_is_refused(where: str) -> None:
    long = "a" * 1025
    told = {
        "grants.users": f'[[grants]]\nissuer = "local"\nroles = "admin"\nusers = "{long}"',
        "grants.claims": f'[[grants]]\nissuer = "local"\nroles = "admin"\nclaims = {{ ref = {{ glob = "{long}" }} }}',
        "roles.flows": f'[roles.x]\ncapabilities = "read"\nflows = "{long}"',
        "client_credentials.clients": f'[issuer.client_credentials]\nclients = "{long}"',
    }
    with pytest.raises(ConfigError, match="a pattern has at most 1024 characters"):
        configured(told[where])
    configured(told[where].replace(long, long[1:]))
