"""Whatever makes the real server tell a block's secret is judged as asking for it."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

import pytest

from service.core.prefect.secret_flags import asked_in_body, asked_in_query
from tests.support.prefect import Server

SECRET = "told-in-plain-text"


@dataclass(frozen=True)
class Block:
    """A block with a secret in it, on the real server."""

    server: Server
    id: str

    def tells(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> bool:
        """Say whether an answer has the secret in it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, f"/api{path}", body=body, headers={"Content-Type": content_type})
            return SECRET.encode() in connection.getresponse().read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def block(prefect_server: Server) -> Block:
    kind = prefect_server.ask("GET", "/block_types/slug/secret")["id"]
    schema = prefect_server.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
    made = {"name": "told", "block_type_id": kind, "block_schema_id": schema[0]["id"], "data": {"value": SECRET}}
    return Block(prefect_server, prefect_server.ask("POST", "/block_documents/", made)["id"])


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "on", "t", "Y", "%74rue", "0&include_secrets=1"])
def test_each_route_that_tells_secrets_when_its_query_asks_is_judged(block: Block, value: str) -> None:
    query = f"include_secrets={value}"
    assert asked_in_query(query)
    for path in (
        f"/block_documents/{block.id}",
        "/block_types/slug/secret/block_documents",
        "/block_types/slug/secret/block_documents/name/told",
    ):
        assert block.tells("GET", f"{path}?{query}")
        assert not block.tells("GET", path)


@pytest.mark.parametrize(
    "query",
    [
        "include_secrets=false",
        "include_secrets=0",
        "include_secrets=off",
        "INCLUDE_SECRETS=true",
    ],
)
def test_a_query_that_is_no_question_is_told_nothing(block: Block, query: str) -> None:
    assert not asked_in_query(query)
    assert not block.tells("GET", f"/block_documents/{block.id}?{query}")


def test_a_query_that_older_servers_would_split_counts_as_a_question(block: Block) -> None:
    assert asked_in_query("x;include_secrets=1")
    assert not block.tells("GET", f"/block_documents/{block.id}?x;include_secrets=1")


@pytest.mark.parametrize(
    "body",
    [
        b'{"include_secrets": true}',
        b'{"include_secrets": 1}',
        b'{"include_secrets": 1.0}',
        b'{"include_secrets": "yes"}',
        b'{"include\\u005fsecrets": "T"}',
        b'{"include_secrets": false, "include_secrets": true}',
        b'\xef\xbb\xbf{"include_secrets": true}',
        '{"include_secrets": true}'.encode("utf-16"),
    ],
)
def test_each_body_that_makes_the_server_tell_is_judged(block: Block, body: bytes) -> None:
    assert block.tells("POST", "/block_documents/filter", body)
    assert block.tells("POST", "/block_documents/filter", body, "application/vnd.any+json")
    assert asked_in_body(body)


@pytest.mark.parametrize("body", [b"{}", b'{"include_secrets": false}', b'{"limit": 10, "offset": 0}'])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_question_is_told_nothing(block: Block, body: bytes, content_type: str) -> None:
    assert not asked_in_body(body)
    assert not block.tells("POST", "/block_documents/filter", body, content_type)


def test_secrets_are_told_by_no_other_read_of_blocks(block: Block) -> None:
    """The body's flag counts on the one route that reads it, the query's on those that do."""
    asking = b'{"include_secrets": true}'
    assert not block.tells("POST", "/block_documents/filter?include_secrets=true", b"{}")
    for path in ("/block_documents/count", "/block_types/filter", "/block_schemas/filter"):
        assert not block.tells("POST", f"{path}?include_secrets=true", asking)
