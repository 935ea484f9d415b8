"""Form 5 through the gates, as a worker that knows a client id and a secret sends it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.web.app import create_app
from tests.support.issuer import Issuer as Provider
from tests.support.redis import RedisServer
from tests.web.conftest import SESSION_KEY, Caller, basic
from tests.web.test_reload import service

pytestmark = pytest.mark.anyio

SECRET = "a-night-secret"
NIGHT = basic(f"prefect-night:{SECRET}")
REGISTERED = {"prefect-night": SECRET, "alice": "a client's", "other": "o"}


@pytest.fixture
def granting() -> Iterator[Provider]:
    with Provider("ES256") as running:
        running.grant_to(REGISTERED)
        yield running


@asynccontextmanager
async def gates(settings: dict[str, Any]) -> AsyncIterator[Caller]:
    app = create_app(Settings(**settings))
    await app.start()
    yield Caller(app)
    await app.stop()


@pytest.fixture
def settings(granting: Provider, users_file: Path) -> dict[str, Any]:
    client_credentials = {"clients": "prefect-*", "timeout": 5}
    issuer = {"url": granting.url, "audiences": "prefect", "role": "worker", "client_credentials": client_credentials}
    return {"issuer": issuer, "users": {"file": users_file, "role": "viewer"}, "session": {"keys": SESSION_KEY}}


async def test_api_and_basic_take_it_and_it_is_asked_about_once(call: Caller, granting: Provider) -> None:
    for gate, status in (("api", 200), ("basic", 200), ("jwt", 401), ("ui", 401)):
        for _ in range(3):
            answer = await call(NIGHT, f"/forward-auth/{gate}")
            assert answer.status == status, gate
            assert answer.header("x-auth-request-user") == ("prefect-night" if status == 200 else "")
            assert answer.header("x-auth-request-issuer") == (granting.url if status == 200 else "")
    assert len(granting.calls) == 1
    metrics = (await call.raw("/metrics", [])).body.decode()
    assert f'forward_auth_client_grants_total{{issuer="{granting.url}",outcome="granted"}} 1.0' in metrics


async def test_a_name_is_one_kind_and_is_never_tried_as_another(call: Caller, granting: Provider) -> None:
    assert (await call(basic("alice:secret"))).header("x-auth-request-roles") == "viewer"
    for not_asked in ("alice:a client's", "other:o", "nobody:x"):  # its pattern is not met: these are users
        assert (await call(basic(not_asked))).status == 401
    assert granting.calls == []
    call.app.wiring.users.users.hashes["prefect-night"] = call.app.wiring.users.users.hashes["alice"]  # type: ignore[union-attr, index]
    assert (await call(basic("prefect-night:secret"))).status == 401
    assert len(granting.calls) == 1


async def test_a_token_in_the_passwords_place_is_a_token(call: Caller, granting: Provider) -> None:
    assert (await call(basic(f"prefect-night:{granting.mint()}"))).header("x-auth-request-user") == "svc"
    expired = await call(basic(f"prefect-night:{granting.mint(exp=1, iat=1)}"))
    assert (expired.status, "expired" in expired.json()["detail"]) == (401, True)
    assert granting.calls == []


async def test_an_issuer_that_is_away_is_503_and_the_worker_recovers(call: Caller, granting: Provider) -> None:
    assert (await call(basic("prefect-night:wrong"))).status == 401  # the keys and the endpoint are known by now
    granting.stop()
    for _ in range(15):  # more than may be wrong: none of them counts
        answer = await call(NIGHT)
        assert (answer.status, answer.json()["code"]) == (503, "issuer_unavailable")
        assert int(answer.header("retry-after")) >= 1
    granting.start()
    assert (await call(NIGHT)).status == 200


async def test_guesses_reach_the_issuer_ten_times_and_do_not_hold_up_who_is_known(
    call: Caller, granting: Provider
) -> None:
    assert (await call(NIGHT)).status == 200
    guesses = await asyncio.gather(*(call(basic(f"prefect-night:guess {number}")) for number in range(50)))
    assert sorted(one.status for one in guesses) == [401] * 10 + [429] * 40
    assert len(granting.calls) == 1 + 10
    assert (await call(NIGHT)).status == 200
    call.app.state.verdicts.forget()
    assert (await call(NIGHT)).status == 200
    assert (await call(NIGHT, X_Forwarded_For="198.51.100.9")).status == 200
    assert "forward_auth_guesses_refused_total 40.0" in (await call.raw("/metrics", [])).body.decode()


async def test_memory_answers_no_guess_from_where_guesses_are_counted(call: Caller, granting: Provider) -> None:
    """A right password is remembered for the address it came from, or one could guess there without being counted."""
    assert (await call(f"Bearer {granting.mint()}")).status == 200  # new keys, which end all memory, are there by now
    assert (await call(basic("alice:secret"))).status == 200
    elsewhere = {"X_Forwarded_For": "198.51.100.9"}
    statuses = [(await call(basic(f"alice:guess {number}"), **elsewhere)).status for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    answer = await call(basic("alice:secret"), **elsewhere)
    assert (answer.status, answer.json()["code"]) == (429, "throttled")
    assert int(answer.header("retry-after")) > 200
    assert (await call(basic("alice:secret"))).status == 200


async def test_the_sign_in_page_counts_what_the_gates_count(call: Caller) -> None:
    for number in range(10):
        await call(basic(f"alice:guess {number}"))
    assert call.app.wiring.guard.throttle.retry_after("203.0.113.7", "alice") > 0


async def test_tokens_are_not_counted(call: Caller, granting: Provider) -> None:
    for _ in range(120):
        assert (await call(f"Bearer {granting.mint(exp=1, iat=1)}")).status == 401
    assert (await call(NIGHT)).status == 200


async def test_row17_nothing_secret_is_told_or_logged(
    call: Caller, granting: Provider, logged: Callable[[], str]
) -> None:
    call.app.wiring.telemetry.log_allowed = True
    answers = [await call(NIGHT), await call(basic("prefect-night:hunter2-hunter2"))]
    granting.mint = lambda **_: "an-opaque-token-0123456789"  # type: ignore[method-assign]
    answers.append(await call(basic("prefect-late:x")))
    answers.append(await call(NIGHT, X_Forwarded_For="198.51.100.9"))
    told = "".join(f"{one.headers}{one.body.decode()}" for one in answers) + logged()
    told += (await call.raw("/metrics", [])).body.decode() + (await call.raw("/readyz", [])).body.decode()
    assert "invalid_client" in told
    for secret in (SECRET, "hunter2", "an-opaque-token", NIGHT.split()[1]):
        assert secret not in told


async def test_two_services_that_share_a_store_ask_once(
    settings: dict[str, Any], granting: Provider, tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as redis:
        settings["store"] = {"url": redis.url}
        async with gates(settings) as first, gates(settings) as second:
            assert [(await one(NIGHT)).status for one in (first, second)] == [200, 200]
            assert len(granting.calls) == 1
        settings["session"] = {}  # no key in common: nothing can be shared safely
        settings["store"]["prefix"] = "alone:"
        async with gates(settings) as third, gates(settings) as fourth:
            assert [(await one(NIGHT)).status for one in (third, fourth)] == [200, 200]
            assert len(granting.calls) == 3
            store = third.app.wiring.store
            assert store is not None
            assert [name async for name in store._client.scan_iter("alone:grant:*")] == []


async def test_two_issuers_each_have_their_own(settings: dict[str, Any], granting: Provider) -> None:
    with Provider("RS256") as second:
        second.grant_to({"ci-a": "secret"}, iss=granting.url)  # it grants, in the other's name, what it cannot sign
        other = {"url": second.url, "audiences": "prefect", "role": "admin", "client_credentials": {"clients": "ci-*"}}
        async with gates({**settings, "issuers": [other]}) as call:
            assert (await call(basic("ci-a:secret"))).status == 401
            second.grant_to({"ci-a": "secret"})
            call.app.wiring.clients[second.url]._refused.clear()
            assert (await call(basic("ci-a:secret"))).header("x-auth-request-roles") == "admin"
            assert (await call(NIGHT)).header("x-auth-request-roles") == "worker"
            assert {one.headers["authorization"] for one in granting.calls} == {NIGHT}


def test_a_reload_decides_anew_about_what_is_remembered(granting: Provider, tmp_path: Path) -> None:
    def text(audience: str, more: str = "") -> str:
        issuer = f'[issuer]\nurl = "{granting.url}"\naudiences = ["{audience}"]\nrole = "viewer"\n'
        return issuer + (f'[issuer.client_credentials]\nclients = ["prefect-*"]\n{more}' if more else "")

    with service(tmp_path, text("prefect", "remember = 300")) as one:
        ask = lambda: one.ask(NIGHT, **{"X-Forwarded-Uri": "/api/flows/filter"})  # noqa: E731
        assert ask() == 200
        one.write(text("prefect", "remember = 300\n[log]\ndecisions = 'all'"))
        one.reload()
        assert (ask(), len(granting.calls)) == (200, 1)  # it would be asked for alike
        one.write(text("billing", "remember = 300"))
        one.reload()
        assert ask() == 401
        one.write(text("prefect", "remember = 300"))
        one.reload()
        assert ask() == 200
        one.write(text("prefect"))
        one.reload()
        assert ask() == 401
