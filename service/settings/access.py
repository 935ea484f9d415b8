"""Who may do what: custom roles, and grants of roles to those who prove who they are."""

from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from service.core.identity.grants import ClaimRule, Grant
from service.core.prefect.roles import BUILT_IN, Role
from service.core.prefect.routes import Capability, Route, Routes, known_routes, parse_table
from service.settings.fields import CONDITION, PATTERNS, Listed, Section, Words, json_value

Patterns = Annotated[Listed, CONDITION, PATTERNS]


def _known(value: frozenset[str]) -> frozenset[str]:
    known = sorted(map(str, Capability))
    unknown = sorted(value.difference(known))
    if unknown:
        raise ValueError(f"there is no capability {', '.join(unknown)}: there are {', '.join(known)}")
    return value


Capabilities = Annotated[Words, AfterValidator(_known)]


class RoleSettings(Section):
    """A role of one's own: capabilities and single routes, and the names that it is limited to."""

    capabilities: Capabilities = Field(
        frozenset(), description="What the role may do: capabilities of docs/roles.md.", examples=[["read", "run"]]
    )
    routes: Listed = Field(
        (),
        description="Single routes that the role may also call, such as `POST /api/flow_runs/{id}/resume`.",
        examples=[["POST /api/flow_runs/{id}/resume"]],
    )
    work_pools: Patterns = Field((), description="Patterns. A work pool that a path names must match one of them.")
    flows: Patterns = Field((), description="Patterns. A flow that a path names must match one of them.")
    deployments: Patterns = Field((), description="Patterns. A deployment that a path names must match one of them.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.capabilities or self.routes):
            raise ValueError('a role has capabilities or routes, such as capabilities = ["read"]')
        return self

    def role(self, name: str) -> Role:
        """Return the role for the core; raises UnusableError for limits that make no sense."""
        limits = {"work_pool": self.work_pools, "flow": self.flows, "deployment": self.deployments}
        return Role(
            name,
            frozenset(map(Capability, self.capabilities)),
            frozenset(self.routes),
            {parameter: patterns for parameter, patterns in limits.items() if patterns},
        )


class ClaimSettings(Section):
    """What a claim must hold; of several demands, each."""

    equals: str | None = Field(None, description="The claim's only value.")
    any_of: Annotated[Words, CONDITION] = Field(frozenset(), description="The claim has at least one of these values.")
    all_of: Annotated[Words, CONDITION] = Field(frozenset(), description="The claim has all of these values.")
    glob: Patterns = Field((), description="A value of the claim matches one of these patterns.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        self.rule()
        return self

    def rule(self) -> ClaimRule:
        """Return what the core needs to know of it."""
        return ClaimRule(self.equals, self.any_of, self.all_of, self.glob)


def _rules(value: object) -> object:
    """Take a plain word or a list for the values of which one is enough."""
    if not isinstance(value, dict):
        return value
    return {claim: {"any_of": rule} if isinstance(rule, str | list) else rule for claim, rule in value.items()}


class GrantSettings(Section):
    """Roles for whoever meets every condition given here; patterns have `*` within a word and `**` across."""

    roles: Listed = Field(description="The roles that the grant gives.", examples=[["viewer"]])
    issuer: str = Field(
        "",
        description="The issuer of the callers: its URL, or `local` for the users file. Required if there are several.",
        examples=["local"],
    )
    users: Patterns = Field((), description="Patterns. The user name must match one of them.")
    clients: Patterns = Field(
        (), description="Patterns. The client that the token was issued to must match one of them."
    )
    groups: Patterns = Field((), description="Patterns. A group of the caller must match one of them.")
    scopes: Annotated[Words, CONDITION] = Field(frozenset(), description="A token must have all of these scopes.")
    claims: Annotated[dict[str, ClaimSettings], BeforeValidator(_rules), CONDITION] = Field(
        {},
        description="Claims and the rules for their values: equals, any_of, all_of, glob. A list means any_of.",
        examples=[{"ref": {"glob": ["refs/heads/release-*"]}}],
    )

    @field_validator("roles")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("a grant gives at least one role")
        return value

    @property
    def has_conditions(self) -> bool:
        """Tell whether the grant is not for everybody of its issuer; a name that may be any is no condition."""
        names = [one for one in (self.users, self.clients) if one and all(pattern.strip("*") for pattern in one)]
        return bool(names or self.groups or self.scopes or self.claims)

    def grant(self, issuer: str, name: str) -> Grant:
        """Return what the core needs to know of it."""
        return Grant(
            roles=self.roles,
            issuer=self.issuer or issuer,
            users=self.users,
            clients=self.clients,
            groups=self.groups,
            scopes=self.scopes,
            claims={path: rule.rule() for path, rule in self.claims.items()},
            name=name,
        )


def _base_path(value: str) -> str:
    if value:
        known_routes(value, f"{value}-ui")
    return value


BasePath = Annotated[str, AfterValidator(_base_path)]


def _origin(value: str) -> str:
    parsed = urlsplit(value)
    if parsed.scheme not in {"http", "https"} or not parsed.hostname or parsed.path.strip("/") or parsed.query:
        raise ValueError("expected scheme, host and port, such as http://prefect:4200")
    if parsed.username is not None or parsed.password is not None:
        raise ValueError("expected no user name or password here: see prefect.auth_string")
    return value.rstrip("/")


class PrefectSettings(Section):
    """The Prefect server: where it is, and how it is mounted."""

    url: Annotated[str, AfterValidator(_origin)] | None = Field(
        None,
        description="Where this service reaches the Prefect server, to relay WebSockets. Without it, none is relayed.",
        examples=["http://prefect:4200"],
    )
    auth_string: SecretStr | None = Field(
        None,
        description="The value of PREFECT_SERVER_API_AUTH_STRING on the server, if that is set. The relay sends it in "
        "place of the caller's credential.",
        examples=["admin:secret"],
    )

    api_base_path: BasePath = Field(
        "/api", min_length=1, description="The value of PREFECT_SERVER_API_BASE_PATH on the server."
    )
    routes: Annotated[dict[str, str], BeforeValidator(json_value)] = Field(
        {},
        description="Routes that the service does not know yet, each with the capability that it needs: "
        '`{"POST /api/new/{id}": "run"}`. `routes diff` finds them.',
        examples=[{"POST /api/new/{id}": "run"}],
    )
    ui_base_path: BasePath = Field(
        "",
        description="The value of PREFECT_UI_SERVE_BASE on the server, without the slash at the end.",
        examples=["/ui"],
    )

    @field_validator("routes")
    @classmethod
    def _can_be_read(cls, value: dict[str, str]) -> dict[str, str]:
        Routes(_told(value))
        return value

    @model_validator(mode="after")
    def _two_places(self) -> Self:
        self.table()
        return self

    def table(self) -> Routes:
        """Return the routes of the server as it is mounted, those that were added included."""
        return table_of(self.api_base_path, self.ui_base_path, tuple(self.routes.items()))


@lru_cache(maxsize=4)  # one configuration is asked several times, and so is the next one
def table_of(api_base: str = "/api", ui_base: str = "", added: tuple[tuple[str, str], ...] = ()) -> Routes:
    """Return the compiled table of a server, with added routes and their capabilities; raises UnusableError."""
    return Routes([*known_routes(api_base, ui_base), *_told(dict(added))], api_base)


class WebSocketSettings(Section):
    """The relay of WebSockets whose credential is not in their headers."""

    relay: Literal["without-header", "always", "off"] = Field(
        "without-header",
        description="Which WebSockets are relayed: those whose proxy hands them over because they have no "
        "Authorization header; `always` refuses every other one, so that the end of a credential ends each socket; "
        "or none.",
    )
    vouched: bool = Field(
        default=True,
        description="Whether a client without any credential may send and receive events of the runs that its address "
        "reports on over HTTP.",
    )
    max_open: Annotated[int, Field(ge=1, le=100_000)] = Field(
        10_000, description="Relayed WebSockets that may be open at the same time. Each needs two file descriptors."
    )


def _told(routes: dict[str, str]) -> list[Route]:
    return list(parse_table("\n".join(f"{route} {capability}" for route, capability in routes.items())))


def check_names(roles: dict[str, Any]) -> dict[str, Any]:
    """Return roles by name, or raise ValueError where one takes the name of a built-in one."""
    taken = sorted(set(roles) & set(BUILT_IN))
    if taken:
        raise ValueError(f"built in, and not to be changed: {', '.join(taken)}; give yours another name")
    return roles
