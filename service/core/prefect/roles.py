"""Roles, and the one judgement about them: whether they open a request.

A role is a set of capabilities and of single routes. What a principal's roles have is pooled; what no role has is
lacking, and a Lacking says what it was.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, assert_never

from service.core.globs import matches_any
from service.core.model import ForwardedRequest, Principal
from service.core.prefect.routes import Capability, Route, Routes
from service.core.prefect.secret_flags import asked_in_body, asked_in_query

LIMITS: Final = ("work_pool", "flow", "deployment")  # parameters of routes that a role may be limited by
_MAX_SHOWN: Final = 120
_SEES_SECRETS: Final = frozenset({Capability.READ_SECRET, Capability.ADMIN})


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of capabilities and of single routes, written as ``Route.rule`` is.

    ``limits`` are patterns by parameter: where a path carries a work pool, a flow or a deployment by name, the role
    opens it only if one pattern is met. A path that carries none is not limited: most of Prefect's name things by id.
    """

    name: str
    capabilities: frozenset[Capability] = frozenset()
    routes: frozenset[str] = frozenset()
    limits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not set(self.limits) <= set(LIMITS) or not all(self.limits.values()):
            raise ValueError(f"the role {self.name!r} can be limited by {', '.join(LIMITS)}, each with a pattern")
        if self.limits and Capability.ADMIN in self.capabilities:
            raise ValueError(f"the role {self.name!r} has 'admin', which is everything: it cannot be limited")


def _role(name: str, *capabilities: Capability) -> Role:
    return Role(name, frozenset(capabilities))


_C = Capability
_FLOW: Final = (_C.READ, _C.READ_SECRET, _C.RUN, _C.REPORT, _C.EMIT, _C.SLOTS, _C.VARIABLES)  # what running code calls
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


class Lack(StrEnum):
    """What keeps a request out."""

    CAPABILITY = "capability"
    LIMIT = "limit"
    SECRETS = "secrets"
    BODY = "body"


class Granted(NamedTuple):
    """Roles open the route: this one of them, by this capability, or by naming the route."""

    route: Route | None
    role: str
    by: str


class Lacking(NamedTuple):
    """No role opens the route, or not for this request; any one of ``needed`` would."""

    route: Route | None
    lack: Lack
    needed: frozenset[Capability]


class _Weighed(NamedTuple):
    verdict: Granted | Lacking
    limited: tuple[tuple[Role, Granted], ...]  # what opens it for some names alone
    secrets: bool
    final: bool  # nothing of the request can change it, as long as it has no query


