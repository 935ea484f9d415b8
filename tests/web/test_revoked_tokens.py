"""Tokens of other issuers that an operator revokes: from the command to every place that has let one in."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.issuing.ledger import Ledger
from service.issuing.sqlite import FILE
from service.settings import Settings
from service.web.app import create_app
from tests.support.issuer import Issuer as Provider
from tests.support.operator import Operator
from tests.support.prefect_sockets import PrefectSockets
from tests.support.relay_gate import closed, served
from tests.support.waiting import wait_until
from tests.web.conftest import Caller, basic
from tests.web.test_own_tokens import IN_FORCE, NAME, ask, until_refused
from tests.web.test_serve import serving

pytestmark = pytest.mark.anyio
HOUR = 3_600


@pytest.fixture
def operator(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator({"FORWARD_AUTH_TOKENS__FOLDER": str(folder)}, monkeypatch, capsys)


@pytest.fixture
def issuer(provider: Provider) -> dict[str, Any]:
    return {"url": provider.url, "audiences": "prefect", "role": "worker"}


@pytest.fixture
async def call(folder: Path, issuer: dict[str, Any]) -> AsyncIterator[Caller]:
    app = create_app(Settings(tokens={"folder": folder}, issuer=issuer))
    await app.start()
    yield Caller(app)
    await app.stop()


def soon() -> int:
    return int(time.time()) + HOUR


async def test_a_revoked_token_is_refused_although_it_is_remembered_and_others_are_not(
    call: Caller, ledger: Ledger, provider: Provider
) -> None:
    token, other, without = provider.mint(jti="one"), provider.mint(jti="two"), provider.mint(jti=None)
    for one in (token, other, without):
        assert (await call(f"Bearer {one}")).status == 200
    ledger.revoke_of(provider.url, "one", soon())
    ledger.revoke_of("https://another.example", "two", soon())
    assert await until_refused(call, token) == "This token was revoked: obtain a new one."
    assert (await call(basic(f"jwt:{token}"))).status == 401
    for one in (other, without):
        assert (await call(f"Bearer {one}")).status == 200
    ledger.revoke_of(provider.url, "two", soon())
    await until_refused(call, other)
    assert (await call(f"Bearer {token}")).status == 401  # the first one is not forgotten


async def test_a_token_of_our_own_is_revoked_by_its_id_as_well(call: Caller, ledger: Ledger) -> None:
    token, entry = ledger.issue("etl", "worker", HOUR, NAME, "prefect")
    assert (await call(f"Bearer {token}")).status == 200
    ledger.revoke_of(NAME, entry.id, soon())
    await until_refused(call, token)


async def test_a_client_whose_token_was_revoked_is_given_another(
    folder: Path, ledger: Ledger, issuer: dict[str, Any], provider: Provider
) -> None:
    """What the service obtained for a client id and secret is a token like any other."""
    provider.grant_to({"etl": "its-secret"}, jti="granted")
    client = {**issuer, "client_credentials": {"clients": ["etl"]}}
    async with served({"tokens": {"folder": folder}, "issuer": client}) as gate:
        call = Caller(gate.app)
        assert (await call(basic("etl:its-secret"))).status == 200
        provider.grant_to({"etl": "its-secret"}, jti="next")
        ledger.revoke_of(provider.url, "granted", soon())
        await asyncio.sleep(0)
        deadline = time.monotonic() + IN_FORCE
        while not gate.app.wiring.tokens._is_revoked(provider.url, "granted"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        asked = len(provider.calls)
        assert (await call(basic("etl:its-secret"))).status == 200
        assert len(provider.calls) == asked + 1


async def test_a_relayed_websocket_ends_when_its_token_is_revoked(
    folder: Path, ledger: Ledger, issuer: dict[str, Any], provider: Provider, prefect: PrefectSockets
) -> None:
    settings = {"tokens": {"folder": folder}, "issuer": issuer, "prefect": {"url": prefect.url}}
    async with served(settings) as gate, gate.opened(provider.mint(jti="open")) as socket:
        ledger.revoke_of(provider.url, "open", soon())
        code, reason = await closed(socket, 2 * IN_FORCE)
    assert code != 1000
    assert "revoked" in reason


async def test_a_revocation_outlives_a_ledger_that_cannot_be_read(
    call: Caller, ledger: Ledger, folder: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can add to a ledger that is away: what is known of it stays in force, for as long as it takes."""
    monkeypatch.setattr("service.issuing.issued.MAX_STALE", 0.2)
    revoked, good = provider.mint(jti="revoked"), provider.mint(jti="good")
    ledger.revoke_of(provider.url, "revoked", soon())
    await until_refused(call, revoked)
    await asyncio.to_thread(folder.rename, folder.with_name("away"))
    issued = call.app.wiring.own_issuer
    assert issued is not None
    while issued.issued.is_fresh:
        await asyncio.sleep(0.05)
    assert (await call(f"Bearer {revoked}")).status == 401
    assert (await call(f"Bearer {good}")).status == 200


