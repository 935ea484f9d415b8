"""The first message of a WebSocket, and the Authorization header that says the same as its token."""

import pytest

from service.core.errors import MalformedCredential
from service.core.model import Basic, Bearer
from service.core.request.first_message import authorization_of, first_message, parse_first_message
from service.core.request.headers import parse_credential

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzdmMifQ.c2ln"


@pytest.mark.parametrize("token", ["etl:secret", JWT, "Bearer x"])
def test_the_token_is_what_stands_in_the_message(token: str) -> None:
    assert parse_first_message(first_message(token)) == token
    assert parse_first_message(first_message(token).encode()) == token


@pytest.mark.parametrize(
    "message", ['{"type": "auth", "token": null}', '{"type": "auth"}', '{"type":"auth","token":""}']
)
def test_a_message_may_have_no_token(message: str) -> None:
    assert parse_first_message(message) is None
    assert parse_first_message(first_message(None)) is None


@pytest.mark.parametrize(
    "message",
    [
        "",
        "null",
        "[]",
        '"auth"',
        "{",
        '{"token": "etl:secret"}',
        '{"type": "Auth", "token": "etl:secret"}',
        '{"type": "auth", "token": 1}',
        '{"type": "auth", "token": ["etl:secret"]}',
        '{"type": "auth", "token": NaN}',
        '{"type": "auth", "type": "auth", "token": "etl:secret"}',
        '{"type": "auth", "token": "a:b", "token": "etl:secret"}',
        b"\xff",
        "[" * 100_000,
    ],
)
def test_anything_else_is_malformed(message: str | bytes) -> None:
    with pytest.raises(MalformedCredential):
        parse_first_message(message)


@pytest.mark.parametrize(
    ("token", "credential"),
    [
        ("etl:secret", Basic("etl", "secret")),
        ("etl:päss:wörd", Basic("etl", "päss:wörd")),
        (f"jwt:{JWT}", Bearer(JWT.encode())),
        (JWT, Bearer(JWT.encode())),
        (f"Bearer {JWT}", Bearer(JWT.encode())),
        (f"bearer {JWT}", Bearer(JWT.encode())),
    ],
)
def test_a_token_is_read_as_the_header_that_carries_it(token: str, credential: Basic | Bearer) -> None:
    assert parse_credential(authorization_of(token)) == credential


@pytest.mark.parametrize("token", ["no colon", "DPoP x", f"{JWT}:", "\ud800:x", "a\x00:b", "x" * 17_000, "Basic YTpi"])
def test_what_is_no_credential_in_a_header_is_none_here(token: str) -> None:
    with pytest.raises(MalformedCredential):
        parse_credential(authorization_of(token))
