"""Measure the relay: what idle WebSockets take, and what a frame waits. `python -m tests.bench.sockets`.

The upstream is a stand-in in this process, which echoes. The service is a process of its own.
"""

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from service.adapters.users_file import hash_password
from tests.bench.stage import Stage, resident_mb

PREFECT = Subprotocol("prefect")
EVENTS = "/api/events/in"
FROM_THE_PROXY = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "prefect.example.com",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Proto": "wss",
    "X-Real-Ip": "203.0.113.7",
}
FRAME = "x" * 1_000  # about what an event takes
AT_ONCE = 20
SETTLED_SECONDS = 5.0  # until the web application of the service is loaded


class SocketStage(Stage):
    """The issuer and the users file; the service starts when the upstream is there."""

    def _start_all(self) -> None:
        self._stack.enter_context(self.issuer)
        self.users.write_text(f"bench:{hash_password(self.password, 4)}\n")


async def echo(connection: ServerConnection) -> None:
    """Answer the first message as Prefect does, and send each further one back."""
    with suppress(ConnectionClosed):
        await connection.recv()
        await connection.send('{"type": "auth_success"}')
        while True:
            await connection.send(await connection.recv())


async def opened(url: str, token: str | None) -> ClientConnection:
    """Return a WebSocket that a client of Prefect has opened."""
    socket = await connect(
        url + EVENTS,
        subprotocols=[PREFECT],
        additional_headers=FROM_THE_PROXY,
        compression=None,
        proxy=None,
        ping_interval=None,
        open_timeout=60,
    )
    await socket.send(json.dumps({"type": "auth", "token": token}))
    await socket.recv()
    return socket


async def times_ms(socket: ClientConnection, frames: int) -> list[float]:
    """Return how long each of some frames takes to the upstream and back."""
    times = []
    for _ in range(frames):
        began = time.perf_counter()
        await socket.send(FRAME)
        await socket.recv()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def measure(stage: Stage, count: int, rounds: int) -> dict[str, float]:
    """Return the figures with ``count`` idle WebSockets open."""
    async with serve(
        echo, "127.0.0.1", 0, subprotocols=[PREFECT], compression=None, ping_interval=None, backlog=1_000
    ) as upstream:
        port = upstream.sockets[0].getsockname()[1]
        prefect = {"FORWARD_AUTH_PREFECT__URL": f"http://127.0.0.1:{port}"}
        process, gate = await asyncio.to_thread(lambda: stage.service(core=None, **prefect))
        relay = gate.replace("http://", "ws://").replace("/forward-auth/", "/relay/")
        token = stage.tokens(1)[0]
        direct, busy = await opened(f"ws://127.0.0.1:{port}", None), await opened(relay, token)
        await times_ms(busy, 500)
        await asyncio.sleep(SETTLED_SECONDS)
        before = resident_mb(process)
        idle: list[ClientConnection] = []
        while len(idle) < count:
            idle += await asyncio.gather(*(opened(relay, token) for _ in range(min(AT_ONCE, count - len(idle)))))
        await asyncio.sleep(SETTLED_SECONDS)
        grown = resident_mb(process) - before
        taken: dict[str, list[float]] = {"direct": [], "relayed": []}
        for _ in range(rounds):
            taken["direct"] += await times_ms(direct, 300)
            taken["relayed"] += await times_ms(busy, 300)
        p50 = {name: statistics.median(times) for name, times in taken.items()}
        process.kill()
        return {
            "idle_sockets": count,
            "idle_sockets_mb": grown,
            "kb_for_each": grown * 1024 / count,
            "direct_p50_ms": p50["direct"],
            "relayed_p50_ms": p50["relayed"],
            "added_p50_ms": p50["relayed"] - p50["direct"],
        }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="idle WebSockets")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a frame, in turns")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder, SocketStage(Path(folder)) as stage:
        figures = asyncio.run(measure(stage, options.count, options.rounds))
    print("| figure | value |\n| --- | ---: |")
    for name, value in figures.items():
        print(f"| {name} | {value:,.2f} |")


if __name__ == "__main__":
    main()
