"""The relay as a proxy and Prefect's clients meet it: over real sockets, with the server of the service."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from service.adapters import prefect_socket
from service.adapters.users_file import hash_password
from service.settings import Settings
from service.state import unproved
from tests.support.issuer import Issuer as Provider
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import EVENTS, Gate, closed, eventually, served
from tests.web.conftest import Caller, basic

pytestmark = pytest.mark.anyio


# let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jwt", "Bearer jwt", "anything:jwt", "user:password"])
@pytest.mark.parametrize(
    "path",
    [EVENTS, "/api/task_runs/subscriptions/scheduled", "/api/work_pools/default/workers/connect", "/api/logs/out"],
)
async def test_a_token_in_the_first_message_opens_prefects_own_socket(
    form: str, path: str, gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    token = {
        "jwt": provider.mint(),
        "Bearer jwt": f"Bearer {provider.mint()}",
        "anything:jwt": f"jwt:{provider.mint()}",
        "user:password": "etl:secret",
    }[form]
    async with gate.opened(token, path) as socket:
        for content in ("an event", b"\x00\xff", "x" * 1_000_000):
            await socket.send(content)
            assert await socket.recv() == content
    (one,) = prefect.opened
    assert (one.path, one.subprotocol) == (path, "prefect")
    assert one.headers["x-auth-request-user"] == ("etl" if form == "user:password" else "svc")
    assert one.headers["x-auth-request-roles"]
    assert one.headers["x-forwarded-for"] == "203.0.113.7"
    assert "authorization" not in one.headers
    assert json.loads(one.messages[0]) == {"type": "auth", "token": None}, "no credential reaches Prefect"


async def test_a_header_is_proved_at_the_upgrade_and_counts_alone(
    gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    async with gate.opened("etl:wrong", authorization=f"Bearer {provider.mint()}") as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
    assert "authorization" not in prefect.opened[0].headers
    with pytest.raises(InvalidStatus) as refused:
        await gate.connect(authorization=basic("etl:wrong"))
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["code"] == "invalid_token"


async def test_the_servers_own_auth_string_replaces_the_callers_credential(
    relay_settings: dict[str, Any], provider: Provider
) -> None:
    async with PrefectSockets(auth_string="admin:own").running() as prefect:
        own = {"url": prefect.url, "auth_string": "admin:own"}
        async with served({**relay_settings, "prefect": own}) as gate:
            async with gate.opened(provider.mint()) as socket:
                await socket.send("hello")
                assert await socket.recv() == "hello"
            async with gate.connect(legacy=True, authorization=f"Bearer {provider.mint()}") as socket:
                await socket.send("hello")  # a client without the handshake: the relay makes it
                assert await socket.recv() == "hello"
        assert [json.loads(one.messages[0])["token"] for one in prefect.opened] == ["admin:own", "admin:own"]


# passed on ------------------------------------------------------------------------------------------------


async def test_close_codes_and_reasons_are_kept_both_ways(
    gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    for code, reason in ((1000, ""), (1001, "going away"), (1011, "a fault"), (4321, "its own")):
        async with gate.opened(provider.mint()) as socket:
            await socket.send(f"close {code} {reason}")
            assert await closed(socket) == (code, reason)
        async with gate.opened(provider.mint()) as socket:
            await socket.close(code, reason)
        one = prefect.opened[-1]
        await eventually(lambda one=one: one.closed)  # type: ignore[misc]
        assert one.closed == (code, reason)
    await eventually(lambda: not len(gate.app.relay))


async def test_what_was_sent_before_a_close_arrives(gate: Gate, prefect: PrefectSockets, provider: Provider) -> None:
    sent = [f"{number} {'x' * 1_000}" for number in range(2_000)]
    async with gate.opened(provider.mint()) as socket:
        for one in sent:
            await socket.send(one)
    await eventually(lambda: prefect.opened[0].closed)
    assert prefect.opened[0].messages[1:] == sent


async def test_a_pong_says_that_prefect_has_what_was_sent_before(
    gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    async with gate.opened(provider.mint()) as socket:
        await asyncio.wait_for(await socket.ping(), 30)
        transport = prefect.opened[0].connection.transport
        transport.pause_reading()  # a server that is there and reads nothing
        await socket.send("an event")
        pong = await socket.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pong), 0.5)
        transport.resume_reading()
        await asyncio.wait_for(pong, 30)
        await eventually(lambda: "an event" in prefect.opened[0].messages)


async def test_who_sends_faster_than_prefect_reads_is_slowed_down(
    gate: Gate, prefect: PrefectSockets, provider: Provider
) -> None:
    async with gate.opened(provider.mint()) as socket:
        prefect.reading.clear()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 400:
                await socket.send("x" * 100_000)
                sent += 1

        flooding = asyncio.create_task(flood())
        before = -1
        async with asyncio.timeout(20):
            while sent != before:  # until nothing more is taken
                before = sent
                await asyncio.sleep(0.3)
        assert sent < 200, "a bounded part of 40 MB is on the way"
        prefect.reading.set()
        reader = asyncio.create_task(_read(socket, 400))
        await asyncio.wait_for(asyncio.gather(flooding, reader), 30)


async def _read(socket: ClientConnection, count: int) -> None:
    for _ in range(count):
        await socket.recv()


# refused --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("etl:wrong", "The user name or the password is wrong"),
        (None, "No credential on this WebSocket: set PREFECT_API_AUTH_STRING"),
        ("", "No credential on this WebSocket: set PREFECT_API_AUTH_STRING"),
        ("alice:secret", "ask for the role"),
        ("no colon", "no colon"),
        ("\ud800:x", "first message"),
    ],
)
async def test_a_refusal_is_a_close_frame_that_says_what_to_do(
    token: str | None, says: str, gate: Gate, prefect: PrefectSockets
) -> None:
    code, reason = await gate.refused(token)
    assert code == 1008
    assert says in reason
    assert len(reason.encode()) <= 123
    assert not prefect.opened


async def test_a_token_is_judged_as_at_the_gate(gate: Gate, provider: Provider, prefect: PrefectSockets) -> None:
    now = int(time.time())
    forged = {
        "another audience": provider.mint(aud="another"),
        "expired": provider.mint(exp=now - 60),
        "another issuer": provider.mint(iss="https://evil.example"),
        "tampered": provider.mint()[:-8] + "AAAAAAAA",
    }
    for name, token in forged.items():
        for form in (token, f"jwt:{token}", f"Bearer {token}"):
            assert (await gate.refused(form))[0] == 1008, name
    assert (await gate.refused("etl:secret", gate="jwt"))[0] == 1008
    assert (await gate.refused(provider.mint(), gate="basic"))[0] == 1008
    assert not prefect.opened


@pytest.mark.parametrize(
    "first",
    [
        "[" * 30_000,
        '{"type": "auth"',
        '{"type": "event", "token": "etl:secret"}',
        '{"type": "auth", "token": ["etl:secret"]}',
        '{"type": "auth", "token": "x", "token": "etl:secret"}',
        '"auth"',
        b"\xff\xfe",
    ],
)
async def test_what_is_no_first_message_is_refused(first: str | bytes, gate: Gate, prefect: PrefectSockets) -> None:
    async with gate.connect() as socket:
        await socket.send(first)
        code, reason = await closed(socket)
    assert (code, "first message" in reason) == (1008, True)
    assert not prefect.opened


@pytest.mark.parametrize("parts", [1, 100])
async def test_a_first_message_of_ten_megabytes_is_refused_unread(
    parts: int, gate: Gate, prefect: PrefectSockets
) -> None:
    async with gate.connect() as socket:
        with suppress(ConnectionClosed):
            await socket.send(["x" * (10_000_000 // parts)] * parts)
        assert (await closed(socket))[0] == 1009
    assert not prefect.opened


async def test_a_first_message_that_does_not_come_is_not_waited_for(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unproved, "FIRST_MESSAGE_SECONDS", 0.3)
    async with gate.connect() as silent:
        assert (await closed(silent))[0] == 1008
    async with gate.connect() as halved:
        halved.transport.write(b"\x81\xfe\x10")  # half a frame
        assert (await closed(halved))[0] == 1008


async def test_silent_sockets_keep_nobody_out(gate: Gate, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unproved, "MAX_UNPROVED", 20)
    monkeypatch.setattr(unproved, "MAX_UNPROVED_OF_SENDER", 10)
    silent = [await gate.connect(client=f"203.0.113.{number % 3}") for number in range(60)]
    async with gate.opened(provider.mint(), client="203.0.113.1") as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
    await eventually(lambda: sum(one.close_code == 1008 for one in silent) >= 40)
    assert len(gate.app.relay._unproved) <= 20
    for one in silent:
        await one.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/flows/filter", 403), ("/api/events/in/", 403), ("/api/nothing", 403), ("/api//events/in", 400)],
)
async def test_nothing_but_prefects_websockets_is_relayed(
    path: str, status: int, gate: Gate, provider: Provider, prefect: PrefectSockets
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await gate.connect(path, authorization=f"Bearer {provider.mint()}")
    assert refused.value.response.status_code == status
    assert not prefect.opened


async def test_only_trusted_proxies_hand_sockets_over(
    relay_settings: dict[str, Any], provider: Provider, prefect: PrefectSockets
) -> None:
    async with served({**relay_settings, "trusted_proxies": "192.0.2.1"}) as gate:
        with pytest.raises(InvalidStatus) as refused:
            await gate.connect(authorization=f"Bearer {provider.mint()}")
    assert refused.value.response.status_code == 403
    assert not prefect.opened


async def test_a_page_of_another_site_opens_none_with_a_password_that_a_browser_remembers(
    gate: Gate, prefect: PrefectSockets
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await gate.connect(authorization=basic("etl:secret"), origin="https://evil.example")
    assert refused.value.response.status_code == 403
    assert not prefect.opened


async def test_no_other_path_is_a_websocket_of_the_service(gate: Gate) -> None:
    for path in ("/forward-auth/api", "/_auth/login", "/relays/api/api/events/in", "/"):
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{gate.port}{path}", proxy=None)
    async with httpx.AsyncClient() as client:  # a proxy that sends the client's Upgrade along asks as any other
        answer = await client.get(
            f"http://127.0.0.1:{gate.port}/forward-auth/api",
            headers={
                "upgrade": "websocket",
                "connection": "upgrade",
                "x-forwarded-method": "GET",
                "x-forwarded-uri": EVENTS,
                "x-forwarded-host": "prefect.example.com",
                "x-forwarded-proto": "https",
                "x-forwarded-for": "203.0.113.7",
                "authorization": basic("etl:secret"),
            },
        )
    assert answer.status_code == 200


async def test_a_relay_that_is_off_or_incomplete_says_so(
    relay_settings: dict[str, Any], provider: Provider, prefect: PrefectSockets
) -> None:
    async with served({**relay_settings, "websockets": {"relay": "off"}}) as gate:
        with pytest.raises(InvalidStatus) as refused:
            await gate.connect()
        assert refused.value.response.status_code == 401
    async with served({**relay_settings, "prefect": {}}) as gate:
        with pytest.raises(InvalidStatus) as refused:
            await gate.connect()
        assert refused.value.response.status_code == 503
        assert b"prefect.url" in (refused.value.response.body or b"")
    async with served({**relay_settings, "websockets": {"max_open": 1}}) as gate, gate.opened(provider.mint()):
        with pytest.raises(InvalidStatus) as refused:
            await gate.connect()
        assert refused.value.response.status_code == 429


async def test_where_all_sockets_are_relayed_none_passes_by(
    relay_settings: dict[str, Any], provider: Provider, prefect: PrefectSockets
) -> None:
    credential = f"Bearer {provider.mint()}"
    for relay, status in (("without-header", 200), ("always", 403)):
        async with served({**relay_settings, "websockets": {"relay": relay}}) as gate:
            answer = await Caller(gate.app)(credential, X_Forwarded_Method="GET", X_Forwarded_Uri=EVENTS)
            assert answer.status == status
            async with gate.opened(provider.mint(), authorization=credential):
                pass
            assert (await Caller(gate.app)(credential)).status == 200
    assert "/relay/" in answer.json()["detail"]


@pytest.mark.usefixtures("short_waits")
async def test_what_becomes_of_sockets_is_counted_and_no_credential_is_logged(
    gate: Gate, provider: Provider, logged: Callable[[], str]
) -> None:
    token = provider.mint(exp=int(time.time()) + 2)
    async with gate.opened(token) as socket, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{gate.port}/metrics"
        assert "forward_auth_websockets_open 1.0" in (await client.get(url)).text
        await closed(socket)
        await gate.refused("etl:a-wrong-secret")
        await gate.refused(None)
        metrics = (await client.get(url)).text
    for line in (
        'forward_auth_websockets_total{endpoint="events/in",outcome="relayed"} 1.0',
        'forward_auth_websockets_total{endpoint="events/in",outcome="ended"} 1.0',
        'forward_auth_websocket_refused_total{endpoint="events/in"} 1.0',
        'forward_auth_decisions_total{gate="api",outcome="invalid_token"} 1.0',
    ):
        assert line in metrics, metrics
    assert "a WebSocket was closed with its credential" in logged()
    for secret in (token, "a-wrong-secret", token.rpartition(".")[2]):
        assert secret not in logged()


async def test_uvicorn_logs_nothing_of_a_websocket(gate: Gate, provider: Provider, logged: Callable[[], str]) -> None:
    async with gate.opened(provider.mint()) as socket:
        await socket.send(b"\xff", text=True)  # no UTF-8
        assert (await closed(socket))[0] == 1007
    for line in ("[accepted]", "connection open", "Traceback", "UTF-8"):
        assert line not in logged()


async def test_a_server_that_is_away_is_tried_again_later(
    relay_settings: dict[str, Any], provider: Provider, unused_port: int
) -> None:
    async with served({**relay_settings, "prefect": {"url": f"http://127.0.0.1:{unused_port}"}}) as gate:
        code, reason = await gate.refused(provider.mint())
    assert (code, reason) == (1013, "Prefect cannot be reached just now: connect again.")


async def test_a_server_that_does_not_answer_is_waited_for_a_while_and_counts_as_open(
    relay_settings: dict[str, Any], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_socket, "OPEN_SECONDS", 1.0)
    async with PrefectSockets(auth_string="admin:own").running() as prefect:
        prefect.answering.clear()
        own = {"url": prefect.url, "auth_string": "admin:own"}
        async with served({**relay_settings, "prefect": own, "websockets": {"max_open": 1}}) as gate:
            header = {"authorization": f"Bearer {provider.mint()}"}
            async with gate.connect(legacy=True, **header) as first:
                await eventually(lambda: prefect.opened)
                with pytest.raises(InvalidStatus) as refused:
                    await gate.connect(**header)
                assert refused.value.response.status_code == 429
                assert await closed(first, 5) == (1013, "Prefect cannot be reached just now: connect again.")
            prefect.answering.set()
            async with gate.connect(legacy=True, **header) as again:
                await again.send("hello")
                assert await again.recv() == "hello"


@pytest.fixture
def unused_port() -> int:
    from tests.support.waiting import free_port  # noqa: PLC0415 - of this fixture alone

    return free_port()


# the end of a credential ----------------------------------------------------------------------------------


async def test_the_end_of_a_token_ends_its_socket(gate: Gate, provider: Provider) -> None:
    began = time.time()
    async with gate.opened(provider.mint(exp=int(began) + 3)) as socket, gate.opened(provider.mint()) as other:
        code, reason = await closed(socket)
        assert time.time() - began < 6
        assert code == 1012, "Prefect's clients connect again after it"
        assert "expired" in reason
        await other.send("hello")
        assert await other.recv() == "hello"


async def test_who_is_no_user_any_more_loses_the_socket(gate: Gate, relay_users: Path) -> None:
    async with gate.opened("etl:secret") as socket:
        await asyncio.to_thread(relay_users.write_text, f"alice:{hash_password('secret', 4)}\n")
        code, _ = await closed(socket)
        assert code == 1012


async def test_who_loses_the_role_loses_the_socket(relay_settings: dict[str, Any], provider: Provider) -> None:
    async with (
        served(relay_settings) as gate,
        gate.opened("etl:secret") as socket,
        gate.opened(provider.mint()) as other,
    ):
        from service.gate.generation import Generation  # noqa: PLC0415 - as a reload does
        from service.gate.wiring import wire  # noqa: PLC0415

        after = Generation(wire(Settings(**{**relay_settings, "grants": []}), gate.app.state))
        await after.start()
        gate.app.use(after)
        code, reason = await closed(socket)
        assert code == 1012
        assert "role" in reason
        await other.send("hello")
        assert await other.recv() == "hello"
        await after.stop()


async def test_an_issuer_that_is_away_ends_no_socket(gate: Gate, provider: Provider) -> None:
    async with gate.opened(provider.mint()) as socket:
        gate.app.state.verdicts.forget()
        await asyncio.sleep(0)
        await eventually(lambda: all(one.era == gate.app.state.verdicts.era for one in gate.app.relay._open))
        await socket.send("hello")
        assert await socket.recv() == "hello"


async def test_a_service_that_stops_tells_clients_to_connect_again(
    relay_settings: dict[str, Any], provider: Provider, prefect: PrefectSockets
) -> None:
    async with served(relay_settings) as gate:
        socket = await gate.connect()
        await socket.send(json.dumps({"type": "auth", "token": provider.mint()}))
        await socket.recv()
        await socket.send("an event")
        await socket.recv()
    with pytest.raises(ConnectionClosedError):
        await socket.recv()
    assert socket.close_code == 1012
    assert "an event" in prefect.opened[0].messages
