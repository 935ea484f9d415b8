"""The agent's proxy, with a real child, over real sockets: HTTP and WebSockets, refusals and outages."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from service.agent.connections import Pool, Upstream
from service.agent.proxy import Proxy
from service.agent.sources import TokenFile
from service.agent.tokens import Keeper
from tests.agent.conftest import Agent, StartAgent
from tests.support.agent_gate import AgentGate
from tests.support.issuer import Call, Issuer, Reply
from tests.support.upstream import PARTS_OF_STREAM
from tests.support.waiting import wait_until

SECRET = "s3cret-of-the-client"


class Tokens:
    """Lets an issuer give token after token to one client."""

    def __init__(self, issuer: Issuer, *tokens: str | Reply, expires_in: int = 300) -> None:
        self.given = 0
        self._rest = list(tokens)
        self._expires_in = expires_in
        issuer.metadata["token_endpoint"] = f"{issuer.url}/token"
        issuer.replies["/token"] = self._reply
        self.options = ("--issuer", issuer.url, "--client-id", "worker")
        self.env = {"FORWARD_AUTH_AGENT_CLIENT_SECRET": SECRET}

    def _reply(self, _: Call) -> Reply:
        self.given += 1
        token = self._rest.pop(0) if len(self._rest) > 1 else self._rest[0]
        return token if isinstance(token, Reply) else Reply({"access_token": token, "expires_in": self._expires_in})


@pytest.fixture
def agent(start: StartAgent, gate: AgentGate) -> Agent:
    return start("--url", f"{gate.url}/api", "--token-command", "echo good")


def test_a_request_gets_the_credential_and_keeps_the_rest(agent: Agent, gate: AgentGate) -> None:
    headers = {"Authorization": "Bearer mine", "Connection": "keep-alive, X-Hop", "X-Hop": "1", "X-Kept": "2"}
    answer = httpx.post(f"{agent.url}/flows/filter?a=%2F", json={"limit": 1}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["set-cookie"] == "theme=dark; Path=/"
    (seen,) = gate.received
    assert (seen.method, seen.path) == ("POST", "/api/flows/filter?a=%2F")
    assert seen.values("authorization") == ["Bearer good"]
    assert seen.values("host") == [f"127.0.0.1:{gate.port}"]
    assert (seen.values("x-hop"), seen.values("x-kept")) == ([], ["2"])


@pytest.mark.parametrize("path", ["/api/flows", "/", "/{prefix}/other", "/{prefix}/apis", "/x{prefix}/api"])
def test_nothing_is_passed_on_without_the_secret(agent: Agent, gate: AgentGate, path: str) -> None:
    origin, prefix = agent.url.rsplit("/", 2)[0], agent.url.rsplit("/", 2)[1]
    assert httpx.get(origin + path.replace("{prefix}", prefix)).status_code == 404
    assert gate.received == []


@pytest.mark.parametrize("size", [0, 1000, 1024 * 1024, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_arrive_whole(agent: Agent, gate: AgentGate, size: int, *, chunked: bool) -> None:
    body = os.urandom(size)
    parts: Any = (body[start : start + 100_000] for start in range(0, size, 100_000)) if chunked else body
    with httpx.Client() as client:
        for _ in range(2):
            answer = client.post(f"{agent.url}/logs/", content=parts if not chunked else iter([body]))
            assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()
            assert answer.json()["length"] == size
    padded = httpx.get(f"{agent.url}/flows", headers={"X-Padding": str(size)})
    assert len(padded.content) >= size


def test_an_answer_is_streamed(agent: Agent, gate: AgentGate) -> None:
    with httpx.stream("GET", f"{agent.url}/stream") as answer:
        parts = answer.iter_bytes()
        assert next(parts) == PARTS_OF_STREAM[0]
        gate.release.set()
        assert b"".join(parts) == PARTS_OF_STREAM[1]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("DELETE", 204), ("GET", 304), ("GET", 500)])
def test_other_answers_and_the_next_request(agent: Agent, method: str, status: int) -> None:
    with httpx.Client() as client:
        path = "flows" if status == 200 else f"status/{status}"
        assert client.request(method, f"{agent.url}/{path}").status_code == status
        assert client.get(f"{agent.url}/flows").status_code == 200


def test_a_refused_token_is_renewed_once_for_all_and_the_requests_are_repeated(
    start: StartAgent, gate: AgentGate, issuer: Issuer
) -> None:
    tokens = Tokens(issuer, "revoked", "good")
    agent = start("--url", f"{gate.url}/api", *tokens.options, env=tokens.env)

    def post(number: int) -> httpx.Response:
        return httpx.post(f"{agent.url}/flow_runs/{number}/set_state", json={"number": number})

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(post, range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["length"] for answer in answers} == {
        len(json.dumps({"number": n}).replace(" ", "")) for n in (1, 10)
    }
    assert len(gate.received) == 20
    assert tokens.given == 2
    call = issuer.calls[0]
    assert call.form == {"grant_type": "client_credentials"}
    assert call.headers["authorization"].startswith("Basic ")
    assert all(secret not in agent.process.text() for secret in (SECRET, "good", "revoked", agent.url.split("/")[3]))


def test_a_caller_who_is_refused_for_good_is_told_so(start: StartAgent, gate: AgentGate, issuer: Issuer) -> None:
    tokens = Tokens(issuer, "revoked")
    agent = start("--url", f"{gate.url}/api", *tokens.options, env=tokens.env)
    answers = [httpx.get(f"{agent.url}/flows") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401] * 5
    assert answers[0].json() == {"code": "refused"}
    assert tokens.given <= 4
    assert agent.process.text().count("refuses the credential (401)") == 1


def test_a_token_is_replaced_before_it_ends(start: StartAgent, gate: AgentGate, issuer: Issuer) -> None:
    tokens = Tokens(issuer, "first", "good", expires_in=8)
    gate.accepted.add("first")
    agent = start("--url", f"{gate.url}/api", *tokens.options, env=tokens.env)
    deadline = time.monotonic() + 9

    def asked() -> bool:
        assert httpx.get(f"{agent.url}/flows").status_code == 200
        return time.monotonic() > deadline

    wait_until(asked, timeout=20, what="the end of the first token")
    assert gate.refused == []
    assert {seen.values("authorization")[0] for seen in gate.received} == {"Bearer first", "Bearer good"}


def test_a_request_waits_while_there_is_no_valid_token(start: StartAgent, gate: AgentGate, issuer: Issuer) -> None:
    down = [Reply({"error": "temporarily_unavailable"}, 503)] * 3
    tokens = Tokens(issuer, "first", *down, "good", expires_in=4)
    agent = start("--url", f"{gate.url}/api", *tokens.options, env=tokens.env)
    agent.process.wait_for_line("No new token from .*: it answered 503 .temporarily_unavailable.", timeout=20)
    wait_until(lambda: tokens.given >= 3, timeout=20, what="the end of the first token")
    assert httpx.get(f"{agent.url}/flows", timeout=30).status_code == 200
    assert agent.process.text().count("No new token from") == 1
    assert "There is a new token from" in agent.process.text()
    assert "Bearer first" not in gate.refused


def test_a_file_is_read_again_when_it_changes(
    start: StartAgent, gate: AgentGate, issuer: Issuer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    old, new, newest = issuer.mint(lifetime=600), issuer.mint(lifetime=600, n=2), issuer.mint(lifetime=600, n=3)
    gate.accepted |= {new, newest}
    file.write_text(f"{old}\n")
    agent = start("--url", f"{gate.url}/api", "--token-file", str(file))
    file.write_text(f"{new}\n")
    assert httpx.get(f"{agent.url}/flows").status_code == 200
    gate.accepted.discard(new)
    file.write_text(issuer.mint(lifetime=-5))
    agent.process.wait_for_line("No new token from .*token: its token has ended", timeout=10)
    file.write_text(newest)
    assert httpx.get(f"{agent.url}/flows").status_code == 200


def test_a_gate_that_is_away_is_waited_for(start: StartAgent) -> None:
    gate = AgentGate("good")
    agent = start("--url", f"{gate.url}/api", "--token-command", "echo good")
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.post, f"{agent.url}/flows/", content=b"body", timeout=40)
        agent.process.wait_for_line("cannot be reached: .*Requests wait", timeout=10)
        with gate:
            assert answer.result().status_code == 200
    assert len(gate.received) == 1
    assert "can be reached again" in agent.process.text()


def test_a_gate_that_restarts_between_two_requests_is_no_error(agent: Agent, gate: AgentGate) -> None:
    with httpx.Client() as client:
        assert client.post(f"{agent.url}/flows/", content=b"1").status_code == 200
        gate.__exit__()
        again = AgentGate("good")
        again.port, again._server.config.port = gate.port, gate.port
        with again:
            assert client.post(f"{agent.url}/flows/", content=b"2").status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("away", ["gate", "token"])
async def test_what_cannot_be_passed_on_in_time_is_503(gate: AgentGate, tmp_path: Path, away: str) -> None:
    (tmp_path / "token").write_text("good" if away == "gate" else "")
    keeper = Keeper(TokenFile(tmp_path / "token"))
    if away == "gate":
        gate.__exit__()
    proxy = Proxy(Pool(Upstream.parse(f"{gate.url}/api", ssl_context())), keeper, hold=0.5)
    fetching = asyncio.ensure_future(keeper.run())
    url = await proxy.listen()
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/flows")
    fetching.cancel()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def ssl_context() -> Any:
    import ssl  # noqa: PLC0415

    return ssl.create_default_context()


def websocket_url(agent: Agent) -> str:
    return agent.url.replace("http:", "ws:") + "/events/in"


def test_a_websocket_gets_the_credential_and_passes_messages_both_ways(agent: Agent, gate: AgentGate) -> None:
    with connect(websocket_url(agent), subprotocols=["prefect"], proxy=None, max_size=None) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "prefect"
        json.loads(socket.recv(timeout=10))
        first = json.dumps({"type": "auth", "token": None})
        large = "x" * 3_000_000
        for message in (first, large, "last"):
            socket.send(message)
            assert socket.recv(timeout=10) == message
    (seen,) = gate.received
    assert seen.path == "/api/events/in"
    assert seen.values("authorization") == ["Bearer good"]


def test_the_close_code_of_a_websocket_is_kept(agent: Agent) -> None:
    with connect(websocket_url(agent), proxy=None) as socket:
        socket.recv(timeout=10)
        socket.send("close 1012")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "renewed")


def test_a_refused_websocket_is_opened_with_a_new_token(start: StartAgent, gate: AgentGate, issuer: Issuer) -> None:
    tokens = Tokens(issuer, "revoked", "good")
    agent = start("--url", f"{gate.url}/api", *tokens.options, env=tokens.env)
    with connect(websocket_url(agent), proxy=None) as socket:
        socket.recv(timeout=10)
    gate.accepted.clear()
    with pytest.raises(InvalidStatus) as refused:
        connect(websocket_url(agent), proxy=None)
    assert refused.value.response.status_code == 401
