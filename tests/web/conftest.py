import base64
import html
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from starlette.routing import Route

from service.adapters.users_file import hash_password
from service.gate import held_events
from service.gate.application import ForwardAuth
from service.gate.protocol import MAX_HEAD
from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from service.settings import Settings
from service.state import unproved
from service.telemetry.events import JSONFormatter
from service.web.account import AccountRoutes
from service.web.app import create_app
from service.web.login import LoginRoutes
from service.web.logout import LogoutRoutes
from service.web.own_sessions import OwnSessionRoutes
from service.web.own_tokens import OwnTokenRoutes
from service.web.page_context import PageContext
from tests.support.connection import Connection
from tests.support.issuer import Issuer as Provider
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import Gate, served

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


_LINE = re.compile(
    rb"(?P<name>[A-Za-z0-9-]+): (?P<value>(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)"
)
_OF_THE_MESSAGE = {b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"}


def is_http(path: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a call arrives as it is given where it is sent as HTTP, and has no body."""
    if sum(len(value) for _, value in headers) > MAX_HEAD:
        return False  # the server itself refuses it
    lines = all(_LINE.fullmatch(b"%b: %b" % one) and one[0] not in _OF_THE_MESSAGE for one in headers)
    return lines and path.startswith("/") and path.isascii() and path.isprintable() and not set(path) & set(" #")


def answer_of(written: bytes) -> Answer:
    """Return an answer as HTTP/1.1 writes it, read."""
    head, _, body = written.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    answer = Answer(int(status.split(" ")[1]), fields, body)
    if ("transfer-encoding", "chunked") in fields:
        chunks = re.split(rb"\r\n", body)
        answer.body = b"".join(chunks[1::2])
    return answer


@dataclass
class Caller:
    """Calls the service with exactly the bytes that are given, as a proxy would.

    Calls go through its HTTP protocol, except those that HTTP cannot express, and those with a body: they are made by
    ASGI. An empty ``peer`` has no address, as at a Unix socket or after a reset.
    """

    app: ForwardAuth
    peer: str = "127.0.0.1"
    endpoint: str = "/forward-auth/api"
    forwarded: Mapping[str, str] = field(default_factory=lambda: FORWARDED)

    async def raw(
        self, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET", body: tuple[bytes, ...] = ()
    ) -> Answer:
        if not body and method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} and is_http(path, headers):
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            written = await Connection(self.app, self.peer).send(
                f"{method} {path} HTTP/1.1\r\n".encode() + lines + b"\r\n"
            )
            return answer_of(written)
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "client": (self.peer, 4711) if self.peer else None,
        }
        sent: list[dict[str, Any]] = []

        chunks = list(body)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": chunks.pop(0) if chunks else b"", "more_body": bool(chunks)}

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


def routes_of_pages(app: ForwardAuth) -> list[tuple[str, str]]:
    """Return path and method of each route under /_auth/."""
    context = PageContext(lambda: app.wiring)
    all_pages = LoginRoutes, LogoutRoutes, AccountRoutes, OwnTokenRoutes, OwnSessionRoutes
    routes = [one for pages in all_pages for one in pages(context).router.routes]
    found = [(f"/_auth{one.path}", verb) for one in routes if isinstance(one, Route) for verb in one.methods or ()]
    assert ("/_auth/login", "POST") in found
    return found


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


# people ---------------------------------------------------------------------------------------------------

ORIGIN = "https://prefect.example.com"
SESSION_KEY = "a-secret-of-more-than-thirty-two-characters"
PASSWORD = "correct horse battery staple"
COOKIE = "__Host-prefect-gate"
WRITE = {"method": "POST", "sec_fetch_mode": "cors", "sec_fetch_site": "same-origin"}


class Person:
    """A person's browser: keeps cookies, says of a request what browsers say, and follows no redirect by itself."""

    def __init__(self, app: ForwardAuth, origin: str = ORIGIN, *, address: str = "203.0.113.7") -> None:
        self.app = app
        self.origin = origin
        self.scheme, _, self.host = origin.partition("://")
        self.address = address
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
        self.client = httpx.AsyncClient(transport=transport, base_url=origin)

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self.client.cookies.jar}

    def _routed(self) -> dict[str, str]:
        return {"x-forwarded-proto": self.scheme, "x-forwarded-host": self.host, "x-forwarded-for": self.address}

    async def open(self, path: str, **headers: str) -> httpx.Response:
        """Open a page of the service, by its address or by a link."""
        says = {"accept": "text/html,*/*", "sec-fetch-mode": "navigate", "sec-fetch-site": "none", **_named(headers)}
        return await self.client.get(path, headers=self._routed() | says)

    async def submit(self, path: str, fields: Mapping[str, str], **headers: str) -> httpx.Response:
        """Send a form, as one of this very site's pages unless the headers say otherwise; an empty one is left out."""
        says = {
            "accept": "text/html,*/*",
            "origin": self.origin,
            "sec-fetch-mode": "navigate",
            "sec-fetch-site": "same-origin",
            **_named(headers),
        }
        sent = self._routed() | {name: value for name, value in says.items() if value}
        return await self.client.post(path, data=dict(fields), headers=sent)

    async def sign_in(self, username: str = "alice", password: str = PASSWORD, **fields: str) -> httpx.Response:
        """Open the sign-in page, and send its form filled in."""
        page = await self.open("/_auth/login")
        return await self.submit("/_auth/login", {"username": username, "password": password, **hidden(page), **fields})

    async def ask(
        self, target: str = "/v2/dashboard", method: str = "GET", *, scheme: str = "", gate: str = "ui", **headers: str
    ) -> httpx.Response:
        """Ask the gate as Traefik does about a request of this browser; it opens a page unless headers say otherwise.

        An empty header is left out.
        """
        says = {
            "accept": "text/html,*/*",
            "sec-fetch-mode": "navigate",
            "sec-fetch-site": "none",
            "x-forwarded-method": method,
            "x-forwarded-uri": target,
            **_named(headers),
        }
        sent = self._routed() | {name: value for name, value in says.items() if value}
        sent["x-forwarded-proto"] = scheme or self.scheme
        return await self.client.get(f"/forward-auth/{gate}", headers=sent)

    async def fetch(self, target: str = "/api/flows/filter", method: str = "POST", **headers: str) -> httpx.Response:
        """Ask the gate about what a page of this site fetches by itself."""
        says = {"accept": "application/json", "sec_fetch_mode": "cors", "sec_fetch_site": "same-origin"}
        return await self.ask(target, method, **{**says, **headers})


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def hidden(page: httpx.Response) -> dict[str, str]:
    """Return the hidden fields of a page's form."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text)
    return {name: html.unescape(value) for name, value in found}


def shown(page: httpx.Response) -> str:
    """Return what a page says: its text, without markup."""
    body = page.text.partition("<body>")[2] or page.text
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


def set_cookies(response: httpx.Response) -> dict[str, str]:
    """Return the cookies that an answer sets, with their attributes, by name."""
    return {one.partition("=")[0]: one for one in response.headers.get_list("set-cookie")}


@pytest.fixture(scope="session")
def people_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people") / "users"
    path.write_text(f"alice:{hash_password(PASSWORD, 4)}\nbob:{hash_password('another pass phrase', 4)}\n")
    return path


@pytest.fixture
def people_settings(people_file: Path) -> dict[str, Any]:
    """Return the settings of a laptop's first minute, but for a key that the tests know."""
    return {"users": {"file": people_file, "role": "viewer"}, "session": {"keys": SESSION_KEY}}


@pytest.fixture
async def site(people_settings: dict[str, Any]) -> AsyncIterator[ForwardAuth]:
    app = create_app(Settings(**people_settings))
    await app.start()
    yield app
    await app.stop()


@pytest.fixture
def person(site: ForwardAuth) -> Person:
    return Person(site)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what gives all that the service has logged, as it would be written."""
    caplog.set_level(logging.DEBUG, logger="service")
    phases: tuple[Literal["setup", "call"], ...] = ("setup", "call")
    return lambda: "\n".join(JSONFormatter().format(one) for phase in phases for one in caplog.get_records(phase))


# WebSockets -----------------------------------------------------------------------------------------------


@pytest.fixture
async def prefect() -> AsyncIterator[PrefectSockets]:
    async with PrefectSockets().running() as running:
        yield running


@pytest.fixture
def relay_users(tmp_path: Path) -> Path:
    """Return a users file that a test may change."""
    file = tmp_path / "users"
    file.write_text("".join(f"{name}:{hash_password('secret', 4)}\n" for name in ("alice", "etl", "other")))
    return file


@pytest.fixture
def relay_settings(provider: Provider, relay_users: Path, prefect: PrefectSockets) -> dict[str, Any]:
    return {
        "issuer": {"url": provider.url, "audiences": "prefect", "role": "worker", "leeway": 0},
        "users": {"file": relay_users, "role": "viewer", "reload": 0.1},
        "grants": [{"roles": ["worker"], "issuer": "local", "users": ["etl", "other"]}],
        "prefect": {"url": prefect.url},
    }


@pytest.fixture
async def gate(relay_settings: dict[str, Any]) -> AsyncIterator[Gate]:
    async with served(relay_settings) as running:
        yield running


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of a WebSocket for its credential, and of events whose client has left."""
    monkeypatch.setattr(unproved, "FIRST_MESSAGE_SECONDS", 0.3)
    monkeypatch.setattr(held_events, "LAST_SECONDS", 0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where the issued tokens are."""
    return tmp_path / "tokens"


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    """Return the ledger as another process has it open."""
    opened = Ledger(SQLite(folder), rotate=86_400)
    opened.open()
    return opened
