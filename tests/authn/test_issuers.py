"""The JWKS cache: what it promises while keys rotate, strangers knock and the issuer is down."""

import asyncio
import gzip
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from service.adapters.discovery import parse_max_age
from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import Endpoints
from service.adapters.outbound import FetchError, PlainHTTP, check_url, open_client, plain_http_from
from service.authn.issuers import Issuer
from service.core.errors import OutOfReach, Rejected
from service.core.model import ALGORITHMS, Bearer, IssuerTrust
from service.core.problems import Problem
from service.state.issuer_keys import KeyPolicy
from tests.authn.conftest import QUICK, Keeping, authenticate, issuer_of, recall
from tests.support.issuer import Issuer as Provider
from tests.support.issuer import Reply
from tests.support.refusals import refused
from tests.support.waiting import free_port

pytestmark = pytest.mark.anyio


def bearer(provider: Provider, **changes: object) -> Bearer:
    return Bearer(provider.mint(**changes).encode())  # type: ignore[arg-type]


def settled(issuer: Issuer) -> bool:
    return issuer.warm and issuer.keys.source not in issuer.keys._flight


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while True:
        outcome = condition()
        if outcome if isinstance(outcome, bool) else await outcome:
            return
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("discovery", [True, False])
async def test_keys_are_fetched_at_the_start_by_nobodys_request(
    provider: Provider,
    keeping: Keeping,
    discovery: bool,  # noqa: FBT001
) -> None:
    async with keeping(provider, discovery=discovery) as (issuer, tokens):
        await until(lambda: settled(issuer))
        assert provider.fetches["/jwks"] == 1
        assert provider.fetches["/.well-known/openid-configuration"] == int(discovery)
        for number in range(20):
            await authenticate(tokens, bearer(provider, sub=str(number)))
        assert provider.fetches["/jwks"] == 1


