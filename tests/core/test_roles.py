"""Who may call what: the matrix in tests/data, custom roles, limits, and what a refusal says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.core.errors import UnusableError
from service.core.model import Principal
from service.core.prefect.roles import BUILT_IN, Access, Granted, Lacking, Role
from service.core.prefect.routes import Capability, Routes, known_routes, parse_table
from service.core.problems import Cause, Problem
from service.rendering.sentences import log_reason, sentence, sentence_for_person
from tests.support.forwarded_requests import call, concrete, filled_in
from tests.support.refusals import refused

DATA = Path(__file__).resolve().parents[1] / "data"
JSON_BODY = b'{"limit": 200}'


def matrix() -> dict[str, list[str]]:
    """Return the spelled-out table: by rule, the roles that may."""
    lines = [line.split() for line in (DATA / "role-matrix.txt").read_text().splitlines() if line and line[0] != "#"]
    _, _, *roles = lines[0]
    assert roles == list(BUILT_IN)
    assert all(set(cells) <= {"allow", "-"} and len(cells) == len(roles) for _, _, *cells in lines[1:])
    return {
        f"{method} {path}": [role for role, cell in zip(roles, cells, strict=True) if cell == "allow"]
        for method, path, *cells in lines[1:]
    }


def seen() -> Iterator[tuple[str, str, str, str]]:
    """Return role, actor, method and path of each call that was seen."""
    role = actor = ""
    for line in (DATA / "seen-calls.txt").read_text().splitlines():
        if line.startswith("["):
            role, actor = line.removeprefix("[").split("] ")
        elif line and not line.startswith("#"):
            yield role, actor, *line.split()


def test_the_matrix_spells_out_what_each_role_may(access: Access, routes: Routes) -> None:
    judged = {
        route.rule: [
            role for role in BUILT_IN if isinstance(access.judge(concrete(route), (role,), JSON_BODY), Granted)
        ]
        for route in routes.all.values()
    }
    assert judged == matrix()


@pytest.mark.parametrize(("role", "actor", "method", "path"), list(seen()))
def test_each_call_that_was_seen_is_open_to_its_actor(
    access: Access, role: str, actor: str, method: str, path: str
) -> None:
    verdict = access.judge(call(method, filled_in(path)), (role,), JSON_BODY)
    assert isinstance(verdict, Granted)
    assert verdict.route is not None
    assert verdict.route.method == method


def test_a_flow_run_may_ask_for_secrets_of_its_blocks(access: Access) -> None:
    request = call("GET", "/api/block_types/slug/secret/block_documents/name/x?include_secrets=true")
    assert isinstance(access.judge(request, ("worker",)), Granted)
    assert isinstance(access.judge(request, ("deployer",)), Granted)
    assert access.judge(request, ("viewer",)) == Lacking(
        access.routes.find("GET", request.path),
        Problem.SECRETS_NOT_PERMITTED,
        frozenset({Capability.READ_SECRET}),
        ("worker", "deployer", "admin"),
    )


def test_the_pages_of_a_viewer_show_blocks_without_secrets(access: Access) -> None:
    request = call("POST", "/api/block_documents/filter")
    assert isinstance(access.judge(request, ("viewer",), b'{"include_secrets": false}'), Granted)
    not_sent = Problem.SECRETS_BODY_NOT_SENT
    for body, problem in (
        (b'{"include_secrets": true}', Problem.SECRETS_NOT_PERMITTED),
        (None, not_sent),
        (b"", not_sent),
    ):
        verdict = access.judge(request, ("viewer",), body)
        assert isinstance(verdict, Lacking)
        assert verdict.problem is problem
        assert isinstance(access.judge(request, ("worker",), body), Granted)


@pytest.mark.parametrize("roles", [(), ("nobody",), ("Admin",), ("",)])
def test_without_a_role_that_is_configured_nothing_opens(access: Access, roles: tuple[str, ...]) -> None:
    for route in access.routes.all.values():
        assert isinstance(access.judge(concrete(route), roles, JSON_BODY), Lacking)


def test_an_unknown_route_is_for_the_admin_alone(access: Access) -> None:
    request = call("POST", "/api/brand/new")
    assert access.judge(request, ("admin",)) == Granted(None, "admin", "admin")
    for role in BUILT_IN:
        assert isinstance(access.judge(request, (role,)), Granted) == (role == "admin")


def test_what_several_roles_have_is_pooled(access: Access) -> None:
    reader = Role("secrets", frozenset({Capability.READ_SECRET}))
    both = Access([*BUILT_IN.values(), reader], access.routes)
    request = call("GET", "/api/block_documents/6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d?include_secrets=1")
    assert isinstance(both.judge(request, ("viewer",)), Lacking)
    assert isinstance(both.judge(request, ("secrets",)), Lacking)
    assert isinstance(both.judge(request, ("viewer", "secrets")), Granted)


def test_a_verdict_says_which_role_gave_it_and_by_what(access: Access) -> None:
    request = call("POST", "/api/deployments/")
    assert access.judge(request, ("viewer", "deployer")) == Granted(
        access.routes.named("POST /api/deployments/"), "deployer", "deploy"
    )


def test_a_custom_role_has_capabilities_and_single_routes(routes: Routes) -> None:
    tidy = Role("tidy", frozenset({Capability.READ}), frozenset({"DELETE /api/flow_runs/{run}"}))
    access = Access([tidy], routes)
    verdict = access.judge(call("DELETE", filled_in("/api/flow_runs/{id}")), ("tidy",))
    assert isinstance(verdict, Granted)
    assert verdict.by == "DELETE /api/flow_runs/{id}"
    assert isinstance(access.judge(call("POST", "/api/flow_runs/filter"), ("tidy",)), Granted)
    assert isinstance(access.judge(call("DELETE", filled_in("/api/flows/{id}")), ("tidy",)), Lacking)


def test_a_role_that_names_an_unknown_route_is_refused_with_its_name(routes: Routes) -> None:
    with refused(UnusableError, r"'tidy'.*DELETE /api/flow_run/\{id\}"):
        Access([Role("tidy", routes=frozenset({"DELETE /api/flow_run/{id}"}))], routes)


def test_a_new_route_can_be_classified_before_we_know_it() -> None:
    added = parse_table("POST /brand/{id:uuid}/new run", "/api")
    access = Access(BUILT_IN.values(), Routes([*known_routes(), *added]))
    request = call("POST", filled_in("/api/brand/{id}/new"))
    assert isinstance(access.judge(request, ("runner",)), Granted)
    assert isinstance(access.judge(request, ("viewer",)), Lacking)


LIMITED = Role("etl", BUILT_IN["worker"].capabilities, limits={"work_pool": ("etl-*", "shared")})


@pytest.mark.parametrize(
    ("method", "path", "open_"),
    [
        ("POST", "/api/work_pools/etl-small/get_scheduled_flow_runs", True),
        ("POST", "/api/work_pools/shared/get_scheduled_flow_runs", True),
        ("WS", "/api/work_pools/etl-small/workers/connect", True),
        ("POST", "/api/work_pools/prod/get_scheduled_flow_runs", False),
        ("POST", "/api/work_pools/etl-%2A/get_scheduled_flow_runs", True),
        ("POST", "/api/work_pools/not-etl-1/get_scheduled_flow_runs", False),
        ("POST", "/api/work_pools/ETL-1/get_scheduled_flow_runs", False),
        ("WS", "/api/work_pools/prod/workers/connect", False),
        ("GET", "/api/work_pools/prod", False),
        ("POST", "/api/work_pools/filter", True),
        ("POST", "/api/logs/", True),
    ],
)
def test_a_role_can_be_limited_to_work_pools_where_the_path_names_one(
    routes: Routes, method: str, path: str, *, open_: bool
) -> None:
    access = Access([LIMITED, *BUILT_IN.values()], routes)
    verdict = access.judge(call(method, path), ("etl",))
    assert isinstance(verdict, Granted) == open_
    if isinstance(verdict, Lacking):
        assert verdict.problem is Problem.OUTSIDE_LIMITS
        assert verdict.holders[-1] == "admin"
        assert "etl" not in verdict.holders
    assert isinstance(access.judge(call(method, path), ("etl", "worker")), Granted)


def test_a_role_can_be_limited_to_flows_and_deployments(routes: Routes) -> None:
    role = Role("etl", frozenset({Capability.READ}), limits={"flow": ("etl",), "deployment": ("nightly-**",)})
    access = Access([role], routes)
    verdicts = {"etl/nightly-a:b": True, "etl/nightly-1": True, "etl/daily": False, "x/nightly-1": False}
    for path, open_ in verdicts.items():
        verdict = access.judge(call("GET", f"/api/deployments/name/{path}"), ("etl",))
        assert isinstance(verdict, Granted) == open_


@pytest.mark.parametrize("limits", [{"pool": ("x",)}, {"work_pool": ()}])
def test_a_limit_that_would_not_limit_is_refused(limits: dict[str, tuple[str, ...]]) -> None:
    with refused(UnusableError, "'etl'"):
        Role("etl", frozenset({Capability.READ}), limits=limits)


def test_everything_cannot_be_limited() -> None:
    with refused(UnusableError, "'etl'"):
        Role("etl", frozenset({Capability.ADMIN}), limits={"work_pool": ("x",)})


WHO = Principal("https://idp.example", "svc", roles=("viewer",))


def cause(access: Access, method: str, target: str, who: Principal = WHO, body: bytes | None = None) -> Cause:
    request = call(method, target)
    verdict = access.judge(request, who.roles, body)
    assert isinstance(verdict, Lacking)
    return verdict.cause(request, who)


def read(access: Access, method: str, target: str, who: Principal = WHO, body: bytes | None = None) -> str:
    return sentence(cause(access, method, target, who, body))


def test_a_refusal_says_who_what_was_needed_and_what_they_have(access: Access) -> None:
    assert read(access, "POST", "/api/deployments/") == (
        "You are 'svc' of https://idp.example, with the role viewer. POST /api/deployments/ needs 'deploy'. "
        "Ask for the role deployer or admin."
    )
    assert read(access, "POST", filled_in("/api/flow_runs/{id}/set_state")).endswith(
        "POST /api/flow_runs/{id}/set_state needs 'report' or 'run' or 'work'. "
        "Ask for the role runner, worker, deployer or admin."
    )
    assert "without a role here" in read(access, "GET", "/api/flows/name/x", WHO._replace(roles=()))
    assert "with the roles viewer and runner" in read(
        access, "DELETE", filled_in("/api/flows/{id}"), WHO._replace(roles=("viewer", "runner"))
    )


def test_a_refusal_says_what_is_special(access: Access, routes: Routes) -> None:
    unknown = read(access, "GET", "/nowhere/" + "x" * 4000)
    assert "no known route" in unknown
    assert len(unknown) < 400
    secrets = "/api/block_documents/filter"
    assert "include_secrets needs 'read-secret'" in read(access, "POST", secrets, body=b'{"include_secrets":1}')
    assert "the proxy does not send" in read(access, "POST", secrets)
    limited = Access([LIMITED], routes)
    assert "other names" in read(limited, "GET", "/api/work_pools/prod", WHO._replace(roles=("etl",)))


def test_a_person_reads_what_they_wanted_and_the_least_role_that_has_it(access: Access) -> None:
    def told(method: str, target: str, who: Principal = WHO, body: bytes | None = None) -> str:
        return sentence_for_person(cause(access, method, target, who, body))

    nobody = WHO._replace(roles=())
    assert told("GET", "/v2/runs", nobody) == (
        "You are signed in as svc, without a role here. This takes the right to open the UI, and see health and "
        "versions. Ask for the role viewer."
    )
    assert told("POST", filled_in("/api/deployments/{id}/create_flow_run")) == (
        "You are signed in as svc, with the role viewer. This takes the right to start, cancel, retry, pause and "
        "resume runs, and answer runs that wait for input. Ask for the role runner."
    )
    assert "Ask for the role deployer." in told("POST", "/api/deployments/")
    assert "This address is not known here" in told("GET", "/nothing")
    assert "the right to see the secrets of blocks. Ask for the role worker." in told("GET", "/docs?include_secrets=1")


FOR_ROLES = (
    Problem.CAPABILITY_MISSING,
    Problem.ROUTE_UNKNOWN,
    Problem.OUTSIDE_LIMITS,
    Problem.SECRETS_NOT_PERMITTED,
    Problem.SECRETS_BODY_NOT_SENT,
)
OF_THE_TABLE = re.compile(r"['{}/]|GET|POST|PUT|PATCH|DELETE|\bWS\b|include_secrets")


@pytest.mark.parametrize("problem", FOR_ROLES)
def test_a_person_reads_nothing_of_the_table_of_routes(problem: Problem, access: Access, routes: Routes) -> None:
    for roles in ((), ("viewer",)):
        who = WHO._replace(roles=roles)
        for route in (*routes.all.values(), None):
            request = call("GET", "/v3/nothing") if route is None else concrete(route)
            needed = route.capabilities if route is not None else frozenset({Capability.ADMIN})
            lacking = Lacking(route, problem, needed, tuple(access.roles))
            text = sentence_for_person(lacking.cause(request, who))
            assert not OF_THE_TABLE.search(text), text
            assert text.count("Ask for the role") == (problem is not Problem.ROUTE_UNKNOWN)
            assert " or admin" not in text


def test_the_log_has_what_was_refused_and_never_the_query(access: Access) -> None:
    assert log_reason(cause(access, "GET", "/api/health?include_secrets=SECRET")) == (
        "secrets_not_permitted name=svc issuer='https://idp.example' roles=('viewer',) route='GET /api/health' "
        "needed=['read-secret'] holders=('worker', 'deployer', 'admin')"
    )
    assert "SECRET" not in log_reason(cause(access, "GET", "/nothing?token=SECRET"))
    assert len(log_reason(cause(access, "GET", "/nowhere/" + "x" * 4000))) < 500


def test_roles_are_ordered_by_what_they_open(routes: Routes) -> None:
    all_but_secrets = Role("everything", frozenset(Capability) - {Capability.ADMIN, Capability.READ_SECRET})
    one_route = Role("one", routes=frozenset({"POST /api/deployments/"}))
    access = Access([BUILT_IN["admin"], all_but_secrets, BUILT_IN["deployer"], one_route], routes)
    verdict = access.judge(call("POST", "/api/deployments/"), ())
    assert isinstance(verdict, Lacking)
    assert verdict.holders == ("one", "deployer", "everything", "admin")


def test_each_capability_opens_some_route_and_belongs_to_some_role(routes: Routes) -> None:
    needed: set[Capability] = set()
    for route in routes.all.values():
        needed |= route.capabilities
    assert needed | {Capability.READ_SECRET} == set(Capability)
    given = {capability for role in BUILT_IN.values() for capability in role.capabilities}
    assert given | {Capability.ANY} == set(Capability)


def test_reading_never_needs_more_than_a_viewer_has_and_writing_does(routes: Routes) -> None:
    open_to_viewers = frozenset({Capability.READ, Capability.ANY})
    reads_by_post = ("/filter", "/count", "/paginate", "/history", "/lateness", "/concurrency_status", "/validate")
    for route in routes.all.values():
        if route.method in {"PUT", "PATCH", "DELETE"}:
            assert not route.capabilities & open_to_viewers, route.rule
        elif route.method == "POST" and route.capabilities & open_to_viewers:
            named = route.path.endswith(reads_by_post) or "/ui/" in route.path or "count-by" in route.path
            assert named, route.rule


def test_where_all_websockets_are_relayed_none_passes_by(routes: Routes) -> None:
    access = Access(BUILT_IN.values(), routes, only_relayed=True)
    for route in routes.all.values():
        verdict = access.judge(concrete(route), ("admin",), JSON_BODY)
        if route.method == "WS":
            assert isinstance(verdict, Lacking)
            assert verdict.problem is Problem.ONLY_RELAYED
        else:
            assert isinstance(verdict, Granted)


@pytest.mark.parametrize(
    ("roles", "may"), [(("worker",), True), (("viewer",), False), (("admin",), True), ((), False), (("gone",), False)]
)
def test_capabilities_may_come_from_several_roles(access: Access, roles: tuple[str, ...], *, may: bool) -> None:
    assert access.may(roles, Capability.REPORT, Capability.EMIT) is may
    split = Access([Role("a", frozenset({Capability.REPORT})), Role("b", frozenset({Capability.EMIT}))], access.routes)
    assert split.may(("a", "b"), Capability.REPORT, Capability.EMIT)
    assert not split.may(("a",), Capability.REPORT, Capability.EMIT)


# a role that is not above others ----------------------------------------------------------------------------


def test_each_built_in_role_covers_itself_and_those_below_it(access: Access) -> None:
    below = {name: {other for other in BUILT_IN if access.covers((name,), other)} for name in BUILT_IN}
    assert below == {
        "viewer": {"viewer"},
        "runner": {"viewer", "runner"},
        "worker": {"viewer", "runner", "worker"},
        "deployer": {"viewer", "runner", "deployer"},
        "admin": set(BUILT_IN),
    }
    assert access.covers(("viewer", "deployer", "worker"), "worker")
    assert not access.covers((), "viewer")
    assert not access.covers(("admin",), "no-such-role")
    assert not access.covers(("no-such-role",), "viewer")


OWN_POOLS = {"work_pool": ("team-a-*", "shared")}


@pytest.mark.parametrize(
    ("held", "other", "covers"),
    [
        ([Role("own", frozenset({Capability.WORK}), limits=OWN_POOLS)], Role("x", frozenset({Capability.WORK})), False),
        (
            [Role("own", frozenset({Capability.WORK}), limits=OWN_POOLS)],
            Role("x", frozenset({Capability.WORK}), limits={"work_pool": ("shared",)}),
            True,
        ),
        (
            [Role("own", frozenset({Capability.WORK}), limits=OWN_POOLS)],
            Role("x", frozenset({Capability.WORK}), limits={"work_pool": ("shared", "**")}),
            False,
        ),
        (
            [
                Role("own", frozenset({Capability.WORK}), limits=OWN_POOLS),
                Role("more", frozenset({Capability.WORK})),
            ],
            Role("x", frozenset({Capability.WORK})),
            True,
        ),
        # a route by its name is not the capability, which another version of Prefect may open more with
        (
            [Role("own", routes=frozenset({"GET /api/admin/version"}))],
            Role("x", routes=frozenset({"GET /api/admin/version"})),
            True,
        ),
        (
            [Role("own", frozenset({Capability.READ}))],
            Role("x", frozenset({Capability.READ}), routes=frozenset({"POST /api/flow_runs/{id}/set_state"})),
            False,
        ),
    ],
)
def test_a_role_is_covered_only_route_by_route_and_name_by_name(
    routes: Routes, held: list[Role], other: Role, *, covers: bool
) -> None:
    access = Access([*held, other], routes)
    assert access.covers(tuple(one.name for one in held), "x") is covers