# the command ----------------------------------------------------------------------------------------------


def test_the_command_revokes_and_lists_for_every_process(
    tmp_path: Path, folder: Path, provider: Provider, operator: Operator
) -> None:
    variables = {
        "FORWARD_AUTH_ISSUER__URL": provider.url,
        "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect",
        "FORWARD_AUTH_ISSUER__ROLE": "worker",
    }
    token = provider.mint(jti="stolen")
    with serving(tmp_path, "--workers", "2", FORWARD_AUTH_TOKENS__FOLDER=str(folder), **variables) as (_, port):
        assert {ask(port, token) for _ in range(20)} == {200}
        exp = soon()
        revoke = ("token", "revoke", "--issuer", provider.url, "--jti", "stolen")
        assert "is revoked" in operator(*revoke, "--expires-at", str(exp), **variables).out
        wait_until(lambda: {ask(port, token) for _ in range(20)} == {401}, timeout=IN_FORCE, what="a refusal by both")
        assert "is revoked" in operator(*revoke, **variables).out  # now for as long as it can be
        listed = operator("token", "list", **variables).out.splitlines()
        assert listed[-2].split()[:2] == ["ISSUER", "JTI"]
        assert listed[-1].split()[:2] == [provider.url, "stolen"]
        until = datetime.strptime(" ".join(listed[-1].split()[-2:]), "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()
        assert until > exp + 300 * 86_400
    assert b"stolen" in (folder / FILE).read_bytes()
    assert token.rpartition(".")[2].encode() not in (folder / FILE).read_bytes()


def test_the_command_revokes_a_token_of_its_own_by_its_claims(operator: Operator, ledger: Ledger) -> None:
    _, entry = ledger.issue("etl", "worker", HOUR, NAME, "prefect")
    assert operator("token", "revoke", "--issuer", NAME, "--jti", entry.id).code == 0
    assert operator("token", "list").out.splitlines()[-1].endswith("revoked")
    assert ledger.revocations() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--issuer", "https://idp.example/", "--jti", "a"), "name one of https://idp.example, prefect-forward-auth"),
        (("--jti", "a"), "--jti and --issuer belong together"),
        (("--issuer", "https://idp.example", "etl"), "--jti and --issuer belong together"),
        (("--issuer", "https://idp.example", "--jti", "a\x1b[0m"), "characters that can be printed"),
        (("--issuer", "https://idp.example", "--jti", "a", "--expires-at", "1700000000"), "a time within the next"),
        (("--issuer", "https://idp.example", "--jti", "a", "--expires-at", "soon"), "a time within the next"),
        (("--issuer", "https://idp.example", "--jti", "a", "--name", "b"), "not allowed with"),
    ],
    ids=["another issuer", "no issuer", "no jti", "control", "past", "no time", "two ways"],
)
def test_what_is_not_revoked_and_why(operator: Operator, arguments: tuple[str, ...], told: str) -> None:
    done = operator(
        "token",
        "revoke",
        *arguments,
        FORWARD_AUTH_ISSUER__URL="https://idp.example",
        FORWARD_AUTH_ISSUER__AUDIENCES="prefect",
        FORWARD_AUTH_ISSUER__ROLE="worker",
    )
    assert (done.code, done.out) == (2, "")
    assert told in done.err
