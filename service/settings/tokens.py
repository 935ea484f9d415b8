"""What the service takes to issue machines' tokens itself."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from service.core.names import is_visible_name
from service.settings.fields import Section, Words

MAX_UNLISTED: Final = 86_400  # seconds that a token lives, at most, that is not in the list


class TokensSettings(Section):
    """The service as an issuer of machines' tokens."""

    folder: Path = Field(
        description="The folder for the signing keys and the list of tokens. The service must be able to write to it, "
        "and nobody else. It is made if only its last part is missing. All processes that use it run on one machine.",
        examples=["/var/lib/prefect-forward-auth/tokens"],
    )
    issuer: str = Field(
        "prefect-forward-auth",
        max_length=200,
        description="The issuer in the tokens (`iss`): a name, or `https://<host>/_auth`, with which others find the "
        "keys that verify them. Another one ends all tokens that were issued.",
    )
    audience: str = Field(
        "prefect",
        max_length=200,
        description="The audience in the tokens (`aud`). Another one ends all tokens that were issued.",
    )
    max_lifetime: Annotated[int, Field(ge=60, le=10 * 365 * 86_400)] = Field(
        365 * 86_400, description="The longest lifetime of a token, in seconds. The default is 365 days."
    )
    machine_lifetime: Annotated[int, Field(ge=60, le=MAX_UNLISTED)] = Field(
        3_600,
        description="The lifetime of a token that a machine obtains at `/_auth/token`, in seconds. The default is an "
        "hour, the maximum a day.",
    )
    people: Words = Field(
        frozenset(),
        description="The roles whose people may issue tokens for themselves at `/_auth/tokens`. Without one, nobody "
        "may, and there is no such page. A token can have no role that is above those of its person.",
        examples=[["deployer", "admin"]],
    )
    rotate: Annotated[int, Field(ge=3_600, le=10 * 365 * 86_400)] = Field(
        90 * 86_400,
        description="Seconds after which a new key signs. The default is 90 days. The old key verifies until its last "
        "token has expired.",
    )

    @field_validator("issuer", "audience")
    @classmethod
    def _can_be_read(cls, value: str) -> str:
        if not is_visible_name(value):
            raise ValueError("expected text without control characters, such as prefect")
        return value

    @field_validator("issuer")
    @classmethod
    def _is_not_the_users_file(cls, value: str) -> str:
        if value == "local":
            raise ValueError("'local' stands for the users file: choose another name, such as prefect-forward-auth")
        return value
