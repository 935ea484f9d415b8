"""The short way and ASGI write the same bytes, and what the short way relies on in uvicorn is so."""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from uvicorn.protocols.http import flow_control

from service.adapters.users_file import hash_password
from service.core.model import Gate
from service.gate import verify, verify_protocol
from service.gate.application import ForwardAuth
from service.gate.protocol import MAX_HEAD, BoundedHeadProtocol
from service.gate.verify_protocol import KNOWN, VerifyProtocol, http_protocol, source_of_uvicorn
from service.settings import Settings
from service.web.app import create_app
from tests.support.connection import Connection
from tests.support.issuer import Issuer

pytestmark = pytest.mark.anyio

BY_ASGI = pytest.mark.skipif(
    bool(os.environ.get("TEST_BY_ASGI")), reason="another uvicorn is installed for this run, on purpose"
)
WAYS = {"short": VerifyProtocol, "asgi": BoundedHeadProtocol}
FORWARDED = (
    b"host: gate\r\nx-forwarded-method: POST\r\nx-forwarded-uri: /api/flows/filter\r\n"
    b"x-forwarded-host: prefect.example.com\r\nx-forwarded-proto: https\r\nx-forwarded-for: 203.0.113.7\r\n"
)
GET = b"GET /forward-auth/api HTTP/1.1\r\n" + FORWARDED
BARE = GET + b"\r\n"  # a call without a credential
PAGE = b"GET /healthz HTTP/1.1\r\nhost: gate\r\n\r\n"
ENVOY = b"host: prefect.example.com\r\nx-forwarded-proto: https\r\nx-forwarded-for: 203.0.113.7\r\n\r\n"
BASIC = b"authorization: Basic YWxpY2U6c2VjcmV0\r\n"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer("RS256") as running:
        yield running


@pytest.fixture(scope="module")
async def app(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForwardAuth]:
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text(f"alice:{hash_password('secret', 4)}\n")
    trusted = {"url": issuer.url, "audiences": "prefect", "role": "worker"}
    started = create_app(Settings(issuer=trusted, users={"file": users, "role": "viewer"}))
    await started.start()
    for credential in (b"authorization: Bearer " + issuer.mint().encode() + b"\r\n", BASIC):
        await Connection(started).send(GET + credential + b"\r\n")  # keys and passwords are known from here on
    yield started
    await started.stop()


def same_ids(written: bytes) -> bytes:
    """Return what was written, with one request id for all."""
    return re.sub(rb'"request_id": ?"[0-9a-f]{16}"', b"", written)


def asked_by(connection: Connection) -> str:
    """Return which way the last call went."""
    return "asgi" if getattr(connection.protocol, "cycle", None) else "short"


