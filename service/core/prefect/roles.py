"""Roles, and whether a principal's roles open a request.

A role is a set of capabilities and of single routes. A principal may do what any one of its roles opens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from service.core.errors import UnusableError
from service.core.globs import matches_any
from service.core.model import ForwardedRequest, Principal
from service.core.prefect.routes import MAX_SHOWN, Capability, Route, Routes
from service.core.prefect.secret_flags import asked_in_body, asked_in_query
from service.core.problems import Cause, Problem

LIMITS: Final = ("work_pool", "flow", "deployment")  # parameters of routes that a role may be limited by
_SEES_SECRETS: Final = frozenset({Capability.READ_SECRET, Capability.ADMIN})


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of capabilities and of single routes, written as ``Route.rule`` is.

    ``limits`` are patterns by parameter: if a path has the name of a work pool, a flow or a deployment, the role opens
    it only if one pattern matches. A path without such a name is not limited; most of Prefect's paths have ids.
    """

    name: str
    capabilities: frozenset[Capability] = frozenset()
    routes: frozenset[str] = frozenset()
    limits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not set(self.limits) <= set(LIMITS) or not all(self.limits.values()):
            raise UnusableError(Problem.ROLE_LIMITS_INVALID, role=self.name, expected=LIMITS)
        if self.limits and Capability.ADMIN in self.capabilities:
            raise UnusableError(Problem.ROLE_ADMIN_LIMITED, role=self.name)


def _role(name: str, *capabilities: Capability) -> Role:
    return Role(name, frozenset(capabilities))


_C = Capability
_FLOW: Final = (_C.READ, _C.READ_SECRET, _C.RUN, _C.REPORT, _C.EMIT, _C.SLOTS, _C.VARIABLES)  # what running flows call
BUILT_IN: Final[Mapping[str, Role]] = {
    role.name: role
    for role in (
        _role("viewer", _C.READ),
        _role("runner", _C.READ, _C.RUN),
        _role("worker", *_FLOW, _C.WORK, _C.JOIN),
        _role("deployer", *_FLOW, _C.DEPLOY, _C.POOLS, _C.BLOCKS),  # flow.serve runs what it deploys
        _role("admin", _C.ADMIN),
    )
}


class Granted(NamedTuple):
    """A role opens the route: by this capability, or by naming the route."""

    route: Route | None
    role: str
    by: str


class Lacking(NamedTuple):
    """No role opens the request, for this problem. Any one capability of ``needed`` would do.

    ``holders`` are the roles that would open it, the least powerful first.
    """

    route: Route | None
    problem: Problem
    needed: frozenset[Capability]
    holders: tuple[str, ...] = ()

    def cause(self, request: ForwardedRequest, principal: Principal) -> Cause:
        """Return the cause of a refusal: who was refused, which route, what it needs, and which roles have that."""
        route = self.route.rule if self.route is not None else f"{request.method} {request.path}"
        facts = {
            "name": principal.name,
            "issuer": principal.issuer,
            "roles": principal.roles,
            "route": route if len(route) <= MAX_SHOWN else f"{route[:MAX_SHOWN]}…",
            "needed": sorted(map(str, self.needed)),
            "holders": self.holders,
        }
        return Cause(self.problem, facts)


class _Evaluation(NamedTuple):
    verdict: Granted | Lacking
    limited: tuple[tuple[Role, Granted], ...]  # roles that open it for some names only
    secrets: bool
    final: bool  # unless a request has a query, nothing else of it can change the verdict


