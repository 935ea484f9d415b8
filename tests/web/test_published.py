"""What the service publishes as an issuer, and whether others can verify its tokens and find its token endpoint."""

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.adapters.discovery import parse_discovery
from service.agent.sources import ClientCredentials
from service.gate.application import ForwardAuth
from service.issuing.ledger import LEAD, Ledger
from service.issuing.sqlite import SQLite
from service.settings import Settings
from service.web.app import create_app
from service.web.published import MAX_AGE, metadata_of
from tests.support.relay_gate import Gate, served
from tests.support.waiting import free_port
from tests.web.conftest import Answer, Caller

pytestmark = pytest.mark.anyio
KEYS = "/_auth/.well-known/jwks.json"
METADATA = (
    "/_auth/.well-known/openid-configuration",
    "/_auth/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/_auth",
)


@pytest.fixture
async def issuing(folder: Path) -> AsyncIterator[tuple[Gate, str]]:
    """Return a service that issues tokens, and its URL as an issuer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/_auth"
    async with served({"tokens": {"folder": folder, "issuer": url}}, port) as gate:
        yield gate, url


async def get(app: ForwardAuth, path: str, method: str = "GET") -> Answer:
    return await Caller(app).raw(path, [(b"host", b"prefect-m2m.example.com")], method)


async def test_another_verifier_finds_the_keys_and_accepts_a_token(issuing: tuple[Gate, str], folder: Path) -> None:
    """The other one is this service again, with the first one as an issuer like any other."""
    _, url = issuing
    with Ledger(SQLite(folder), rotate=86_400) as ledger:
        token, _ = ledger.issue("etl", "worker", 3_600, url, "prefect")
    verifier = create_app(Settings(issuer={"url": url, "audiences": "prefect", "role": "viewer", "allow_http": True}))
    await verifier.start()
    try:
        answer = await Caller(verifier)(f"Bearer {token}", X_Forwarded_Uri="/api/flows/filter")
        assert (answer.status, answer.header("x-auth-request-user")) == (200, "etl")
        assert answer.header("x-auth-request-issuer") == url
        head, payload, signature = token.split(".")
        forged = ".".join([head, payload, ("A" if signature[0] != "A" else "B") + signature[1:]])
        assert (await Caller(verifier)(f"Bearer {forged}")).status == 401
    finally:
        await verifier.stop()


async def test_an_agent_finds_the_token_endpoint_by_the_issuer_alone(issuing: tuple[Gate, str], folder: Path) -> None:
    gate, url = issuing
    with Ledger(SQLite(folder), rotate=86_400) as ledger:
        secret = ledger.add_machine("worker", "worker")
    token = await ClientCredentials("worker", secret, ssl.create_default_context(), issuer=url).fetch()
    assert (await Caller(gate.app)(f"Bearer {token.value}")).status == 200


async def test_the_documents_name_the_issuer_as_it_is_set_and_can_be_cached(issuing: tuple[Gate, str]) -> None:
    gate, url = issuing
    async with httpx.AsyncClient() as client:
        for path in METADATA:
            answer = await client.get(f"http://127.0.0.1:{gate.port}{path}")
            assert answer.headers["cache-control"] == f"public, max-age={MAX_AGE}"
            document = parse_discovery(answer.content, url)
            assert document["token_endpoint"] == f"{url}/token"
            keys = await client.get(document["jwks_uri"])
            assert keys.status_code == 200
            assert keys.headers["cache-control"] == f"public, max-age={MAX_AGE}"
    assert MAX_AGE < LEAD, "who caches the keys must know a new one before it signs"


async def test_only_public_members_of_keys_are_published(issuing: tuple[Gate, str], folder: Path) -> None:
    gate, _ = issuing
    (key,) = (await get(gate.app, KEYS)).json()["keys"]
    assert key.keys() == {"kty", "crv", "x", "kid", "alg", "use"}
    with Ledger(SQLite(folder), rotate=86_400) as ledger:
        assert json.loads(ledger.changes_since(-1).jwks)["keys"] == [key]


async def test_where_no_tokens_are_issued_nothing_is_published(users_file: Path) -> None:
    app = create_app(Settings(users={"file": users_file, "role": "viewer"}))
    await app.start()
    try:
        for path in (KEYS, *METADATA):
            answer = await get(app, path)
            assert (answer.status, answer.json()["code"]) == (404, "not_found")
    finally:
        await app.stop()


async def test_an_issuer_that_is_a_name_has_keys_and_no_document(folder: Path) -> None:
    app = create_app(Settings(tokens={"folder": folder}))
    await app.start()
    try:
        assert (await get(app, KEYS)).status == 200
        assert {(await get(app, path)).status for path in METADATA} == {404}
        assert {(await get(app, path, "POST")).status for path in (KEYS, *METADATA)} <= {405, 415}
        assert (await get(app, "/.well-known/oauth-authorization-server")).status == 404
    finally:
        await app.stop()


@pytest.mark.parametrize(
    ("issuer", "expected"),
    [
        ("https://prefect-m2m.example.com/_auth", "https://prefect-m2m.example.com/_auth/token"),
        ("https://prefect-m2m.example.com", "https://prefect-m2m.example.com/_auth/token"),
        ("https://prefect-m2m.example.com:8443/_auth", "https://prefect-m2m.example.com:8443/_auth/token"),
        ("prefect-forward-auth", None),
        ("urn:prefect", None),
        ("https:prefect", None),
        ("https://prefect.example.com/_auth?x", None),
        ("https://prefect.example.com/_auth#x", None),
    ],
)
def test_the_token_endpoint_of_an_issuer(issuer: str, expected: Any) -> None:
    document = metadata_of(issuer)
    assert (document and document["token_endpoint"]) == expected
    assert document is None or document["issuer"] == issuer
