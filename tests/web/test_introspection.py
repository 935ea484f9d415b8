"""Opaque tokens through the gates and over relayed WebSockets, in every form that cannot be anything else."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import ConfigError, load
from tests.support.issuer import Call, Reply
from tests.support.issuer import Issuer as Provider
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import EVENTS, closed, served
from tests.web.conftest import Caller, basic
from tests.web.test_clients import gates

pytestmark = pytest.mark.anyio

TOKEN = "ory_at_2YotnFZFEjr1zCsicMWpAA.q"
ASK = {"client_id": "gate", "client_secret": "the-gates-secret", "timeout": 5}


class Asked(Provider):
    """An issuer that is asked about tokens: those in ``active`` are."""

    def __init__(self) -> None:
        super().__init__("ES256")
        self.active = {TOKEN: "svc"}
        self.metadata["introspection_endpoint"] = f"{self.url}/introspect"
        self.replies["/introspect"] = self._answer

    def _answer(self, call: Call) -> Reply:
        who = self.active.get(call.form["token"])
        if who is None:
            return Reply({"active": False})
        expires = int(time.time()) + 300
        return Reply({"active": True, "sub": who, "aud": "prefect", "exp": expires, "token_type": "Bearer"})


@pytest.fixture
def asked() -> Iterator[Asked]:
    with Asked() as running:
        yield running


@pytest.fixture
def settings(asked: Asked, users_file: Path) -> dict[str, Any]:
    issuer = {"url": asked.url, "audiences": "prefect", "role": "worker", "introspection": ASK}
    return {"issuer": issuer, "users": {"file": users_file, "role": "viewer"}}


# what is presented, and whether the issuer is asked about it
FORMS: dict[str, tuple[str, int, bool]] = {
    "Bearer": (f"Bearer {TOKEN}", 200, True),
    "bearer in lower case": (f"bearer {TOKEN}", 200, True),
    "Basic of the text Bearer TOKEN": (basic(f"Bearer {TOKEN}"), 200, True),
    "where a password stands it is a password": (basic(f"jwt:{TOKEN}"), 401, False),
    "where a user's password stands": (basic(f"alice:{TOKEN}"), 401, False),
    "a password behind Bearer is no password": ("Bearer secret", 401, True),
    "a pair behind Bearer is no token": ("Bearer alice:secret", 400, False),
    "a user's password": (basic("alice:secret"), 200, False),
    "a token alone in Basic": (basic(TOKEN), 400, False),
    "a token as a name": (basic(f"{TOKEN}:"), 401, False),
    "two dots": ("Bearer a.b.c", 401, False),
    "another alphabet": ("Bearer tökén", 400, False),
    "two tokens": (f"Bearer {TOKEN} {TOKEN}", 400, False),
    "bound to a key": (f"DPoP {TOKEN}", 400, False),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_form_is_one_kind_and_is_never_tried_as_another(name: str, call: Caller, asked: Asked) -> None:
    presented, status, is_asked = FORMS[name]
    answer = await call(presented)
    assert (answer.status, bool(asked.calls)) == (status, is_asked), answer.body
    if status == 200 and is_asked:
        assert answer.header("x-auth-request-user") == "svc"
        assert answer.header("x-auth-request-issuer") == asked.url


async def test_gates_that_take_no_token_ask_nobody(call: Caller, asked: Asked) -> None:
    for gate, status in (("api", 200), ("jwt", 200), ("basic", 401), ("ui", 401)):
        for _ in range(3):
            assert (await call(f"Bearer {TOKEN}", f"/forward-auth/{gate}")).status == status, gate
    assert len(asked.calls) == 1
    metrics = (await call.raw("/metrics", [])).body.decode()
    assert f'forward_auth_introspections_total{{issuer="{asked.url}",outcome="active"}} 1.0' in metrics


async def test_an_issuer_that_is_away_is_503_and_the_worker_recovers(call: Caller, asked: Asked) -> None:
    assert (await call("Bearer wrong")).status == 401
    asked.stop()
    answer = await call(f"Bearer {TOKEN}")
    assert (answer.status, answer.json()["code"]) == (503, "issuer_unavailable")
    assert int(answer.header("retry-after")) >= 1
    asked.start()
    assert (await call(f"Bearer {TOKEN}")).status == 200


async def test_clients_may_get_opaque_tokens(settings: dict[str, Any], asked: Asked) -> None:
    asked.metadata["token_endpoint"] = f"{asked.url}/token"
    asked.replies["/token"] = Reply({"access_token": TOKEN, "token_type": "Bearer"})
    settings["issuer"]["client_credentials"] = {"clients": "prefect-*"}
    async with gates(settings) as call:
        assert (await call(basic("prefect-night:secret"))).header("x-auth-request-user") == "svc"
        del asked.active[TOKEN]
        call.app.state.introspections.active.clear()
        call.app.state.verdicts.forget()
        assert (await call(basic("prefect-night:secret"))).status == 401


async def test_row17_nothing_secret_is_told_or_logged(call: Caller, asked: Asked, logged: Callable[[], str]) -> None:
    call.app.wiring.telemetry.log_allowed = True
    answers = [await call(f"Bearer {TOKEN}"), await call("Bearer an-invented-one")]
    asked.stop()
    answers.append(await call("Bearer another-one"))
    told = "".join(f"{one.headers}{one.body.decode()}" for one in answers) + logged()
    told += (await call.raw("/metrics", [])).body.decode() + (await call.raw("/readyz", [])).body.decode()
    assert "token_not_active" in told
    for secret in (TOKEN, "an-invented-one", "another-one", ASK["client_secret"]):
        assert str(secret) not in told


# WebSockets -----------------------------------------------------------------------------------------------


async def test_a_socket_ends_when_the_issuer_says_so_and_not_before(
    settings: dict[str, Any], asked: Asked, prefect: PrefectSockets
) -> None:
    settings["issuer"]["introspection"] = {**ASK, "remember": 1}
    async with (
        served({**settings, "prefect": {"url": prefect.url}}) as gate,
        gate.opened(TOKEN, EVENTS) as socket,
        gate.opened(f"Bearer {TOKEN}", EVENTS) as other,
    ):
        before = len(asked.calls)
        while len(asked.calls) < before + 2:  # it is asked again, and the socket stays
            await socket.send("hello")
            assert await socket.recv() == "hello"
        asked.active.clear()
        for one in (socket, other):
            code, reason = await closed(one, 30)
            assert (code, "not valid" in reason) == (1012, True)
        assert (await gate.refused(TOKEN))[0] == 1008


async def test_a_socket_ends_when_the_answer_does_and_the_issuer_is_away(
    settings: dict[str, Any], asked: Asked, prefect: PrefectSockets
) -> None:
    settings["issuer"]["introspection"] = {**ASK, "remember": 1}
    async with served({**settings, "prefect": {"url": prefect.url}}) as gate:
        async with gate.opened(TOKEN, EVENTS) as socket:
            asked.stop()
            assert (await closed(socket, 30))[0] == 1012
        assert (await gate.refused(TOKEN))[0] == 1013
        asked.start()
        async with gate.opened(TOKEN, EVENTS) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"


# settings -------------------------------------------------------------------------------------------------

ISSUER = {"FORWARD_AUTH_ISSUER__URL": "https://idp.example", "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect"}
SECTION = "FORWARD_AUTH_ISSUER__INTROSPECTION__"
PAIR = {f"{SECTION}CLIENT_ID": "gate", f"{SECTION}CLIENT_SECRET": "hunter2"}


def problems(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as error:
        load(environ)
    return "\n".join(error.value.problems)


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
def test_the_secret_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o600)
    given = {**ISSUER, f"{SECTION}CLIENT_ID": "gate", f"{SECTION}CLIENT_SECRET_FILE": str(tmp_path / "secret")}
    found = load(given).settings
    assert found.issuer is not None
    assert found.issuer.introspection is not None
    assert found.issuer.introspection.client_secret.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(found)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("given", "word"),
    [
        pytest.param({"CLIENT_SECRET": ""}, "client_secret", id="no secret"),
        pytest.param({"ENDPOINT": "http://idp.example/introspect"}, "https", id="in clear"),
        pytest.param({"CLIENT_AUTH": "none"}, "client_auth", id="unauthenticated"),
        pytest.param({"REMEMBER": "86400"}, "remember", id="remembered for a day"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, str], word: str) -> None:
    found = problems({**ISSUER, **PAIR, **{SECTION + name: value for name, value in given.items()}})
    assert word in found
    assert "introspection" in found.lower()
    assert "hunter2" not in found


@pytest.mark.usefixtures("_elsewhere")
def test_with_a_jwks_url_nothing_is_discovered_so_the_endpoint_is_needed() -> None:
    jwks = {**ISSUER, **PAIR, "FORWARD_AUTH_ISSUER__JWKS_URL": "https://idp.example/keys"}
    assert "endpoint is needed" in problems(jwks)
    assert load({**jwks, f"{SECTION}ENDPOINT": "https://idp.example/introspect"})


@pytest.mark.usefixtures("_elsewhere")
def test_one_issuers_tokens_are_not_shown_to_another() -> None:
    def issuer(url: str) -> dict[str, Any]:
        return {"url": url, "audiences": ["prefect"], "introspection": ASK}

    both = [issuer("https://a.example"), issuer("https://b.example")]
    found = problems({"FORWARD_AUTH_ISSUERS": json.dumps(both)})
    assert "only one issuer can have it, not each of https://a.example, https://b.example" in found
    del both[1]["introspection"]
    assert load({"FORWARD_AUTH_ISSUERS": json.dumps(both)})
