"""Machines that have a client id and a secret, and no token: how their issuer is asked about them."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from service.core.globs import patterns_overlap
from service.settings.fields import PATTERNS, Section, Words


class ClientCredentialsSettings(Section):
    """Client ids and secrets that an issuer is asked about (RFC 6749 §4.4)."""

    clients: Annotated[Words, PATTERNS] = Field(
        description="Patterns of the client ids, such as `prefect-*`. `*` matches all. Any other name is a user.",
        examples=[["prefect-*"]],
    )
    scopes: Words = Field(frozenset(), description="Scopes to request.")
    audience: str = Field("", description="The `audience` to request, if the issuer needs it (Auth0).")
    resource: str = Field("", description="The `resource` to request, if the issuer needs it (RFC 8707).")
    token_endpoint: str = Field(
        "",
        description="The issuer's token endpoint. Without it, discovery finds it.",
        examples=["https://idp.example.com/token"],
    )
    client_auth: Literal["client_secret_basic", "client_secret_post"] = Field(
        "client_secret_basic", description="How id and secret are sent to the issuer."
    )
    remember: Annotated[float, Field(ge=0, le=3_600)] = Field(
        300,
        description="Seconds until the issuer is asked again about a client; sooner if the client's token expires.",
    )
    timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="Seconds that one call to the issuer may take."
    )

    @field_validator("clients")
    @classmethod
    def _some(cls, value: frozenset[str]) -> frozenset[str]:
        if not value:
            raise ValueError("name at least one pattern: `*` is all")
        return value


def shared_names(sections: Sequence[tuple[str, ClientCredentialsSettings | None]]) -> list[str]:
    """Return a problem for each pair of issuers that could both be asked about one name; they come with their URLs."""
    asked = [(url, pattern) for url, section in sections if section for pattern in sorted(section.clients)]
    return [
        f"{one!r} of {url} and {other!r} of {another} are met by one name"
        for place, (url, one) in enumerate(asked)
        for another, other in asked[place + 1 :]
        if url != another and patterns_overlap(one, other)
    ]
