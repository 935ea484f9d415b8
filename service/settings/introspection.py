"""Tokens that only their issuer can read: how it is asked about them."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from service.settings.fields import Section


class IntrospectionSettings(Section):
    """The issuer's answers about opaque tokens (RFC 7662)."""

    client_id: str = Field(
        min_length=1, description="The client id of this service at the issuer.", examples=["prefect-forward-auth"]
    )
    client_secret: SecretStr = Field(min_length=1, description="Its secret.")
    endpoint: str = Field(
        "",
        description="The issuer's introspection endpoint. Without it, discovery finds it.",
        examples=["https://idp.example.com/introspect"],
    )
    client_auth: Literal["client_secret_basic", "client_secret_post"] = Field(
        "client_secret_basic", description="How id and secret are sent to the issuer."
    )
    remember: Annotated[float, Field(ge=1, le=3_600)] = Field(
        60,
        description="Seconds until the issuer is asked again about a token; sooner if the token expires. A token that "
        "is revoked there is accepted for as long.",
    )
    timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        5, description="Seconds that one call to the issuer may take."
    )
