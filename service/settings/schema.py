"""Every key of the configuration, with its type, its bounds, its default and what it means.

``docs/configuration.md`` is generated from this file.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.core.errors import UnusableError
from service.core.identity.grants import Grant
from service.core.identity.presets import PRESETS
from service.core.model import ALGORITHMS, IssuerTrust
from service.core.prefect.roles import BUILT_IN, Access
from service.rendering.sentences import sentence
from service.settings.access import (
    GrantSettings,
    PrefectSettings,
    RoleSettings,
    WebSocketSettings,
    check_names,
    table_of,
)
from service.settings.clients import ClientCredentialsSettings, shared_names
from service.settings.fields import (
    KeySettings,
    Network,
    ProviderSection,
    RoleName,
    Section,
    Words,
    check_issuer_url,
    check_place,
    json_value,
    known_in,
    networks_value,
    split,
    split_types,
)
from service.settings.introspection import IntrospectionSettings
from service.settings.people import OIDCSettings, SessionSettings, SignInSettings, StoreSettings
from service.settings.tokens import TokensSettings

PREFIX: Final = "FORWARD_AUTH_"
_NOBODY: Final = (
    "nobody could be verified: configure an issuer (issuer.url), a users file (users.file), a provider (oidc.issuer) "
    "or tokens of this service (tokens.folder)"
)


class IssuerSettings(ProviderSection):
    """One issuer of JWTs and what its tokens must carry."""

    known_presets: ClassVar = PRESETS

    preset: Annotated[str, known_in(PRESETS)] = Field(
        "",
        description="The provider (docs/presets.md): sets defaults for the keys below, and refuses what would let "
        "strangers in.",
        examples=["github-actions"],
    )
    allow_http: bool = Field(default=False, description="Accept plain http beyond loopback. Keys can then be forged.")
    url: str = Field(
        description="The issuer, exactly as in the token's `iss`. Discovery starts here.",
        examples=["https://idp.example.com/realms/data"],
    )
    audiences: Words = Field(
        description="Accepted audiences: a token must be for one of these (`aud`).", examples=[["prefect"]]
    )
    jwks_url: str | None = Field(
        None,
        description="The URL of the keys. Without it, discovery finds them.",
        examples=["https://idp.example.com/keys"],
    )
    jwks_token_file: Path | None = Field(
        None,
        description="A file with a bearer token that `jwks_url` asks for. It is read at each fetch.",
        examples=["/var/run/secrets/kubernetes.io/serviceaccount/token"],
    )
    jwks_ca_file: Path | None = Field(
        None,
        description="A PEM file with the authorities that vouch for the servers of the keys. It replaces all others, "
        "and is read at each fetch.",
        examples=["/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"],
    )
    role: RoleName = Field("", description="The role of all callers with a token of this issuer.")
    algorithms: Words = Field(ALGORITHMS, description="Accepted signature algorithms. Never HS* or none.")
    leeway: Annotated[float, Field(ge=0, le=300)] = Field(
        30, description="Seconds by which the issuer's clock may differ from ours."
    )
    token_types: Annotated[frozenset[str], BeforeValidator(split_types)] = Field(
        frozenset({"at+jwt", "jwt", ""}),
        description="Accepted `typ` headers. An empty one stands for a token without. RFC 9068 tokens have `at+jwt`.",
    )
    required_scopes: Words = Field(
        frozenset(), description="A token must have all of these scopes.", examples=[["prefect"]]
    )
    required_claims: Annotated[dict[str, Words], BeforeValidator(json_value)] = Field(
        {},
        description="Claims that a token must have, each with its accepted values (JSON in a variable).",
        examples=[{"repository_id": ["123456789"]}],
    )
    authorized_parties: Words = Field(
        frozenset(), description="If set, the client (`azp`, otherwise `client_id`) must be one of these."
    )
    client_id_as_audience: bool = Field(
        default=False,
        description="If a token has no `aud`, its `client_id` must be one of `audiences`. AWS Cognito's access tokens "
        "need this.",
    )
    allow_sender_constrained: bool = Field(
        default=False, description="Accept tokens bound to a key (`cnf`: DPoP, mutual TLS) without proof of the key."
    )
    principal_claim: str = Field("sub", min_length=1, description="The claim that names the principal in headers.")
    email_claim: str = Field(
        "email",
        description="The claim with the e-mail address. An unverified one (`email_verified` is false) has no effect.",
    )
    groups_claim: str = Field("groups", description="The claim with the groups. Dots lead into nested claims.")
    groups_separator: str = Field(
        "",
        max_length=4,
        description="What divides the groups, if the claim has all of them in one text.",
        examples=[","],
    )
    accept_id_tokens: bool = Field(
        default=False,
        description="Accept access tokens that look like ID tokens (`at_hash`), as Dex's for machines do. An ID token "
        "for one of `audiences` may then be a credential, too: name one that people do not sign in with.",
    )
    keys: KeySettings = Field(KeySettings(), description="How long the issuer's keys are used.")
    client_credentials: ClientCredentialsSettings | None = Field(
        None,
        description="Client ids and secrets that this issuer checks. Without `introspection`, its tokens must be JWTs.",
    )
    introspection: IntrospectionSettings | None = Field(
        None, description="Opaque tokens that this issuer is asked about. At most one issuer can have this."
    )

    @field_validator("client_credentials")
    @classmethod
    def _can_be_asked(
        cls, value: ClientCredentialsSettings | None, info: ValidationInfo
    ) -> ClientCredentialsSettings | None:
        if value and value.token_endpoint:
            check_issuer_url(value.token_endpoint, allow_http=bool(info.data.get("allow_http")))
        elif value and info.data.get("jwks_url"):
            raise ValueError("token_endpoint is needed: with jwks_url, nothing is discovered")
        return value

    @field_validator("introspection")
    @classmethod
    def _can_introspect(cls, value: IntrospectionSettings | None, info: ValidationInfo) -> IntrospectionSettings | None:
        if value and value.endpoint:
            check_issuer_url(value.endpoint, allow_http=bool(info.data.get("allow_http")))
        elif value and info.data.get("jwks_url"):
            raise ValueError("endpoint is needed: with jwks_url, nothing is discovered")
        return value

    @field_validator("audiences")
    @classmethod
    def _some(cls, value: frozenset[str]) -> frozenset[str]:
        if not value:
            raise ValueError("name at least one audience: without one, tokens for any service would be accepted")
        return value

    @field_validator("url", "jwks_url")
    @classmethod
    def _safe_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and check_issuer_url(value, allow_http=bool(info.data.get("allow_http")))

    def trust(self) -> IssuerTrust:
        """Return what the core needs to know of this issuer."""
        return self.strengthened(IssuerTrust(issuer=self.url, **{name: getattr(self, name) for name in _OF_TRUST}))


_OF_TRUST: Final = [one.name for one in fields(IssuerTrust) if one.name in IssuerSettings.model_fields]


class UsersSettings(Section):
    """The users file and what checking passwords may cost."""

    file: Path = Field(
        description="The users file, with name:bcrypt lines as `users add` or htpasswd -B write them.",
        examples=["/etc/prefect-forward-auth/users.htpasswd"],
    )
    role: RoleName = Field("", description="The role of every user in the file.")
    reload: Annotated[float, Field(ge=0.1, le=3_600)] = Field(
        1, description="Seconds between two checks of the file. A change takes effect at the next check."
    )
    max_cost: Annotated[int, Field(ge=4, le=16)] = Field(
        14, description="The highest accepted bcrypt cost. A higher one would slow the service down for everybody."
    )
    max_size: Annotated[int, Field(ge=1_024, le=1_073_741_824)] = Field(
        67_108_864, description="The largest accepted users file, in bytes; 64 MiB hold some 700,000 users."
    )
    remember: Annotated[float, Field(ge=0, le=3_600)] = Field(
        300,
        description="Seconds for which a verified password is not hashed again. The time is extended while `queue` is "
        "full. A changed file ends it at once.",
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else 1),
        description="Passwords hashed at the same time. The default is one less than the number of processors.",
    )
    queue: Annotated[int, Field(ge=1, le=10_000)] = Field(
        64, description="Callers that may wait for a hash. Further callers are answered 429."
    )


class LogSettings(Section):
    """What is written to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest severity that is logged."
    )
    format: Literal["json", "text"] = Field("json", description="One JSON object per line, or text for a terminal.")
    decisions: Literal["refused", "all", "none"] = Field(
        "refused", description="Which decisions are logged. Logging all of them reduces throughput."
    )


