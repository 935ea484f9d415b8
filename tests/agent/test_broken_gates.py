"""What the worker sees of a gate, or of a proxy before it, that does not keep to the rules."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

import h11
import httpx
import pytest

from service.agent.connections import Pool, Upstream, response_on
from tests.agent.conftest import Agent, StartAgent

Begin: TypeAlias = Callable[..., Agent]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def play(start: StartAgent) -> Iterator[Begin]:
    """Return what starts an agent in front of a server that answers each connection's head with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def serve(answers: tuple[bytes, ...], *, keep: bool) -> None:
        with contextlib.suppress(OSError):
            for answer in answers:
                connection, _ = listener.accept()
                opened.append(connection)
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                    head += data
                connection.sendall(answer)
                if not keep:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):  # as proxies do: bytes that nobody reads would reset the connection
                        pass
                    connection.close()

    def begin(*answers: bytes, keep: bool = False) -> Agent:
        threading.Thread(target=serve, args=(answers,), kwargs={"keep": keep}, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        return start("--url", url, "--token-command", "echo good")

    yield begin
    for one in (listener, *opened):
        one.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n"], ids=["none", "half", "nonsense"])
def test_no_answer_is_502(play: Begin, answer: bytes) -> None:
    agent = play(answer)
    assert httpx.post(f"{agent.url}/flows/", content=b"1").status_code == 502


def test_an_answer_that_ends_early_is_no_answer(play: Begin) -> None:
    agent = play(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{agent.url}/flows")


def test_two_answers_to_one_request_do_not_reach_the_next_one(play: Begin) -> None:
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    agent = play(OK + forged, OK, keep=True)
    with httpx.Client() as client:
        assert [client.get(f"{agent.url}/flows").text for _ in range(2)] == ["ok", "ok"]


@pytest.mark.parametrize("keep", [False, True], ids=["closes", "reads-no-further"])
@pytest.mark.parametrize("status", [401, 413])
def test_an_answer_to_half_a_body_arrives(play: Begin, status: int, keep: bool) -> None:  # noqa: FBT001
    agent = play(b"HTTP/1.1 %d No\r\nContent-Length: 4\r\n\r\nstop" % status, keep=keep)
    with socket.create_connection(("127.0.0.1", int(agent.url.split(":")[2].split("/")[0]))) as client:
        client.settimeout(20)
        path = agent.url.partition("//")[2].partition("/")[2]
        client.sendall(b"POST /%s/logs/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" % path.encode())
        client.sendall(b"x" * 2_000_000)
        assert client.recv(100).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.anyio
async def test_a_reset_does_not_take_back_the_answer_before_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url, tls = f"http://127.0.0.1:{listener.getsockname()[1]}/api", ssl.create_default_context()
        connection = await Pool(Upstream.parse(url, tls)).take(asyncio.get_running_loop().time() + 10)
        await connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]), h11.EndOfMessage())
        server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
        server.sendall(OK)
        async with asyncio.timeout(10):
            while not connection.reader.touched:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            server.close()
            while not connection.writer.is_closing():
                await asyncio.sleep(0.01)
            assert (await response_on(connection)).status_code == 200


def test_an_interim_answer_is_not_the_answer(play: Begin) -> None:
    agent = play(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + OK)
    assert httpx.get(f"{agent.url}/flows").text == "ok"


def test_an_answer_without_length_ends_with_its_connection(play: Begin) -> None:
    agent = play(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    assert httpx.get(f"{agent.url}/flows").text == "until the end"


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST %s/flows HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_a_request_that_is_none_is_400(play: Begin, head: bytes) -> None:
    agent = play(OK)
    with socket.create_connection(("127.0.0.1", int(agent.url.split(":")[2].split("/")[0]))) as client:
        client.settimeout(20)
        path = "/" + agent.url.partition("//")[2].partition("/")[2]
        client.sendall(head.replace(b"%s", path.encode()))
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
