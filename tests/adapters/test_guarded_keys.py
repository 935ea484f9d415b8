"""Keys behind a bearer token and an authority of their own, as a Kubernetes API server has them."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from service.adapters.discovery import KeySource, fetch_published
from service.adapters.outbound import FetchError, open_client
from tests.support.certificates import write_certificate
from tests.support.issuer import Call, Issuer, Reply

pytestmark = pytest.mark.anyio


class Cluster(NamedTuple):
    """An API server with TLS that gives its keys to whoever has the token."""

    server: Issuer
    jwks_url: str
    ca_file: Path
    token_file: Path

    def source(self, *, token: bool = True, ca: bool = True) -> KeySource:
        return KeySource.configured(
            "https://kubernetes.default.svc.cluster.local",
            jwks_url=self.jwks_url,
            token_file=str(self.token_file) if token else "",
            ca_file=str(self.ca_file) if ca else "",
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cert_file, key_file = write_certificate(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text("s3cret.of.first\n")
    with Issuer() as server:

        def keys(call: Call) -> Reply:
            right = call.headers.get("authorization", "") == f"Bearer {token_file.read_text().strip()}"
            return Reply(server.key_set()) if right else Reply(status=401)

        server.replies["/openid/v1/jwks"] = keys
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        assert server._server is not None
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        yield Cluster(server, f"https://127.0.0.1:{server.port}/openid/v1/jwks", cert_file, token_file)


async def fetch(source: KeySource) -> bytes:
    async with open_client("test") as client:
        return (await fetch_published(client, source, 5)).jwks


async def test_they_are_fetched_with_the_token_of_the_file_as_it_is_now(cluster: Cluster) -> None:
    kid = cluster.server.key().kid
    assert kid in (await fetch(cluster.source())).decode()
    cluster.token_file.write_text("s3cret.of.second")
    assert kid in (await fetch(cluster.source())).decode()
    assert [one.headers["authorization"] for one in cluster.server.calls] == [
        "Bearer s3cret.of.first",
        "Bearer s3cret.of.second",
    ]


async def test_without_the_token_or_the_authority_there_are_none(cluster: Cluster) -> None:
    with pytest.raises(FetchError, match="answered 401"):
        await fetch(cluster.source(token=False))
    with pytest.raises(httpx.ConnectError, match="certificate"):
        await fetch(cluster.source(ca=False))
    assert [one.headers.get("authorization") for one in cluster.server.calls] == [None]


@pytest.mark.parametrize("content", [b"", b" \n", b"s3cret\nX-More: 1", b"s3cret\x00", "s3crét".encode()])
async def test_a_file_without_a_token_is_named_and_its_content_is_not(cluster: Cluster, content: bytes) -> None:
    cluster.token_file.write_bytes(content)
    with pytest.raises(FetchError) as error:
        await fetch(cluster.source())
    assert str(error.value) == f"{cluster.token_file} holds no token"
    assert not cluster.server.calls


async def test_a_missing_file_is_named(cluster: Cluster) -> None:
    cluster.token_file.unlink()
    with pytest.raises(FileNotFoundError, match="token"):
        await fetch(cluster.source())
    cluster.ca_file.unlink()
    with pytest.raises(OSError, match="No such file"):
        await fetch(cluster.source())
