"""Types and bounds that several sections of the configuration share."""

import json
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, ClassVar, Final, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    field_validator,
    model_validator,
)

from service.core.globs import MAX_LENGTH
from service.core.identity.presets import Preset
from service.core.model import ALGORITHMS, IssuerTrust
from service.core.problems import Cause
from service.core.request.proxies import is_loopback

RoleName = Annotated[str, Field(max_length=60, pattern=r"^[A-Za-z0-9_.-]*$", examples=["viewer"])]
Network = IPv4Network | IPv6Network


def split(value: object) -> object:
    """Split words behind commas; what is no text stays as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def split_types(value: object) -> object:
    """Return types of tokens as RFC 7515 §4.1.9 compares them."""
    members = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return [str(one).lower().removeprefix("application/") for one in members] if isinstance(members, list) else members


def json_value(value: object) -> object:
    """Read JSON, which is how a variable carries more than a word; any other text stays what it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def networks_value(value: object) -> object:
    """Read addresses and networks."""
    members = split(value)
    if not isinstance(members, list | tuple):
        return members
    try:
        return tuple(ip_network(str(one), strict=False) for one in members)
    except ValueError:
        raise ValueError("each member is an address or a network, such as 10.0.0.0/8") from None


def in_order(value: object) -> object:
    """Split words behind commas, and keep their order."""
    return tuple(value) if isinstance(value := split(value), list) else value


def _asks_for_something(value: object) -> object:
    if not value:
        raise ValueError("is empty, and so would hold for everybody: name something, or leave the key out")
    return value


def _check_lengths(value: Iterable[str]) -> Iterable[str]:
    if any(len(one) > MAX_LENGTH for one in value):
        raise ValueError(f"a pattern has at most {MAX_LENGTH} characters")
    return value


Words = Annotated[frozenset[str], BeforeValidator(split)]
Listed = Annotated[tuple[str, ...], BeforeValidator(in_order)]
CONDITION: Final = AfterValidator(_asks_for_something)  # looks at what was given, and never at a default
PATTERNS: Final = AfterValidator(_check_lengths)
Seconds = Annotated[float, Field(ge=0, le=7 * 86_400)]


class Section(BaseModel):
    """A table of the configuration: frozen, no unknown keys, no value in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the defaults that one of the given values brings along, by key."""
        del values
        return {}


def known_in(presets: Mapping[str, Preset]) -> AfterValidator:
    """Return what refuses the name of a preset that there is not."""

    def check(value: str) -> str:
        if value and value not in presets:
            raise ValueError(f"there is no such preset: there are {', '.join(presets)}")
        return value

    return AfterValidator(check)


class ProviderSection(Section):
    """What the two tables about a provider have in common: which of its tokens are accepted, and a preset for that."""

    known_presets: ClassVar[Mapping[str, Preset]]
    preset: str

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the defaults of the preset."""
        preset = values.get("preset")
        return cls.known_presets[preset].defaults if isinstance(preset, str) and preset in cls.known_presets else {}

    @model_validator(mode="wrap")
    @classmethod
    def _with_defaults(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, Mapping):
            return handler(values)
        defaults = cls.defaults_for(values)
        completed = handler({**defaults, **values})
        completed.model_fields_set.difference_update(set(defaults) - set(values))  # nobody gave these
        return completed

    @field_validator("algorithms", check_fields=False)
    @classmethod
    def _asymmetric(cls, value: frozenset[str]) -> frozenset[str]:
        if value - ALGORITHMS or not value:
            raise ValueError(f"accepted are {', '.join(sorted(ALGORITHMS))}")
        return value

    def trust(self) -> IssuerTrust:
        """Return what the core needs to know of this provider's tokens."""
        raise NotImplementedError

    def strengthened(self, trust: IssuerTrust) -> IssuerTrust:
        """Return the trust with what the preset demands of each token."""
        return self.known_presets[self.preset].strengthen(trust) if self.preset else trust

    def lets_strangers_in(self, *, for_all: bool) -> Iterator[tuple[str, Cause]]:
        """Yield the keys that break a rule of the preset, each with what is wrong.

        ``for_all`` tells whether each of its callers has a role.
        """
        trust = self.trust()
        if self.preset and trust.issuer:
            yield from self.known_presets[self.preset].broken_rules(trust, for_all=for_all)


def holds_secret(annotation: Any) -> bool:
    """Tell whether a key of this type is a secret, or has one somewhere below it.

    A list of tables is none: nobody can give one member's secret apart from the others.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(holds_secret(field.annotation) for field in annotation.model_fields.values())
    members = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(members[0], type) and issubclass(members[0], BaseModel):
        return False
    return annotation is SecretStr or any(map(holds_secret, members))


class KeySettings(Section):
    """How long an issuer's keys are believed, in seconds."""

    refresh: Annotated[float, Field(ge=1, le=86_400)] = Field(
        300,
        description="Keys are fetched again within this time. A removed key may be accepted for as long.",
    )
    min_refresh: Annotated[float, Field(ge=1, le=86_400)] = Field(
        30,
        description="The shortest time until the next fetch that the issuer's `max-age` can set. `no-cache` and "
        "`no-store` set none: `refresh` counts.",
    )
    max_stale: Seconds = Field(
        86_400,
        description="How long the last good keys are used while the issuer cannot be reached. At least `refresh`; "
        "with that value an outage adds no time.",
    )
    cooldown: Annotated[float, Field(ge=1, le=3_600)] = Field(
        5, description="The shortest time between two fetches that unknown key ids cause."
    )
    timeout: Annotated[float, Field(gt=0, le=60)] = Field(5, description="The time that one fetch may take.")

    @model_validator(mode="after")
    def _outlast_a_refresh(self) -> Self:
        if self.max_stale < self.refresh:
            raise ValueError(
                f"max_stale is less than refresh, {self.refresh:g}: keys would run out before new ones are fetched"
            )
        return self


def check_place(value: str) -> str:
    """Return what names a secrets manager and a place there, or raise ValueError."""
    kind, _, where = value.partition(":")
    if kind not in {"gcp", "aws", "azure"} or not where or (kind == "azure" and not where.startswith("https://")):
        raise ValueError("each member is gcp:PROJECT, aws:SECRET-ID or azure:https://VAULT")
    return value


def check_issuer_url(value: str, *, allow_http: bool) -> str:
    """Return a URL from which keys may be fetched, or raise ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("expected an https URL, such as https://idp.example.com")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
        raise ValueError("over plain http keys can be forged: use https (or set allow_http)")
    return value
