"""What signing in takes: the provider, the session, the pages, the store that replicas share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from service.adapters.oauth_client_auth import AnotherAccount, load_signer
from service.adapters.store import Store, StoreError
from service.core.identity.presets import PRESETS_FOR_PEOPLE
from service.core.identity.sessions import MAX_LIFETIME
from service.core.model import ALGORITHMS, IssuerTrust
from service.settings.fields import (
    KeySettings,
    ProviderSection,
    RoleName,
    Section,
    Words,
    check_issuer_url,
    json_value,
    known_in,
)

MIN_SESSION_KEY: Final = 32

ClientAuth = Literal["client_secret_basic", "client_secret_post", "private_key_jwt", "none"]


def _lines(value: object) -> object:
    """Split keys that stand a line each, or behind commas."""
    if not isinstance(value, str):
        return value
    return tuple(key for one in value.replace(",", "\n").splitlines() if (key := one.strip()))


class OIDCSettings(ProviderSection):
    """The OpenID provider through which people sign in."""

    known_presets: ClassVar = PRESETS_FOR_PEOPLE

    preset: Annotated[str, known_in(PRESETS_FOR_PEOPLE)] = Field(
        "",
        description="The provider (docs/providers): sets defaults for the keys below, and refuses what would let "
        "strangers in.",
        examples=["keycloak"],
    )
    allow_http: bool = Field(
        default=False, description="Accept plain http beyond loopback. Sign-ins can then be forged."
    )
    issuer: str = Field(
        description="The provider's issuer URL, exactly as in its ID tokens. Discovery starts here.",
        examples=["https://idp.example.com/realms/people"],
    )
    internal_url: str | None = Field(
        None,
        description="Where this service reaches the provider, if not at `issuer`: discovery, keys and every call go "
        "there. Browsers and ID tokens keep the public address. Over plain http, `allow_http` is needed.",
        examples=["https://idp.internal:8443"],
    )
    client_id: str = Field(min_length=1, description="This service's client id at the provider.", examples=["prefect"])
    client_secret: SecretStr | None = Field(None, description="The client secret of a confidential client.")
    private_key: SecretStr | None = Field(None, description="A private key in PEM, for `private_key_jwt`.")
    private_key_id: str | None = Field(None, description="The `kid` under which the provider knows that key.")
    client_auth: ClientAuth | None = Field(
        None,
        description="How the client authenticates. The default is `private_key_jwt` with a private key, "
        "`client_secret_basic` with a secret, and `none` without either (a public client, PKCE only).",
    )
    name: str = Field("", max_length=60, description="What the sign-in button calls the provider.")
    scopes: Words = Field(
        frozenset(),
        description="Scopes to request. The default is openid, profile, email and groups, as far as the provider lists "
        "them. Add offline_access if the provider gives no refresh token without it.",
        examples=[["openid", "profile", "email", "offline_access"]],
    )
    userinfo: Literal["auto", "always", "never"] = Field(
        "auto",
        description="When to call the userinfo endpoint. `auto` calls it if the ID token lacks a claim that decides: "
        "name, e-mail, groups, required claims and those of grants.",
    )
    access_token_claims: bool = Field(
        default=False,
        description="Also read claims from the access token, which must be a signed JWT of the same person and client. "
        "Keycloak writes roles there alone.",
    )
    other_audiences: Words = Field(
        frozenset(),
        description="Other audiences that an ID token without `azp` may name beside the client id.",
        examples=[["prefect-project"]],
    )
    role: RoleName = Field("", description="The role of everybody who signs in at the provider.")
    algorithms: Words = Field(ALGORITHMS, description="Accepted signature algorithms of ID tokens. Never HS* or none.")
    leeway: Annotated[float, Field(ge=0, le=300)] = Field(
        30, description="Seconds by which the provider's clock may differ from ours."
    )
    required_claims: Annotated[dict[str, Words], BeforeValidator(json_value)] = Field(
        {},
        description="Claims that a person must have to sign in, each with its accepted values (JSON in a variable).",
        examples=[{"department": ["data", "ops"]}],
    )
    principal_claim: str = Field("sub", min_length=1, description="The claim that names the person in headers.")
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
    check: Annotated[float, Field(ge=30, le=86_400)] = Field(
        900,
        description="Seconds after which the service asks the provider again, with the refresh token, whether the "
        "person may stay and which groups they have. Without a refresh token a session lasts until its own end.",
    )
    timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="Seconds that one call to the provider may take."
    )
    logout: bool = Field(
        default=True, description="Signing out here also signs out at the provider, if the provider supports it."
    )
    logout_needs_hint: bool = Field(
        default=False,
        description="The provider sends nobody back after signing out without the ID token as a hint. Where there is "
        "none (it does not fit beside many groups), people stay on the provider's own page.",
    )
    another_account: AnotherAccount = Field(
        "auto",
        description="How somebody else signs in at the provider: with `prompt=select_account`, with `prompt=login`, or "
        "by signing out there first. `auto` follows what the provider lists.",
    )
    keys: KeySettings = Field(KeySettings(), description="How long the provider's keys are used.")

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the defaults of the preset; how a client proves itself only where it has a secret."""
        defaults = super().defaults_for(values)
        if values.get("client_secret") and not values.get("private_key"):
            return defaults
        return {name: value for name, value in defaults.items() if name != "client_auth"}

    @field_validator("private_key")
    @classmethod
    def _can_sign(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            load_signer(value.get_secret_value())
        return value

    @field_validator("issuer", "internal_url")
    @classmethod
    def _safe_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and check_issuer_url(value, allow_http=bool(info.data.get("allow_http")))

    @model_validator(mode="after")
    def _client_can_prove_itself(self) -> Self:
        method = self.auth_method
        if method.startswith("client_secret") and not self.client_secret:
            raise ValueError(f"client_auth is {method}: client_secret is needed")
        if method == "private_key_jwt" and not self.private_key:
            raise ValueError("client_auth is private_key_jwt: private_key is needed")
        return self

    @property
    def auth_method(self) -> ClientAuth:
        """Return how the client proves itself (OIDC Core §9)."""
        if self.client_auth is not None:
            return self.client_auth
        if self.private_key:
            return "private_key_jwt"
        return "client_secret_basic" if self.client_secret else "none"

    def trust(self) -> IssuerTrust:
        """Return what its ID tokens must carry."""
        return self.strengthened(
            IssuerTrust(
                issuer=self.issuer,
                audiences=frozenset({self.client_id}),
                algorithms=self.algorithms,
                leeway=self.leeway,
                required_claims=self.required_claims,
                principal_claim=self.principal_claim,
                email_claim=self.email_claim,
                groups_claim=self.groups_claim,
                groups_separator=self.groups_separator,
                role=self.role,
            )
        )


class SessionSettings(Section):
    """The browser session, which lives in a sealed cookie alone."""

    keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_lines)] = Field(
        (),
        description="Secrets of at least 32 characters, one per line, the same for all replicas. The first encrypts "
        "sessions and all of them decrypt, so put a new one in front. Without any, the service makes a key when it "
        "starts, and sessions end with the process.",
    )
    idle: Annotated[float, Field(ge=60, le=MAX_LIFETIME)] = Field(
        8 * 3_600, description="Seconds without a request after which a session ends."
    )
    lifetime: Annotated[float, Field(ge=60, le=MAX_LIFETIME)] = Field(
        16 * 3_600, description="Seconds after sign-in at which a session ends, used or not."
    )
    allow_http: bool = Field(
        default=False,
        description="Permit sign-in over plain http beyond this machine. Others can then read the cookie.",
    )

    @field_validator("keys")
    @classmethod
    def _long(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(one.get_secret_value()) < MIN_SESSION_KEY for one in value):
            raise ValueError(f"each key has at least {MIN_SESSION_KEY} characters: openssl rand -base64 32 makes one")
        return value


