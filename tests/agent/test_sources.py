"""Where tokens come from: what each source gives, and what is said when it cannot."""

from __future__ import annotations

import base64
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from service.agent.sources import ClientCredentials, TokenCommand, TokenFile
from service.agent.tokens import Source, SourceError, Token
from tests.support.forward_proxy import ForwardProxy
from tests.support.issuer import Issuer, Reply

LATE = 4102444800  # 2100-01-01
SECRET = "s3cret+of/the=client"

pytestmark = pytest.mark.anyio


def printing(text: str) -> TokenCommand:
    return TokenCommand(("printf", "%s", text))


def client(url: str, **options: Any) -> ClientCredentials:
    return ClientCredentials("worker", SECRET, ssl.create_default_context(), **{"token_url": f"{url}/token", **options})


async def refused(source: Source) -> str:
    with pytest.raises(SourceError) as told:
        await source.fetch()
    assert SECRET not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("abc", None),
        ("abc\n", None),
        (json.dumps({"token": "abc"}), None),
        (json.dumps({"token": "abc", "expires_in": 60}), 60),
        (json.dumps({"token": "abc", "expires_in": "60"}), 60),
        (json.dumps({"access_token": "abc", "expires_at": LATE}), LATE),
        (json.dumps({"token": "abc", "expires_at": "2100-01-01T00:00:00Z"}), LATE),
        (json.dumps({"token": "abc", "expires_at": "2100-01-01T02:00:00+02:00"}), LATE),
        (json.dumps({"token": "abc", "expires_at": "2100-01-01T00:00:00"}), LATE),
        (
            json.dumps({"status": {"token": "abc", "expirationTimestamp": "2100-01-01T00:00:00Z"}}),
            LATE,
        ),
    ],
)
async def test_a_command_prints_a_token_or_json(text: str, seconds: float | None) -> None:
    token = await printing(text).fetch()
    assert token.value == "abc"
    expected = seconds if seconds in {None, LATE} else pytest.approx(time.time() + 60, abs=20)
    assert token.expires == expected
    assert "abc" not in repr(token)


async def test_a_jwt_says_itself_when_it_ends(issuer: Issuer) -> None:
    token = issuer.mint(lifetime=120)
    assert (await printing(token).fetch()).expires == pytest.approx(time.time() + 120, abs=10)
    shorter = json.dumps({"token": token, "expires_in": 60})
    assert (await printing(shorter).fetch()).expires == pytest.approx(time.time() + 60, abs=10)


@pytest.mark.parametrize("token", ["a.b.c", "a.~.c", "a.eyJleHAiOiJ4In0.c", "a.eyJleHAiOnRydWV9.c", "a.b"])
async def test_what_is_no_jwt_has_no_end(token: str) -> None:
    assert await printing(token).fetch() == Token(token)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (printing(""), "it gave no token"),
        (printing("two words"), "what it gave is not a token"),
        (printing("abc\r\nX-Header: 1"), "what it gave is not a token"),
        (printing("x" * 20_000), "what it gave is not a token"),
        (printing('{"token": 7}'), "it gave no token"),
        (printing('{"token": "abc", "expires_at": "soon"}'), "its expires_at is not a time"),
        (TokenCommand(("false",)), "it ended with 1"),
        (TokenCommand(("no-such-command",)), "No such file or directory"),
        (TokenFile(Path("/no/such/file")), "No such file or directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_wrong_with_a_source_is_told(source: Source, told: str) -> None:
    assert await refused(source) == told


@pytest.mark.parametrize("auth", ["basic", "post"])
@pytest.mark.parametrize("discovered", [False, True])
async def test_a_client_asks_for_scope_and_audience(issuer: Issuer, auth: str, *, discovered: bool) -> None:
    issuer.grant_to({"worker": SECRET})
    where = {"token_url": "", "issuer": issuer.url} if discovered else {}
    token = await client(issuer.url, scope="prefect:write", audience="prefect", auth=auth, **where).fetch()
    assert token.expires == pytest.approx(time.time() + 300, abs=10)
    (call,) = issuer.calls
    assert (call.form["scope"], call.form["audience"]) == ("prefect:write", "prefect")
    assert ("client_secret" in call.form) == (auth == "post")


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply({"error": "invalid_client"}, 401), "it answered 401 (invalid_client)"),
        (Reply({"error": "x" * 100}, 400), "it answered 400"),
        (Reply(b"<html>", 502), "it answered 502"),
        (Reply(b"[]"), "it gave no token"),
        (Reply({"access_token": "a\nb"}), "what it gave is not a token"),
        (Reply(b"x" * 70_000), "it answered more than 65536 bytes"),
        (Reply(status=302, headers={"Location": "/elsewhere"}), "it answered 302"),
    ],
)
async def test_an_answer_of_the_token_endpoint_that_is_no_token(issuer: Issuer, reply: Reply, told: str) -> None:
    issuer.replies["/token"] = reply
    assert await refused(client(issuer.url)) == told


async def test_an_issuer_that_is_away(issuer: Issuer) -> None:
    issuer.stop()
    assert (await refused(client(issuer.url))).startswith("ConnectError")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "names no token endpoint"),
        ({"token_endpoint": "https://x.test/token", "issuer": "https://x.test"}, "is the document of another issuer"),
    ],
)
async def test_a_discovery_document_is_of_that_very_issuer(issuer: Issuer, metadata: dict[str, Any], told: str) -> None:
    issuer.metadata = metadata
    assert told in await refused(client("", token_url="", issuer=issuer.url))


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with ForwardProxy() as proxy:
        address = proxy.url.removeprefix("http://")
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@{address}")
        assert await refused(client("http://issuer.test")) == "it gave no token"
        await refused(client("https://issuer.test"))
        monkeypatch.setenv("NO_PROXY", "issuer.test")
        assert (await refused(client("http://issuer.test"))).startswith("ConnectError")
    assert proxy.asked == ["POST http://issuer.test/token HTTP/1.1", "CONNECT issuer.test:443 HTTP/1.1"]
    assert proxy.credentials == ["Basic " + base64.b64encode(b"user:p@ss").decode()]


async def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:hidden@127.0.0.1:1080")
    told = await refused(client("https://issuer.test"))
    assert told == "the proxy that the environment names is no URL of HTTP"