async def test_a_new_key_is_fetched_once_for_all_who_ask(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        provider.rotate()
        provider.delay = 0.2
        new = [bearer(provider, sub=str(number)) for number in range(50)]
        principals = await asyncio.gather(*(authenticate(tokens, one) for one in new))
        assert [one.subject for one in principals] == [str(number) for number in range(50)]
        assert provider.fetches["/jwks"] == 2


async def test_row29_invented_key_ids_cost_one_fetch_a_cooldown(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        known = bearer(provider)
        await authenticate(tokens, known)
        strangers = [bearer(provider, header={"kid": f"k{number}"}) for number in range(500)]
        answers = await asyncio.gather(*(authenticate(tokens, one) for one in strangers), return_exceptions=True)
        assert all(isinstance(answer, Rejected) for answer in answers)
        assert provider.fetches["/jwks"] == 2  # the first at the start, and one for all of these
        assert recall(tokens, known)
        assert await authenticate(tokens, bearer(provider, sub="another"))


async def test_the_cooldown_is_armed_by_a_fetch_that_fails(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        provider.status = 500
        for number in range(20):
            with pytest.raises(Rejected):
                await authenticate(tokens, bearer(provider, header={"kid": f"k{number}"}, iat=int(time.time()) - 60))
        assert provider.fetches["/.well-known/openid-configuration"] == 2


async def test_a_token_younger_than_the_keys_is_put_off_and_not_rejected(provider: Provider, keeping: Keeping) -> None:
    """A worker ends at its first 401; a key that the cool-down keeps us from seeing is no proof against it."""
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        with pytest.raises(Rejected):
            await authenticate(tokens, bearer(provider, header={"kid": "stranger"}))  # arms the cool-down
        provider.rotate()
        young = bearer(provider, iat=time.time() + 1)
        with pytest.raises(OutOfReach) as refusal:
            await authenticate(tokens, young)
        assert 1 <= refusal.value.retry_after <= QUICK.cooldown + 1
        issuer.keys._cool_until = 0  # as if it had passed
        assert await authenticate(tokens, young)


async def test_a_token_of_the_very_second_of_the_last_fetch_may_be_younger_than_the_keys(
    provider: Provider, keeping: Keeping
) -> None:
    """A NumericDate of whole seconds says that a token was issued within that second, not at its beginning."""
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        with pytest.raises(Rejected):
            await authenticate(tokens, bearer(provider, header={"kid": "stranger"}))  # arms the cool-down
        provider.rotate()
        issuer.keys.fetched_wall = 1_000_000_000.9
        for issued_at, kind in (
            (1_000_000_000, OutOfReach),
            (1_000_000_001, OutOfReach),
            (1_000_000_000.95, OutOfReach),
            (999_999_999, Rejected),
            (1_000_000_000.5, Rejected),
            ("1000000001", Rejected),
            (True, Rejected),
        ):
            with pytest.raises(kind):
                await authenticate(tokens, bearer(provider, iat=issued_at))


async def test_a_new_key_without_an_id_is_fetched_when_a_signature_fails(provider: Provider, keeping: Keeping) -> None:
    provider.kids = False
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        assert await authenticate(tokens, bearer(provider))
        provider.rotate()
        provider.drop_old()
        assert await authenticate(tokens, bearer(provider, sub="after the rotation"))
        fetches = provider.fetches["/jwks"]
        for number in range(20):
            forged = Bearer(bearer(provider, sub=str(number), iat=int(time.time()) - 60).token[:-6] + b"AAAAAA")
            with pytest.raises(Rejected):
                await authenticate(tokens, forged)
        assert provider.fetches["/jwks"] <= fetches + 1  # the cool-down holds for these, too


async def test_several_keys_without_ids_are_told_as_what_they_are(provider: Provider, keeping: Keeping) -> None:
    provider.kids = False
    provider.rotate()  # two for each algorithm
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        with refused(Rejected, "without an id", Problem.KEY_IDS_MISSING):
            await authenticate(tokens, bearer(provider, iat=int(time.time()) - 60))


async def test_an_issuer_that_was_reached_and_has_no_usable_key_is_told_as_that(
    provider: Provider, keeping: Keeping
) -> None:
    provider.body = b'{"keys": []}'
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: issuer.keys.age is not None)
        with refused(OutOfReach, "publishes no key", Problem.NO_USABLE_KEY):
            await authenticate(tokens, bearer(provider))


async def test_keys_are_refreshed_before_they_expire(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider, KeyPolicy(refresh=3, min_refresh=1, cooldown=30)) as (issuer, tokens):
        await until(lambda: settled(issuer))
        provider.rotate()
        began = time.monotonic()
        await until(lambda: provider.fetches["/jwks"] == 2)
        assert time.monotonic() - began < 3
        await authenticate(tokens, bearer(provider))
        assert provider.fetches["/jwks"] <= 3


async def test_a_removed_key_ends_what_was_remembered_of_it(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider, KeyPolicy(refresh=1, min_refresh=1, cooldown=30)) as (_, tokens):
        token = bearer(provider, iat=int(time.time()) - 60)  # of a younger one, the key might not be known yet
        await authenticate(tokens, token)
        assert recall(tokens, token)
        provider.rotate()
        provider.drop_old()
        await until(lambda: recall(tokens, token) is None, 2)
        with pytest.raises(Rejected):
            await authenticate(tokens, token)


async def test_an_unchanged_set_forgets_nothing(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (issuer, tokens):
        token = bearer(provider)
        await authenticate(tokens, token)
        assert await issuer.keys.refresh(issuer.policy)
        assert recall(tokens, token)


async def test_while_the_issuer_is_down_known_keys_are_served_for_a_bounded_time(
    provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider, KeyPolicy(refresh=1, max_stale=2, cooldown=1)) as (issuer, tokens):
        await until(lambda: settled(issuer))
        provider.stop()
        old, other = bearer(provider), bearer(provider, sub="other")
        await authenticate(tokens, old)
        await until(lambda: issuer.keys.failures > 0)
        await authenticate(tokens, other)
        await until(lambda: not issuer.warm)
        assert recall(tokens, old) is None
        with pytest.raises(OutOfReach):
            await authenticate(tokens, old)
        provider.start()
        await until(lambda: settled(issuer))
        assert await authenticate(tokens, old)


async def test_it_starts_while_the_issuer_is_down_and_recovers_by_itself(keeping: Keeping) -> None:
    provider = Provider("RS256", port=free_port())
    async with keeping(provider, KeyPolicy(cooldown=1)) as (issuer, tokens):
        token = bearer(provider)
        with pytest.raises(OutOfReach) as refusal:
            await authenticate(tokens, token)
        assert refusal.value.status == 503
        assert not issuer.warm
        with provider:
            await until(lambda: settled(issuer))
            assert await authenticate(tokens, token)


async def test_a_fetch_is_bounded_in_time(provider: Provider, keeping: Keeping) -> None:
    provider.delay = 10
    async with keeping(provider, KeyPolicy(timeout=0.3), start=False) as (_, tokens):
        began = time.monotonic()
        with pytest.raises(OutOfReach):
            await authenticate(tokens, bearer(provider))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        pytest.param(b" " * 600_000, 200, {}, id="row31-huge"),
        pytest.param(b"<html>", 200, {}, id="row31-not-json"),
        pytest.param(None, 302, {"Location": "http://127.0.0.1:1/"}, id="row31-redirect"),
        pytest.param(None, 500, {}, id="error"),
        pytest.param(None, 404, {}, id="not-found"),
    ],
)
async def test_a_bad_answer_keeps_the_last_good_keys(
    body: bytes | None, status: int, headers: dict[str, str], provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        if body is not None and body.isspace():  # a good document, and too much of it
            body = json.dumps(provider.key_set()).encode() + body
        provider.body, provider.status, provider.headers = body, status, headers
        assert not await issuer.keys.refresh(issuer.policy)
        assert issuer.problem
        assert await authenticate(tokens, bearer(provider))


async def test_an_issuer_that_withdraws_all_keys_is_believed(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (issuer, tokens):
        token = bearer(provider)
        await authenticate(tokens, token)
        provider.body = b'{"keys": []}'
        assert await issuer.keys.refresh(issuer.policy)
        assert recall(tokens, token) is None
        with pytest.raises(OutOfReach):
            await authenticate(tokens, token)


async def test_discovery_must_speak_for_this_very_issuer(keeping: Keeping) -> None:
    with Provider("RS256") as provider:
        port = provider.port
        provider.url = f"http://127.0.0.1:{port}/"  # the document now says so
        impostor = Provider("RS256", port=port)  # configured without the slash
        async with keeping(impostor, start=False) as (issuer, _):
            assert not await issuer.keys.refresh(issuer.policy)
            assert "expected exactly" in issuer.problem


@pytest.mark.parametrize(
    ("answer", "misconfigured"),
    [
        ({"metadata": {"issuer": "https://other.example"}}, True),
        ({"status": 404}, True),
        ({"status": 401}, True),
        ({"status": 302}, True),
        ({"status": 500}, False),
        ({"status": 429}, False),
        ({"body": b"no keys"}, False),
    ],
    ids=str,
)
async def test_an_issuer_that_was_reached_and_is_another_is_a_mistake_of_the_configuration(
    *,
    answer: dict[str, Any],
    misconfigured: bool,
    provider: Provider,
    keeping: Keeping,
) -> None:
    async with keeping(provider, start=False) as (issuer, tokens):
        good = {name: getattr(provider, name) for name in answer}
        for name, value in answer.items():
            setattr(provider, name, value)
        said = "not the identity provider that it is set up for" if misconfigured else "just now"
        with refused(OutOfReach, said):
            await authenticate(tokens, bearer(provider))
        if misconfigured:
            with refused(OutOfReach, said, Problem.ISSUER_MISCONFIGURED):
                await issuer.discover()
            with refused(OutOfReach, said, Problem.ISSUER_MISCONFIGURED):
                await issuer.reach()
        for name, value in good.items():
            setattr(provider, name, value)
        issuer.keys._cool_until = 0  # as if it had passed
        await issuer.reach()
        assert await authenticate(tokens, bearer(provider))


async def test_an_issuer_that_has_just_answered_is_not_asked_whether_it_is_there(
    provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider, start=False) as (issuer, _):
        for _ in range(3):
            await issuer.reach()
        assert provider.fetches["/jwks"] == 1
        issuer.keys.fetched_at -= issuer.policy.min_refresh + 1
        await issuer.reach()
        assert provider.fetches["/jwks"] == 2


async def test_whoever_signs_in_with_a_new_key_does_not_wait_since_the_issuer_was_asked_whether_it_is_there(
    provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider) as (issuer, tokens):
        await until(lambda: settled(issuer))
        issuer.keys.fetched_at -= issuer.policy.min_refresh + 1
        await issuer.reach()
        provider.rotate()
        assert await authenticate(tokens, bearer(provider))


async def test_an_issuer_that_is_away_is_asked_whether_it_is_there_once_a_cooldown(
    provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider) as (issuer, _):
        await until(lambda: settled(issuer))
        issuer.keys.fetched_at -= issuer.policy.min_refresh + 1
        provider.status = 503
        asked = provider.fetches["/.well-known/openid-configuration"]
        for _ in range(5):
            with refused(OutOfReach):
                await issuer.reach()
        assert provider.fetches["/.well-known/openid-configuration"] - asked == 2, "one that fails, and one a cool-down"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://idp.example/jwks",
        "http://169.254.169.254/",
        "ftp://h/",
        "jwks",
        "https://",
        "data:,x",
    ],
)
def test_row27_only_https_is_fetched(url: str) -> None:
    with pytest.raises(FetchError):
        check_url(url, allow_http=plain_http_from("http://127.0.0.1/", allow_http=False))


def test_plain_http_passes_on_loopback_and_where_it_was_allowed() -> None:
    check_url("http://127.0.0.1:9/", allow_http=PlainHTTP.LOOPBACK)
    check_url("http://localhost/", allow_http=PlainHTTP.LOOPBACK)
    check_url("http://idp.internal/", allow_http=PlainHTTP.ANYWHERE)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/token", "http://localhost/token", "http://[::1]/token"])
async def test_row27_a_document_from_elsewhere_does_not_send_us_to_our_own_machine(url: str) -> None:
    async with open_client("test") as client:
        for issuer_url, refused in (("https://idp.example", True), ("http://127.0.0.1:9", False)):
            issuer = issuer_of(IssuerTrust(issuer_url, frozenset({"prefect"}), ALGORITHMS), client)
            issuer.keys.metadata = {"token_endpoint": url}
            with pytest.raises(FetchError) if refused else nullcontext():
                await Endpoints(issuer.as_provider(), ClientPolicy("gate", "secret"), client).url("token_endpoint")
        keys_beside_us = issuer_of(issuer.trust, client, jwks_url="http://127.0.0.1:9/jwks")
        assert keys_beside_us.keys.source.allow_http is PlainHTTP.LOOPBACK  # the operator's own word


async def test_a_small_answer_that_unpacks_to_a_large_one_is_not_unpacked(provider: Provider) -> None:
    packed = Reply(gzip.compress(b" " * 10_000_000), headers={"content-encoding": "gzip"})
    provider.replies["/packed"] = packed
    async with open_client("test") as client:
        trust = IssuerTrust(provider.url, frozenset({"prefect"}), ALGORITHMS)
        issuer = issuer_of(trust, client, jwks_url=f"{provider.url}/packed")
        assert not await issuer.keys.refresh(issuer.policy)
    assert "content-encoding" in issuer.problem
    assert provider.calls[-1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"cache-control": "public, max-age=600"}, 600),
        ({"cache-control": "max-age=600", "age": "100"}, 500),
        ({"cache-control": "max-age=60", "age": "100"}, 0),
        ({"cache-control": "max-age=60, no-cache"}, None),
        ({"cache-control": "no-store"}, None),
        ({"cache-control": "s-maxage=60"}, None),
        ({"cache-control": "max-age=x"}, None),
        ({"cache-control": "max-age=60", "age": "x"}, 60),
    ],
)
def test_cache_headers_are_read(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_max_age(httpx.Headers(headers)) == seconds


@pytest.mark.parametrize(
    ("header", "lifetime"),
    [("max-age=99999", 300), ("max-age=1", 30), ("no-store", 300), ("no-cache", 300), ("max-age=200", 200)],
)
async def test_cache_headers_are_honoured_within_bounds(
    header: str, lifetime: float, provider: Provider, keeping: Keeping
) -> None:
    provider.headers = {"Cache-Control": header}
    async with keeping(provider, start=False) as (issuer, _):
        assert await issuer.keys.refresh(issuer.policy)
        assert issuer.policy.lifetime(issuer.keys._max_age) == lifetime