class SignInSettings(Section):
    """The sign-in page."""

    local: bool | None = Field(
        None, description="Let the users of the users file sign in. By default they may if there is no provider."
    )
    title: str = Field("Prefect", max_length=60, description="The name of the installation on the pages.")
    help: str = Field(
        "", max_length=300, description="A sentence that says whom to ask for access. Each refusal shows it."
    )
    attempts: Annotated[int, Field(ge=1, le=1_000)] = Field(
        10,
        description="Wrong passwords that one address may send for one name within `window`, to the sign-in page and "
        "the machine gates together. For all names it may send ten times as many. Over the limit the answer is 429.",
    )
    window: Annotated[float, Field(ge=1, le=86_400)] = Field(
        300, description="Seconds over which wrong passwords are counted."
    )


class StoreSettings(Section):
    """What replicas share. Without it each works alone."""

    url: SecretStr = Field(
        description="The URL of Redis or Valkey: redis://, rediss:// or unix://.", examples=["redis://valkey:6379/0"]
    )
    prefix: str = Field("prefect-forward-auth:", description="The prefix of all keys in the store.")

    @field_validator("url")
    @classmethod
    def _redis(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://, rediss:// or unix://, such as redis://valkey:6379/0")
        try:
            Store(value.get_secret_value(), prefix="")
        except StoreError as problem:
            raise ValueError(str(problem)) from None
        return value
