"""TLS to the gate is verified: who cannot prove its name is not sent a token."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from service.agent.connections import Pool, Upstream
from service.agent.proxy import Proxy
from service.agent.sources import TokenCommand
from service.agent.tokens import Keeper
from tests.support.certificates import write_certificate

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("host", "trusted", "status"),
    [("localhost", True, 200), ("localhost", False, 503), ("127.0.0.2", True, 503)],
    ids=["good", "of an unknown authority", "of another name"],
)
async def test_a_token_goes_to_a_verified_host_alone(tmp_path: Path, host: str, status: int, *, trusted: bool) -> None:
    certificate, key = write_certificate(tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    received = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, ["127.0.0.1", "127.0.0.2"], 0, ssl=server_side)
    ports = {one.getsockname()[0]: one.getsockname()[1] for one in server.sockets}
    url = f"https://{host}:{ports.get(host, ports['127.0.0.1'])}/api"
    tls = ssl.create_default_context(cafile=str(certificate) if trusted else None)
    keeper = Keeper(TokenCommand(("echo", "good")))
    fetching = asyncio.ensure_future(keeper.run())
    async with asyncio.timeout(30), httpx.AsyncClient(timeout=20) as client:
        await keeper.token(asyncio.get_running_loop().time() + 20)
        here = await Proxy(Pool(Upstream.parse(url, tls)), keeper, hold=2).listen()
        assert (await client.get(f"{here}/flows")).status_code == status
    fetching.cancel()
    server.close()
    assert len(received) == (status == 200)
