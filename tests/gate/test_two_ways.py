"""Generated verify calls, each sent the short way to one service and by ASGI to another: both say and count the same.

The two services differ in nothing but the way. All calls come in the same order, so what one remembers the other does.
"""

import base64
import os
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from service.adapters.users_file import hash_password
from service.gate.application import ForwardAuth
from service.gate.protocol import BoundedHeadProtocol
from service.gate.verify_protocol import VerifyProtocol
from service.settings import Settings
from service.web.app import create_app
from tests.support.connection import Connection
from tests.support.issuer import Issuer
from tests.web.conftest import Person

pytestmark = pytest.mark.anyio

CALLS: Final = int(os.environ.get("TEST_CALLS", "100000"))
SESSION_KEY: Final = "a-secret-of-more-than-thirty-two-characters"
PASSWORD: Final = "correct horse battery staple"
METHODS: Final = ["GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PUT", "get", "BREW"]
TARGETS: Final = [
    "/api/flow_runs/filter",
    "/api/health",
    "/api/flows/6f0b2b2f-8e0a-4b1e-9a55-3c1e5d6f7a80",
    "/api/work_pools/pool/get_scheduled_flow_runs",
    "/api/block_documents/filter",
    "/api/block_documents/filter?include_secrets=true",
    "/api/admin/version",
    "/api/unknown",
    "/api/events/in",
    "/ui-settings",
    "/v2/dashboard",
    "/_auth",
    "/api/flows/%2e%2e/admin",
    "/api//flows",
    "/api/flows/%zz",
    "/api/flows/é",
    "//",
    "",
]
HOSTS: Final = ["prefect.example.com", "prefect.example.com:443", "localhost", "a b", "PREFECT.example.com.", ""]
PROTOS: Final = ["https", "https", "https", "http", "ws", "wss", "ftp", ""]
CLIENTS: Final = ["203.0.113.7", "203.0.113.8, 10.0.0.1", "2001:db8::1", "unknown", "10.0.0.1", ""]
BROWSERS: Final[list[dict[str, str]]] = [
    {},
    {},
    {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"},
    {"Accept": "*/*", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Origin": "https://prefect.example.com"},
    {"Accept": "text/html"},
    {"User-Agent": "prefect/3.4.1 (API 0.8.4)"},
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer("RS256", "ES256", "EdDSA") as running:
        yield running


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("users") / "users"
    file.write_text(f"alice:{hash_password(PASSWORD, 4)}\nbob:{hash_password('another', 4)}\n")
    return file


@asynccontextmanager
async def started(issuer: Issuer, users: Path) -> AsyncIterator[ForwardAuth]:
    settings: dict[str, Any] = {
        "issuer": {"url": issuer.url, "audiences": "prefect", "role": "worker"},
        "users": {"file": users, "role": "viewer"},
        "session": {"keys": SESSION_KEY},
        "grants": [{"roles": ["deployer"], "issuer": "local", "users": ["bob"]}],
        "prefect": {"url": "http://127.0.0.1:9"},  # so that callers are noted
        "sign_in": {"window": 86_400},  # so that no wrong password is forgotten between the two ways
        "log": {"decisions": "all"},
    }
    app = create_app(Settings(**settings))
    await app.start()
    for keys in (one.keys for one in app.wiring.all_issuers):
        await keys.refresh(next(iter(app.wiring.issuers.values())).policy)
    try:
        yield app
    finally:
        await app.stop()


class Calls:
    """Generates calls: many that are right, and many with something wrong."""

    def __init__(self, seed: int, issuer: Issuer, cookie: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - calls, no secret
        self._last: deque[bytes] = deque(maxlen=30)
        stranger = Issuer("RS256")
        tokens = [issuer.mint(lifetime=7_200, sub=f"svc-{number}") for number in range(40)]
        tokens += [issuer.mint(alg="ES256", lifetime=7_200), issuer.mint(alg="EdDSA", lifetime=7_200)]
        bad = [issuer.mint(exp=1, iat=1), issuer.mint(aud="another"), stranger.mint(), stranger.mint(iss=issuer.url)]
        bad += [tokens[0][:-4] + "AAAA", tokens[0] + "=", "a.b.c", "opaque", issuer.mint(iss="https://nobody.example")]
        self._good = [f"Bearer {one}" for one in tokens] + [
            self._basic(f"x:{tokens[0]}"),
            self._basic(f"alice:{PASSWORD}"),
        ]
        self._bad = [f"Bearer {one}" for one in bad] + [
            "Bearer",
            "DPoP x",
            "Basic !",
            self._basic("nobody"),
            "x" * 20_000,
        ]
        self._cookies = [f"{cookie}; a=b", f"{cookie}; {cookie}", "a=b", "__Host-prefect-gate=1.x", cookie[:-3] + "AAA"]

    @staticmethod
    def _basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    def _one(self, usual: str, others: list[str]) -> str:
        return usual if self._random.random() < 0.9 else self._random.choice(others)

    def _credentials(self) -> list[tuple[str, str]]:
        dice = self._random.random()
        if dice < 0.5:
            return [("Authorization", self._random.choice(self._good))]
        if dice < 0.7:
            return [("Authorization", self._random.choice(self._bad))]
        if dice < 0.71:  # guesses: few, since each costs bcrypt or, later, a wait
            return [("Authorization", self._basic(f"{self._random.choice(['alice', 'bob', 'eve'])}:wrong"))]
        if dice < 0.9:
            return [("Cookie", self._random.choice([self._cookies[0], *self._cookies]))]
        return []

    def __call__(self) -> bytes:
        """Return the bytes of one call: of a new one, or of one of the last."""
        if self._last and self._random.random() < 0.4:
            return self._random.choice(self._last)
        self._last.append(self._new())
        return self._last[-1]

    def _new(self) -> bytes:
        draw, face = self._random, self._random.choice(["forward-auth", "auth-request", "ext-authz"])
        gate = draw.choice([*["api"] * 5, "ui", "ui", "jwt", "basic", "none"])
        method, target = self._one("POST", METHODS), self._one(draw.choice(TARGETS[:6]), TARGETS)
        host, proto, client = self._one(HOSTS[0], HOSTS), self._one("https", PROTOS), self._one(CLIENTS[0], CLIENTS)
        headers = [("X-Forwarded-For", client), ("X-Forwarded-Proto", proto), *draw.choice(BROWSERS).items()]
        headers += self._credentials()
        line = f"{self._one('GET', METHODS)} /{face}/{gate}"
        if face == "forward-auth":
            headers += [("Host", "gate"), ("X-Forwarded-Method", method), ("X-Forwarded-Uri", target)]
            headers += [("X-Forwarded-Host", host)]
        elif face == "auth-request":
            headers += [
                ("Host", "gate"),
                ("X-Original-Method", method),
                ("X-Original-URL", f"{proto}://{host}{target}"),
            ]
        else:
            headers += [("Host", host)]
            line = f"{method} /{face}/{gate}{target}"
        body = ""
        for chance, change in ((0.03, headers.pop), (0.03, lambda: headers.append(draw.choice(headers)))):
            if draw.random() < chance:
                change()
        if draw.random() < 0.05:
            body = draw.choice(["", '{"include_secrets": true}', "{}"])
            headers.append(("Content-Length", str(len(body))))
        if draw.random() < 0.02:
            headers.append(
                draw.choice([("Connection", "close"), ("Connection", "Upgrade"), ("Expect", "100-continue")])
            )
        draw.shuffle(headers)
        version = "1.0" if draw.random() < 0.01 else "1.1"
        lines = "".join(f"{draw.choice([name, name.lower()])}: {value}\r\n" for name, value in headers)
        return f"{line} HTTP/{version}\r\n{lines}\r\n{body}".encode()


class Way:
    """A service that is asked one way, over one connection while it lasts."""

    def __init__(self, app: ForwardAuth, http: type[BoundedHeadProtocol]) -> None:
        self._app, self._http = app, http
        self._connection: Connection | None = None
        self.by_asgi = 0

    async def ask(self, call: bytes, peer: str) -> bytes:
        connection = self._connection
        if connection is None or connection.transport.closed or peer != "127.0.0.1":
            connection = Connection(self._app, peer, self._http)
            self._connection = connection if peer == "127.0.0.1" else None
        before = connection.protocol.cycle
        answer = await connection.send(call)
        self.by_asgi += connection.protocol.cycle is not before
        return answer

    def counts(self) -> dict[str, Any]:
        """Return what is counted and remembered."""
        telemetry, state = self._app.wiring.telemetry, self._app.wiring.state
        return {
            "allowed": telemetry.allowed,
            "refused": telemetry.refused,
            "unknown": telemetry.unknown_routes,
            "guesses": telemetry.guesses_refused,
            "websockets": telemetry.websockets_refused,
            "verdicts": len(state.verdicts._proofs),
            "reporters": len(state.reporters),
            "known pairs": len(state.known_pairs._known),
        }


def comparable(answer: bytes) -> bytes:
    """Return an answer without what differs from call to call: request ids, seconds, and a cookie sealed anew."""
    return re.sub(rb"\d+ seconds?|[0-9a-f]{16}|retry-after: \d+|set-cookie: [^;]*", b"", answer)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2_000, id="some"),
        pytest.param(CALLS, id="all", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
async def test_both_ways_answer_and_count_alike(count: int, issuer: Issuer, users: Path) -> None:
    async with started(issuer, users) as one, started(issuer, users) as other:
        for person in (Person(other), Person(one)):
            await person.sign_in(password=PASSWORD)
        cookie = "; ".join(f"{name}={value}" for name, value in person.cookies.items() if "attempt" not in name)
        one.wiring.state.verdicts.forget()
        call, peers = Calls(count, issuer, cookie), random.Random(-count)  # noqa: S311 - likewise
        short, asgi = Way(one, VerifyProtocol), Way(other, BoundedHeadProtocol)
        statuses: dict[bytes, int] = {}
        for number in range(count):
            asked, peer = call(), "127.0.0.1" if peers.random() < 0.97 else "198.51.100.1"
            answers = [comparable(await way.ask(asked, peer)) for way in (short, asgi)]
            assert answers[0] == answers[1], (number, asked)
            statuses[answers[0][9:12]] = statuses.get(answers[0][9:12], 0) + 1
        assert short.counts() == asgi.counts()
    assert set(statuses) >= {b"200", b"400", b"401", b"403"}, statuses
    assert max(statuses.values()) < 0.7 * count
    assert short.by_asgi < 0.4 * count, short.by_asgi