MIXED = [
    pytest.param([BARE], "short", id="one call"),
    pytest.param([GET + BASIC + b"\r\n"] * 3, "short", id="one after the other"),
    pytest.param([bytes([one]) for one in GET + BASIC + b"\r\n"], "short", id="byte by byte"),
    pytest.param([GET, BASIC + b"\r\n"], "short", id="in two pieces"),
    pytest.param([GET[:40]], "short", id="half a request"),
    pytest.param([b"\r\n" + BARE], "short", id="an empty line before"),
    pytest.param([BARE + BARE], "asgi", id="two at once"),
    pytest.param([GET + BASIC + b"\r\n" + BARE + PAGE + BARE], "asgi", id="four at once, in order"),
    pytest.param([BARE + GET[:50], GET[50:] + b"\r\n"], "asgi", id="one and a half"),
    pytest.param([PAGE + BARE], "asgi", id="behind another call"),
    pytest.param([PAGE, BARE], "asgi", id="after another call"),
    pytest.param([b"GET /auth-request/api HTTP/1.1\r\nhost: g\r\n\r\n"], "short", id="nginx"),
    pytest.param([b"DELETE /ext-authz/api/api/flows/1?a=b HTTP/1.1\r\n" + ENVOY], "short", id="envoy"),
    pytest.param(
        [b"POST /ext-authz/api/api/flows/filter HTTP/1.1\r\ncontent-length: 0\r\n" + ENVOY], "short", id="length 0"
    ),
    pytest.param([b"GET /ext-authz/api/api/flows/%C3%A9 HTTP/1.1\r\n" + ENVOY], "short", id="escapes"),
    pytest.param([b"GET /ext-authz/api/api/flows/\xc3\xa9 HTTP/1.1\r\n" + ENVOY], "asgi", id="not ASCII"),
    pytest.param([b"GET /ext-authz/api/api#a HTTP/1.1\r\n" + ENVOY], "short", id="a fragment"),
    pytest.param([b"POST /forward-auth/api HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "short", id="another method"),
    pytest.param([b"HEAD /forward-auth/api HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "asgi", id="HEAD"),
    pytest.param([b"GET /forward-auth/api?x=1 HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "asgi", id="a query"),
    pytest.param([b"GET /forward-auth/%61pi HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "asgi", id="another spelling"),
    pytest.param(
        [b"GET http://g/forward-auth/api HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "asgi", id="an absolute target"
    ),
    pytest.param([b"GET /forward-auth/api/ HTTP/1.1\r\n" + FORWARDED + b"\r\n"], "asgi", id="no endpoint"),
    pytest.param([GET + b"content-length: 5\r\n\r\nhello" + BARE], "asgi", id="a body that nobody asked for"),
    pytest.param([GET + b"content-length: 5\r\n\r\n", b"hello", BARE], "asgi", id="a body that comes later"),
    pytest.param([GET + b"content-length: 9000\r\n\r\n" + b"a" * 100], "asgi", id="a body that does not come"),
    pytest.param([GET + b"content-length: 35\r\n\r\n" + PAGE + BARE], "asgi", id="a body that looks like a request"),
    pytest.param([GET + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", BARE], "asgi", id="chunks"),
    pytest.param([GET + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", BARE], "short", id="no chunk"),
    pytest.param([GET + b"transfer-encoding: chunked\r\n\r\n0\r\n" + BASIC + b"\r\n"], "short", id="a trailer"),
    pytest.param([GET + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"], "asgi", id="two lengths"),
    pytest.param([GET + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"], "asgi", id="a length twice"),
    pytest.param([GET + b"content-length: +5\r\n\r\nhello"], "asgi", id="a length that is none"),
    pytest.param([GET + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"], "asgi", id="an unknown coding"),
    pytest.param([GET + b"expect: 100-continue\r\n\r\n"], "short", id="100-continue"),
    pytest.param(
        [GET + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n", b"hello"], "asgi", id="100-continue, body"
    ),
    pytest.param([b"GET /forward-auth/api HTTP/1.0\r\n" + FORWARDED + b"\r\n"], "asgi", id="1.0"),
    pytest.param(
        [b"GET /forward-auth/api HTTP/1.0\r\nconnection: keep-alive\r\n" + FORWARDED + b"\r\n"], "asgi", id="1.0 alive"
    ),
    pytest.param([b"GET /forward-auth/api HTTP/2.0\r\n" + FORWARDED + b"\r\n"], "asgi", id="2.0"),
    pytest.param([b"GET /forward-auth/api\r\n\r\n"], "asgi", id="0.9"),
    pytest.param([GET + b"connection: close\r\n\r\n"], "asgi", id="close"),
    pytest.param([GET + b"connection: close\r\n\r\n" + BARE], "asgi", id="close, and one more"),
    pytest.param([GET + b"connection: keep-alive\r\n\r\n"], "short", id="keep-alive"),
    pytest.param([GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", BARE], "asgi", id="websocket"),
    pytest.param([GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"], "asgi", id="h2c"),
    pytest.param([GET + b"upgrade: websocket\r\n\r\n"], "short", id="upgrade without connection"),
    pytest.param([b"CONNECT g:80 HTTP/1.1\r\nhost: g\r\n\r\n"], "asgi", id="CONNECT"),
    pytest.param([b"BREW /forward-auth/api HTTP/1.1\r\n\r\n"], "short", id="no method"),
    pytest.param([b"\x16\x03\x01\x02\x00"], "short", id="TLS"),
    pytest.param([BARE + b"\x00\x00"], "asgi", id="garbage behind a call"),
    pytest.param([BARE, b"\x00\x00"], "short", id="garbage after a call"),
    pytest.param([GET + b"x: a\x00b\r\n\r\n"], "short", id="NUL in a header"),
    pytest.param([GET + b"x : a\r\n\r\n"], "short", id="a blank before the colon"),
    pytest.param([GET + b"x: a\r\n b\r\n\r\n"], "short", id="a folded header"),
    pytest.param([BARE.replace(b"\r\n", b"\n")], "short", id="bare LF"),
    pytest.param([GET + BASIC + BASIC + b"\r\n"], "short", id="two credentials"),
    pytest.param([GET + b"AUTHORIZATION: Basic YWxpY2U6c2VjcmV0\r\n\r\n"], "short", id="another case"),
    pytest.param([GET + b"x: " + b"a" * (MAX_HEAD + 100) + b"\r\n\r\n"], "asgi", id="431"),
    pytest.param([GET + b"x: " + b"a" * 60_000, b"a" * 60_000, b"a" * 60_000], "asgi", id="431 without an end"),
    pytest.param([GET + b"x: " + b"a" * 100_000 + b"\r\n\r\n"], "short", id="a large head"),
    pytest.param([BARE + GET + b"x: " + b"a" * (MAX_HEAD + 100) + b"\r\n\r\n"], "asgi", id="431 behind a call"),
]


@pytest.mark.parametrize(("chunks", "way"), MIXED)
async def test_both_ways_write_the_same(chunks: list[bytes], way: str, app: ForwardAuth) -> None:
    told = {}
    for name, http in WAYS.items():
        connection = Connection(app, http=http)
        written = await connection.send(*chunks)
        told[name] = same_ids(written), connection.transport.closed, connection.transport.reading_paused
        if name == "short" and written and not connection.transport.closed:
            assert asked_by(connection) == way
        connection.lose()
    assert told["short"] == told["asgi"]


async def test_pipelined_calls_reach_the_application_as_they_are(app: ForwardAuth) -> None:
    first = b"POST /ext-authz/api/api/flows/filter HTTP/1.1\r\n" + BASIC + ENVOY
    second = b"DELETE /ext-authz/api/api/flows/filter HTTP/1.1\r\n" + BASIC + ENVOY
    written = await Connection(app, http=VerifyProtocol).send(first + second)
    assert re.findall(rb"HTTP/1.1 (\d+)", written) == [b"200", b"403"]


async def test_a_call_that_waits_is_answered_before_those_that_come_after_it(app: ForwardAuth) -> None:
    wrong = GET + b"authorization: Basic YWxpY2U6d3Jvbmc=\r\n\r\n"  # bcrypt takes a while
    written = await Connection(app, http=VerifyProtocol).send(wrong, GET + BASIC + b"\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", written) == [b"401", b"200"]


async def test_a_peer_that_does_not_read_is_not_written_to(app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    connection.protocol.pause_writing()
    for _ in range(3):
        connection.protocol.data_received(BARE)
        await asyncio.sleep(0.01)
    assert connection.transport.written == []
    assert connection.transport.reading_paused
    connection.protocol.resume_writing()
    assert (await connection.send()).count(b"HTTP/1.1 401") == 3
    assert await connection.send(BARE) != b""


async def test_answers_of_one_turn_are_written_together_and_before_more_is_read(app: ForwardAuth) -> None:
    one, other = (Connection(app, http=VerifyProtocol) for _ in range(2))
    for connection in (one, other):
        connection.protocol.data_received(BARE)
        assert connection.transport.written == []
    one.protocol.data_received(PAGE)
    assert len(one.transport.written) == 1
    await asyncio.sleep(0)
    assert len(other.transport.written) == 1


@pytest.mark.parametrize("end", ["shutdown", "eof_received"])
async def test_what_is_decided_is_answered_before_the_end(end: str, app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    connection.protocol.data_received(BARE)
    getattr(connection.protocol, end)()
    assert connection.transport.closed == (end == "shutdown")
    assert connection.transport.written[0].startswith(b"HTTP/1.1 401")
    await asyncio.sleep(0)
    assert len(connection.transport.written) == 1


async def test_a_shutdown_waits_for_a_call_under_way(app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    connection.protocol.data_received(GET + b"authorization: Basic YWxpY2U6d3Jvbmc=\r\n\r\n")
    connection.protocol.shutdown()
    assert not connection.transport.closed
    assert b"connection: close" in await connection.send()
    assert connection.transport.closed


async def test_a_connection_that_is_lost_is_forgotten(app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    connection.protocol.data_received(BARE)
    connection.protocol.connection_lost(OSError())
    await asyncio.sleep(0)
    assert connection.transport.written == []
    assert connection.protocol.timeout_keep_alive_task is None
    assert not connection.state.connections


@pytest.mark.parametrize("way", WAYS)
async def test_an_idle_connection_is_closed_and_one_in_use_is_not(way: str, app: ForwardAuth) -> None:
    connection = Connection(app, http=WAYS[way], timeout_keep_alive=0.3)
    for asked in [BARE, PAGE, BARE, BARE, PAGE, PAGE, BARE]:
        await connection.send(asked)
        await asyncio.sleep(0.1)
        assert not connection.transport.closed
    async with asyncio.timeout(10):
        while not connection.transport.closed:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_with_half_a_request_or_a_call_under_way_is_not_closed(way: str, app: ForwardAuth) -> None:
    connection = Connection(app, http=WAYS[way], timeout_keep_alive=0.05)
    await connection.send(BARE)
    connection.protocol.data_received(BARE[:20])
    await asyncio.sleep(0.2)
    assert not connection.transport.closed
    assert await connection.send(BARE[20:]) != b""


async def test_a_connection_has_one_timer(app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    await connection.send(BARE)
    timer = connection.protocol.timeout_keep_alive_task
    for _ in range(5):
        await connection.send(BARE)
    assert connection.protocol.timeout_keep_alive_task is timer is not None
    assert connection.state.total_requests == 6


async def test_a_fault_of_the_short_way_is_answered_by_asgi(
    app: ForwardAuth, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("answer_again", "answer_at_once"):
        monkeypatch.setattr(app, name, lambda *_: 1 / 0)
        written = await Connection(app, http=VerifyProtocol).send(GET + BASIC + b"\r\n")
        assert written.startswith(b"HTTP/1.1 200")
    assert caplog.text.count("could not be answered at once") == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"server_header": True}, b"server: uvicorn"),
        ({"date_header": True}, b""),
        ({"headers": [("x-of-ours", "1")]}, b""),
        ({"limit_concurrency": 1}, b"503 Service Unavailable"),
        ({"root_path": "/below"}, b""),
    ],
)
async def test_what_the_server_adds_or_limits_is_left_to_asgi(
    options: dict[str, Any], told: bytes, app: ForwardAuth
) -> None:
    connection = Connection(app, http=VerifyProtocol, **options)
    connection.state.default_headers = [(b"server", b"uvicorn")] if told.startswith(b"server") else []
    assert told in await connection.send(BARE)
    assert asked_by(connection) == "asgi"


async def test_who_is_trusted_is_judged_anew_on_each_call(app: ForwardAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(app, http=VerifyProtocol)
    assert b"HTTP/1.1 200" in await connection.send(GET + BASIC + b"\r\n")
    monkeypatch.setattr(app, "_trusts", lambda _: False)
    assert b"HTTP/1.1 403" in await connection.send(GET + BASIC + b"\r\n")
    assert asked_by(connection) == "short"


# calls with the same bytes --------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the targets of the requests that the parser has seen."""
    seen: list[bytes] = []
    on_url = VerifyProtocol.on_url

    def noting(self: VerifyProtocol, url: bytes) -> None:
        seen.append(url)
        on_url(self, url)

    monkeypatch.setattr(VerifyProtocol, "on_url", noting)
    return seen


async def test_the_same_bytes_are_parsed_once_and_decided_each_time(app: ForwardAuth, parsed: list[bytes]) -> None:
    connection = Connection(app, http=VerifyProtocol)
    call = GET + b"x-once: 1\r\n" + BASIC + b"\r\n"
    allowed = app.wiring.telemetry.allowed[Gate.API]
    answers = {await connection.send(call) for _ in range(4)}
    assert len(answers) == len(parsed) == 1
    assert app.wiring.telemetry.allowed[Gate.API] == allowed + 4
    app.wiring.state.verdicts.forget()  # as where a user, a key or a session has changed
    assert {await connection.send(call)} == answers
    assert len(parsed) == 2
    app.use(app.generation)  # as a reload does
    assert {await connection.send(call) for _ in range(2)} == answers
    assert len(parsed) == 4  # proved anew, and only then known


async def test_the_same_bytes_from_a_stranger_are_refused(app: ForwardAuth, parsed: list[bytes]) -> None:
    call = GET + b"x-once: 2\r\n" + BASIC + b"\r\n"
    assert b"HTTP/1.1 200" in await Connection(app, http=VerifyProtocol).send(call)
    assert b"HTTP/1.1 403" in await Connection(app, "198.51.100.1", VerifyProtocol).send(call)
    assert b"HTTP/1.1 200" in await Connection(app, http=VerifyProtocol).send(call)
    assert len(parsed) == 2


async def test_only_a_whole_request_between_two_others_is_known_by_its_bytes(
    app: ForwardAuth, parsed: list[bytes]
) -> None:
    connection = Connection(app, http=VerifyProtocol)
    call = GET + b"x-once: 3\r\n" + BASIC + b"\r\n"
    for _ in range(2):
        await connection.send(call)
    assert len(parsed) == 1
    post = b"POST /nowhere HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % len(call)
    assert (await connection.send(post, call)).count(b"HTTP/1.1 ") == 1  # there it is a body
    half = b"GET /healthz HTTP/1.1\r\nx: "
    assert b"400 Bad Request" in await connection.send(half, call + b"\x00")  # and there a header
    again = Connection(app, http=VerifyProtocol)
    assert (await again.send(call + call)).count(b"HTTP/1.1 200") == 2


async def test_no_credential_is_in_what_is_remembered(app: ForwardAuth) -> None:
    connection = Connection(app, http=VerifyProtocol)
    for _ in range(3):
        await connection.send(GET + BASIC + b"cookie: a=hidden\r\n\r\n")
    assert app._asked
    assert not any(secret in repr(app._asked) for secret in ("YWxpY2U6c2VjcmV0", "hidden"))


async def test_what_is_remembered_has_a_bound(app: ForwardAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_ASKED", 10)
    connection = Connection(app, http=VerifyProtocol)
    for number in range(30):
        await connection.send(GET + b"x: %d\r\n\r\n" % number)
    await connection.send(GET + b"x: " + b"a" * verify.MAX_BYTES + b"\r\n\r\n")
    assert len(app._asked) == 10
    app._asked.clear()
    await connection.send(GET.replace(b"/filter", b"/filter?" + b"a" * 600) + b"\r\n")
    assert not app._asked  # long requests of strangers must not fill the memory


# the installed uvicorn ------------------------------------------------------------------------------------


@BY_ASGI
def test_the_uvicorn_of_the_lock_is_known() -> None:
    assert source_of_uvicorn() in KNOWN, (
        "uvicorn has changed. Compare what service/gate/verify_protocol.py relies on with the new source, "
        "run this file, then replace the fingerprint in KNOWN"
    )
    assert http_protocol() is VerifyProtocol


def test_with_another_uvicorn_all_calls_go_by_asgi_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(verify_protocol, "KNOWN", frozenset({"another"}))
        assert http_protocol() is BoundedHeadProtocol
        monkeypatch.setattr(flow_control, "__file__", "/nowhere")
        assert source_of_uvicorn() == ""
    (line,) = caplog.messages
    assert "was not tested with uvicorn" in line
