"""What the service takes to issue machines' tokens itself."""

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from service.core.names import is_visible_name
from service.settings.fields import Section, Words

MAX_UNLISTED: Final = 86_400  # seconds that a token lives, at most, that is not in the list


_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[^@/?#\s:,\[\]]*)(?::\d{1,5})?"
_URL: Final = re.compile(  # so strict that no part of a password is ever taken for a host or a parameter
    rf"postgres(?:ql)?://(?:[^@/?#\s:]+(?::[^@/?#\s]*)?@)?{_HOST}(?:,{_HOST})*/[^@/?#\s]+(?:\?[^@?#\s]*)?"
)


class TokensSettings(Section):
    """The service as an issuer of machines' tokens."""

    folder: Path | None = Field(
        None,
        description="The folder for the signing keys and the list of tokens. The service must be able to write to it, "
        "and nobody else. It is made if only its last part is missing. All processes that use it run on one machine.",
        examples=["/var/lib/prefect-forward-auth/tokens"],
    )
    database: SecretStr | None = Field(
        None,
        description="In place of `folder`: the URL of a PostgreSQL database, for replicas on several machines. "
        "Special characters in the password are percent-encoded. Parameters are those of libpq, such as "
        "`?sslmode=verify-full`.",
        examples=["postgresql://gate:password@db.example.com/gate?sslmode=verify-full"],
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

    @field_validator("database")
    @classmethod
    def _is_a_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _URL.fullmatch(value.get_secret_value()):
            raise ValueError(
                "expected postgresql://user:password@host:port/database, with %40 for an @ in the password, and so on"
            )
        return value

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if (self.folder is None) == (self.database is None):
            raise ValueError("needs either folder or database (PostgreSQL): set exactly one of them")
        return self

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