class Access:
    """The configured roles and the table of routes: who may call what.

    With ``only_relayed``, nobody may open a WebSocket past the relay.
    """

    def __init__(self, roles: Iterable[Role], routes: Routes, *, only_relayed: bool = False) -> None:
        self._only_relayed = only_relayed
        self.roles = {role.name: role for role in roles}
        self.routes = routes
        self._named_routes = {name: self._routes_named_by(role) for name, role in self.roles.items()}
        self._by_power = sorted(self.roles.values(), key=self._power)
        self.by_power = tuple(role.name for role in self._by_power)
        self._see_secrets = tuple(one.name for one in self._by_power if _sees_secrets(one))
        self._evaluated = lru_cache(maxsize=8192)(self._evaluate)

    def judge(self, request: ForwardedRequest, roles: tuple[str, ...], body: bytes | None = None) -> Granted | Lacking:
        """Return whether these roles open the request, and which does, or what is missing.

        ``body`` is the request's own, if the proxy sends it along. A role that is not configured opens nothing.
        """
        route = self.routes.find(request.method, request.path)
        evaluation = self._evaluated(roles, route)
        if evaluation.final and not request.query:
            return evaluation.verdict
        verdict = self._within_limits(evaluation, request.path) if evaluation.limited else evaluation.verdict
        if isinstance(verdict, Granted) and not evaluation.secrets:
            problem = _problem_with_secrets(request, route, body)
            if problem is not None:
                return Lacking(route, problem, frozenset({Capability.READ_SECRET}), self._see_secrets)
        return verdict

    def reads_body(self, request: ForwardedRequest) -> bool:
        """Tell whether the decision depends on the request's body."""
        route = self.routes.find(request.method, request.path)
        return route is not None and route.secrets_in_body

    def may(self, roles: tuple[str, ...], *capabilities: Capability) -> bool:
        """Tell whether these roles together have all of these capabilities."""
        held = frozenset[Capability]().union(*(self.roles[name].capabilities for name in roles if name in self.roles))
        return Capability.ADMIN in held or held.issuperset(capabilities)

    def opens(self, role: str, route: Route) -> bool:
        """Tell whether a role opens a route, for some names at least."""
        return self._opens(self.roles[role], route) is not None

    def covers(self, roles: tuple[str, ...], name: str) -> bool:
        """Tell whether these roles together may do all that another role may, so that it is not above them.

        That is to have each of its capabilities, and to open each route that it opens, for each name.
        """
        role, held = self.roles.get(name), [self.roles[one] for one in roles if one in self.roles]
        if role is None or not self.may(roles, *role.capabilities):
            return False
        if self.may(roles, Capability.ADMIN):
            return True
        opened = (route for route in self.routes.all.values() if self._opens(role, route) is not None)
        return all(any(self._opens(one, route) and _within(role, one, route) for one in held) for route in opened)

    # how a verdict is found -----------------------------------------------------------------------------------

    def _routes_named_by(self, role: Role) -> frozenset[Route]:
        found = {rule: self.routes.named(rule) for rule in role.routes}
        unknown = sorted(rule for rule, route in found.items() if route is None)
        if unknown:
            raise UnusableError(Problem.ROLE_ROUTES_UNKNOWN, role=role.name, routes=unknown)
        return frozenset(route for route in found.values() if route is not None)

    def _opens(self, role: Role, route: Route | None) -> Granted | None:
        if Capability.ADMIN in role.capabilities:
            return Granted(route, role.name, Capability.ADMIN)
        if route is None:
            return None
        if Capability.ANY in route.capabilities:
            return Granted(route, role.name, Capability.ANY)
        common = role.capabilities & route.capabilities
        if common:
            return Granted(route, role.name, min(common))
        return Granted(route, role.name, route.rule) if route in self._named_routes[role.name] else None

    def _evaluate(self, names: tuple[str, ...], route: Route | None) -> _Evaluation:
        if self._only_relayed and route is not None and route.method == "WS":
            refusal = Lacking(route, Problem.ONLY_RELAYED, route.capabilities)
            return _Evaluation(refusal, (), secrets=True, final=True)
        unlimited: Granted | None = None
        limited: list[tuple[Role, Granted]] = []
        roles = [self.roles[name] for name in names if name in self.roles]
        for role in roles:
            granted = self._opens(role, route)
            if granted is not None and _limited(role, route):
                limited.append((role, granted))
            else:
                unlimited = unlimited or granted
        verdict = unlimited or self._lacking(route, outside_limits=bool(limited))
        secrets = any(_sees_secrets(role) for role in roles)
        final = (unlimited is not None or not limited) and (secrets or route is None or not route.secrets_in_body)
        return _Evaluation(verdict, () if unlimited else tuple(limited), secrets, final)

    @staticmethod
    def _within_limits(evaluation: _Evaluation, path: str) -> Granted | Lacking:
        for role, granted in evaluation.limited:
            names = granted.route.names_in(path) if granted.route is not None else {}
            if all(matches_any(patterns, names[name]) for name, patterns in role.limits.items() if name in names):
                return granted
        return evaluation.verdict

    def _lacking(self, route: Route | None, *, outside_limits: bool) -> Lacking:
        holders = [
            role.name
            for role in self._by_power
            if self._opens(role, route) is not None and not (outside_limits and _limited(role, route))
        ]
        if route is None:
            return Lacking(None, Problem.ROUTE_UNKNOWN, frozenset({Capability.ADMIN}), tuple(holders))
        problem = Problem.OUTSIDE_LIMITS if outside_limits else Problem.CAPABILITY_MISSING
        return Lacking(route, problem, route.capabilities, tuple(holders))

    def _power(self, role: Role) -> tuple[bool, int, str]:
        """Return by what roles are ordered: ``admin`` last, the others by how many routes they open."""
        opened = sum(self._opens(role, route) is not None for route in self.routes.all.values())
        return Capability.ADMIN in role.capabilities, opened, role.name


def _sees_secrets(role: Role) -> bool:
    return not role.capabilities.isdisjoint(_SEES_SECRETS)


def _limited(role: Role, route: Route | None) -> bool:
    return route is not None and any(f"{{{name}}}" in route.path for name in role.limits)


def _within(role: Role, other: Role, route: Route) -> bool:
    """Tell whether a role opens a route for no name for which another role does not; equal patterns are compared."""
    limits = {name: patterns for name, patterns in other.limits.items() if f"{{{name}}}" in route.path}
    return all(name in role.limits and set(role.limits[name]) <= set(limits[name]) for name in limits)


def _problem_with_secrets(request: ForwardedRequest, route: Route | None, body: bytes | None) -> Problem | None:
    if request.query and asked_in_query(request.query):
        return Problem.SECRETS_NOT_PERMITTED
    if route is not None and route.secrets_in_body:
        if not body:
            return Problem.SECRETS_BODY_NOT_SENT
        if asked_in_body(body):
            return Problem.SECRETS_NOT_PERMITTED
    return None