class Access:
    """The roles there are, and the table of routes: who may call what."""

    def __init__(self, roles: Iterable[Role], routes: Routes) -> None:
        self.roles = {role.name: role for role in roles}
        self.routes = routes
        self._opened = {name: self._singles(role) for name, role in self.roles.items()}
        self._weighed = lru_cache(maxsize=8192)(self._weigh)

    def judge(self, request: ForwardedRequest, roles: tuple[str, ...], body: bytes | None = None) -> Granted | Lacking:
        """Return whether these roles open the request, and by what.

        ``body`` is the request's own, where the proxy sends it along. A role that is not configured opens nothing.
        """
        route = self.routes.find(request.method, request.path)
        weighed = self._weighed(roles, route)
        if weighed.final and not request.query:
            return weighed.verdict
        verdict = self._within_limits(weighed, request.path) if weighed.limited else weighed.verdict
        if isinstance(verdict, Granted) and not weighed.secrets:
            lack = _secrets_asked(request, route, body)
            if lack is not None:
                return Lacking(route, lack, frozenset({Capability.READ_SECRET}))
        return verdict

    def reads_body(self, request: ForwardedRequest) -> bool:
        """Tell whether what the request's body says decides about it."""
        route = self.routes.find(request.method, request.path)
        return route is not None and route.secrets_in_body

    def opens(self, role: str, route: Route) -> bool:
        """Tell whether a role opens a route, for some names at least."""
        return self._opens(self.roles[role], route) is not None

    def refusal(self, request: ForwardedRequest, principal: Principal, lacking: Lacking) -> str:
        """Return the sentence that says who was refused, what the request needs, and what they have."""
        have = f"with {_all_of(principal.roles)}" if principal.roles else "without a role here"
        holders = sorted(name for name, role in self.roles.items() if self._has(role, lacking))
        advice = f"Ask for {_one_of(holders)}." if holders else "No role here has that."
        return f"You are {principal.name!r} of {principal.issuer}, {have}. {_demand(request, lacking)}. {advice}"

    # behind the two questions ---------------------------------------------------------------------------------

    def _singles(self, role: Role) -> frozenset[Route]:
        found = {rule: self.routes.named(rule) for rule in role.routes}
        unknown = sorted(rule for rule, route in found.items() if route is None)
        if unknown:
            raise ValueError(f"the role {role.name!r} names routes that are not known: {', '.join(unknown)}")
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
        return Granted(route, role.name, route.rule) if route in self._opened[role.name] else None

    def _weigh(self, names: tuple[str, ...], route: Route | None) -> _Weighed:
        free: Granted | None = None
        limited: list[tuple[Role, Granted]] = []
        roles = [self.roles[name] for name in names if name in self.roles]
        for role in roles:
            granted = self._opens(role, route)
            if granted is not None and _limited(role, route):
                limited.append((role, granted))
            else:
                free = free or granted
        needed = frozenset({Capability.ADMIN}) if route is None else route.capabilities
        verdict = free or Lacking(route, Lack.LIMIT if limited else Lack.CAPABILITY, needed)
        secrets = any(not role.capabilities.isdisjoint(_SEES_SECRETS) for role in roles)
        final = (free is not None or not limited) and (secrets or route is None or not route.secrets_in_body)
        return _Weighed(verdict, () if free else tuple(limited), secrets, final)

    @staticmethod
    def _within_limits(weighed: _Weighed, path: str) -> Granted | Lacking:
        for role, granted in weighed.limited:
            names = granted.route.names_in(path) if granted.route is not None else {}
            if all(matches_any(patterns, names[name]) for name, patterns in role.limits.items() if name in names):
                return granted
        return weighed.verdict

    def _has(self, role: Role, lacking: Lacking) -> bool:
        if lacking.lack in (Lack.SECRETS, Lack.BODY):
            return not role.capabilities.isdisjoint(_SEES_SECRETS)
        opens = self._opens(role, lacking.route) is not None
        return opens and not (lacking.lack is Lack.LIMIT and _limited(role, lacking.route))


def _limited(role: Role, route: Route | None) -> bool:
    return route is not None and any(f"{{{name}}}" in route.path for name in role.limits)


def _secrets_asked(request: ForwardedRequest, route: Route | None, body: bytes | None) -> Lack | None:
    if request.query and asked_in_query(request.query):
        return Lack.SECRETS
    if route is not None and route.secrets_in_body:
        if not body:
            return Lack.BODY
        if asked_in_body(body):
            return Lack.SECRETS
    return None


def _demand(request: ForwardedRequest, lacking: Lacking) -> str:
    what = lacking.route.rule if lacking.route is not None else f"{request.method} {request.path}"
    if len(what) > _MAX_SHOWN:
        what = f"{what[:_MAX_SHOWN]}…"
    needed = " or ".join(f"'{one}'" for one in sorted(lacking.needed))
    match lacking.lack:
        case Lack.CAPABILITY:
            unknown = "" if lacking.route is not None else ", as no known route of Prefect's"
            return f"{what} needs {needed}{unknown}"
        case Lack.LIMIT:
            return f"{what} is open to you for other names than the one in this path"
        case Lack.SECRETS:
            return f"{what} with include_secrets needs {needed}"
        case Lack.BODY:
            return f"{what} may ask for secrets in its body, which the proxy does not send here, so it needs {needed}"
        case _:
            assert_never(lacking.lack)


def _all_of(names: Sequence[str]) -> str:
    *others, one = names
    return f"the roles {', '.join(others)} and {one}" if others else f"the role {one}"


def _one_of(names: Sequence[str]) -> str:
    *others, one = names
    return f"the role {', '.join(others)} or {one}" if others else f"the role {one}"