class Settings(BaseSettings):
    """The whole configuration, frozen."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,
        env_ignore_empty=True,
    )

    secrets_from: Annotated[tuple[Annotated[str, AfterValidator(check_place)], ...], BeforeValidator(split)] = Field(
        (),
        description="Secrets managers to read keys from: `gcp:PROJECT`, `aws:SECRET-ID`, `azure:https://VAULT`. "
        "One overrides those after it.",
        examples=[["gcp:my-project"]],
    )
    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8080, description="The port to listen on. 0 takes a free one.")
    uds: Path | None = Field(
        None,
        description="A Unix socket to listen on instead, for its owner and group. Whoever may open it is trusted.",
        examples=["/run/forward-auth/socket"],
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="How many processes. Each has its own caches.")
    shutdown_grace: Annotated[float, Field(ge=0, le=300)] = Field(
        10, description="Seconds that requests in progress may take after SIGTERM."
    )
    trusted_proxies: Annotated[tuple[Network, ...], BeforeValidator(networks_value)] = Field(
        tuple(
            ip_network(one)
            for one in ("127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
        ),
        description="Addresses that may call the verify endpoints and are believed about the original request. "
        "X-Forwarded-For is read past them. If clients have private addresses behind a second proxy, name the "
        "proxies only.",
    )
    verdict_seconds: Annotated[float, Field(ge=0, le=300)] = Field(
        60, description="Seconds for which a verified token is not verified again, but never past its expiry."
    )
    verdict_count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="How many verified tokens are remembered. The oldest is dropped first."
    )
    issuer: IssuerSettings | None = Field(None, description="The issuer of tokens, if there is only one.")
    issuers: Annotated[tuple[IssuerSettings, ...], BeforeValidator(json_value)] = Field(
        (), description="Several issuers: `[[issuers]]` tables, or JSON in a variable."
    )
    users: UsersSettings | None = Field(None, description="The users file.")
    tokens: TokensSettings | None = Field(None, description="Tokens that this service issues itself.")
    oidc: OIDCSettings | None = Field(None, description="The OpenID provider through which people sign in.")
    sign_in: SignInSettings = Field(SignInSettings(), description="The sign-in page.")
    session: SessionSettings = Field(SessionSettings(), description="The browser session.")
    store: StoreSettings | None = Field(None, description="The store that replicas share.")
    roles: Annotated[dict[RoleName, RoleSettings], BeforeValidator(json_value), AfterValidator(check_names)] = Field(
        {},
        description="Roles of your own: `[roles.<name>]` tables, or JSON in a variable.",
        examples=[{"night": {"capabilities": ["read", "run"]}}],
    )
    grants: Annotated[tuple[GrantSettings, ...], BeforeValidator(json_value)] = Field(
        (), description="Who has which roles: `[[grants]]` tables, or JSON in a variable."
    )
    prefect: PrefectSettings = Field(PrefectSettings(), description="The Prefect server.")
    websockets: WebSocketSettings = Field(WebSocketSettings(), description="The relay of WebSockets.")
    log: LogSettings = Field(LogSettings(), description="What is logged.")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, *_: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what load() merged, and nothing else."""
        return (init_settings,)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        found = [f"{key}: {text}" if key else text for key, text in self.contradictions()]
        if found:
            raise ValueError("; ".join(found))
        return self

    def contradictions(self, unread: Collection[str] = ()) -> Iterator[tuple[str, str]]:
        """Yield what is wrong although each key is right: the key, or nothing for the whole, and what is wrong.

        ``unread`` are tables that may hold more than these settings do: nothing is said to be missing in them.
        """
        urls = [one.url for one in self.all_issuers if one.url]
        sources = {"issuer", "issuers", "users", "oidc", "tokens"}
        if not self._vouching and sources.isdisjoint(unread):
            yield "", _NOBODY
        for url in sorted({url for url in urls if urls.count(url) > 1}):
            yield "", f"configured more than once: issuer {url}"
        if self.tokens is not None and self.tokens.issuer in {*urls, self.oidc.issuer if self.oidc else ""}:
            yield "tokens.issuer", "is another issuer's: choose a name of its own"
        for text in shared_names([(one.url, one.client_credentials) for one in self.all_issuers]):
            yield "client_credentials.clients", text
        asked = [one.url for one in self.all_issuers if one.introspection is not None]
        if len(asked) > 1:
            why = "an opaque token does not say whose it is, and must not be shown to another issuer"
            yield "introspection", f"only one issuer can have it, not each of {', '.join(asked)}: {why}"
        if self.sign_in.local and self.users is None and "users" not in unread:
            yield "sign_in.local", "needs a users file (users.file)"
        yield from self._unsafe_issuers(unread)
        yield from self._unusable_roles()
        if "" not in self._vouching and sources.isdisjoint(unread):
            yield from self._unknown_issuers()
        if "roles" not in unread:
            yield from self._unknown_roles()

    def _unsafe_issuers(self, unread: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield what breaks a rule of a preset, or would accept or send a token where it does not belong."""
        issuers = [("issuer", self.issuer), *((f"issuers.{number}", one) for number, one in enumerate(self.issuers))]
        for at, issuer in issuers:
            if issuer is None or at.partition(".")[0] in unread:
                continue
            if issuer.jwks_token_file and not issuer.jwks_url:
                yield f"{at}.jwks_url", "needed with jwks_token_file: the token is sent there, and nowhere else"
            of_people = {self.oidc.client_id} if self.oidc is not None and self.oidc.issuer == issuer.url else set()
            if issuer.accept_id_tokens and of_people.intersection(issuer.audiences):
                yield f"{at}.audiences", "with accept_id_tokens, ID tokens of people would be credentials: name another"
            yield from self._strangers(at, issuer, issuer.url, issuer.role)
        if self.oidc is not None and "oidc" not in unread:
            yield from self._strangers("oidc", self.oidc, self.oidc.issuer, self.oidc.role)

    def _strangers(self, at: str, provider: ProviderSection, url: str, role: str) -> Iterator[tuple[str, str]]:
        """Yield what breaks a rule of a provider's preset."""
        if not provider.preset:
            return
        grants = [
            (number, one)
            for number, one in enumerate(self.grants)
            if one.issuer == url or (not one.issuer and self._vouching == [url])
        ]
        for_all = bool(role) or any(not one.has_conditions for _, one in grants)
        yield from ((f"{at}.{key}", sentence(cause)) for key, cause in provider.lets_strangers_in(for_all=for_all))
        for number, grant in grants:
            for cause in provider.known_presets[provider.preset].refusals(grant.claims):
                yield f"grants.{number}.claims", sentence(cause)

    def _unusable_roles(self) -> Iterator[tuple[str, str]]:
        try:
            routes = self.prefect.table()
        except UnusableError:  # its own validator says so
            routes = table_of()
        for name, one in self.roles.items():
            try:
                Access([one.role(name)], routes)
            except UnusableError as problem:
                yield f"roles.{name}", sentence(problem.cause)

    def _unknown_issuers(self) -> Iterator[tuple[str, str]]:
        """Yield the grants that could never hold."""
        vouching = self._vouching
        known = list(dict.fromkeys([*vouching, *([self.tokens.issuer] if self.tokens else [])]))
        for number, grant in enumerate(self.grants):
            if grant.issuer not in known and (grant.issuer or len(vouching) != 1):
                yield f"grants.{number}.issuer", f"needed is one of {', '.join(known)}"

    def _unknown_roles(self) -> Iterator[tuple[str, str]]:
        given = [(f"grants.{number}.roles", set(grant.roles)) for number, grant in enumerate(self.grants)]
        given += [(f"issuers.{number}.role", {one.role}) for number, one in enumerate(self.issuers)]
        singles = {"issuer": self.issuer, "users": self.users, "oidc": self.oidc}
        given += [(f"{name}.role", {one.role}) for name, one in singles.items() if one is not None]
        given += [("tokens.people", set(self.tokens.people))] if self.tokens is not None else []
        known = {*BUILT_IN, *self.roles}
        for key, names in given:
            for name in sorted(names - known - {""}):
                yield key, f"there is no role {name}: there are {', '.join(sorted(known))}"

    def access(self, *, only_relayed: bool = False) -> Access:
        """Return who may call what. With ``only_relayed``, WebSockets are refused."""
        roles = [*BUILT_IN.values(), *(one.role(name) for name, one in self.roles.items())]
        return Access(roles, self.prefect.table(), only_relayed=only_relayed)

    @property
    def _vouching(self) -> list[str]:
        """Return who vouches for principals that need grants, each once; this service's tokens only if nobody else.

        A token of this service has its role, so a grant without an issuer means somebody else, if there is one.
        """
        issuers = [one.url for one in self.all_issuers]
        issuers += ["local"] if self.users is not None else []
        issuers += [self.oidc.issuer] if self.oidc is not None and self.oidc.issuer not in issuers else []
        return issuers or ([self.tokens.issuer] if self.tokens is not None else [])

    @property
    def all_grants(self) -> tuple[Grant, ...]:
        """Return the grants, each with the issuer that it is for."""
        (issuer, *_) = self._vouching
        return tuple(one.grant(issuer, f"grants.{number}") for number, one in enumerate(self.grants))

    @property
    def gives_roles(self) -> bool:
        """Tell whether anybody can have a role."""
        others = (*self.all_issuers, self.users, self.oidc)
        return bool(self.grants or self.tokens) or any(one.role for one in others if one)

    @property
    def local_sign_in(self) -> bool:
        """Tell whether the users of the file may sign in with a form."""
        return self.users is not None and (self.oidc is None if self.sign_in.local is None else self.sign_in.local)

    @property
    def people_sign_in(self) -> bool:
        """Tell whether anybody can sign in at all."""
        return self.oidc is not None or self.local_sign_in

    @property
    def all_issuers(self) -> tuple[IssuerSettings, ...]:
        """Return the issuers, from ``[issuer]`` and ``[[issuers]]`` alike."""
        return (*((self.issuer,) if self.issuer else ()), *self.issuers)
