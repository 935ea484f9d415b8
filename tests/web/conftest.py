import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.adapters.users import hash_password
from service.gate import ForwardAuth
from service.settings import Settings
from service.web.app import create_app
from tests.support.issuer import Issuer as Provider

FORWARDED = {
    "X-Forwarded-Method": "POST",
    "X-Forwarded-Uri": "/api/flows/filter",
    "X-Forwarded-Host": "prefect.example.com",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "203.0.113.7",
}


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        found = [value for key, value in self.headers if key == name]
        assert len(found) == 1, (name, found)
        return found[0]

    def json(self) -> dict[str, Any]:
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed


@dataclass
class Caller:
    """Calls the ASGI application with exactly the bytes that are given, as a proxy would."""

    app: ForwardAuth
    peer: str = "127.0.0.1"
    endpoint: str = "/forward-auth/api"
    forwarded: Mapping[str, str] = field(default_factory=lambda: FORWARDED)

    async def raw(self, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET") -> Answer:
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "client": (self.peer, 4711),
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        await self.app(scope, receive, send)
        decoded = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in sent[0]["headers"]]
        return Answer(sent[0]["status"], decoded, b"".join(one.get("body", b"") for one in sent[1:]))

    async def __call__(self, authorization: str | None = None, endpoint: str = "", **changes: str | None) -> Answer:
        given = {**self.forwarded, **{name.replace("_", "-"): value for name, value in changes.items()}}
        headers = [
            (name.lower().encode(), value.encode("latin-1")) for name, value in given.items() if value is not None
        ]
        if authorization is not None:
            headers.append((b"authorization", authorization.encode("latin-1")))
        return await self.raw(endpoint or self.endpoint, headers)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    with Provider("RS256") as running:
        yield running


@pytest.fixture(scope="session")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users"
    path.write_text(f"alice:{hash_password('secret', 4)}\n")
    return path


@pytest.fixture
def settings(provider: Provider, users_file: Path) -> dict[str, Any]:
    return {
        "issuer": {"url": provider.url, "audiences": "prefect", "role": "worker"},
        "users": {"file": users_file, "role": "viewer"},
    }


@pytest.fixture
async def call(settings: dict[str, Any]) -> AsyncIterator[Caller]:
    app = create_app(Settings(**settings))
    await app.start()
    yield Caller(app)
    await app.stop()


Forge = Callable[[Provider], str]
