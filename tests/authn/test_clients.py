"""Form 5: a client's id and secret, proved to its issuer, remembered for a while, and shared by replicas."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from service.adapters.outbound import open_client
from service.adapters.store import Store
from service.authn import clients as module
from service.authn.clients import CALLS_AT_ONCE, CALLS_WAITING, Clients, Shared
from service.authn.seal import Seal
from service.authn.tokens import Tokens
from service.core.errors import OutOfReach, Refusal, Rejected, Throttled, Unclear
from service.core.model import ALGORITHMS, Basic, IssuerTrust
from service.core.problems import Problem
from service.state.client_tokens import ClientToken, ClientTokens, GrantPolicy
from service.state.concurrency import RefusalDelay
from service.state.issuer_keys import KeyPolicy
from tests.authn.conftest import issuer_of
from tests.support.issuer import Call, Reply, SigningKey, b64url
from tests.support.issuer import Issuer as Provider
from tests.support.openid import AUDIENCE, OpenIDProvider
from tests.support.redis import PATIENT, RedisServer
from tests.support.refusals import logged, told

pytestmark = pytest.mark.anyio

NIGHT = Basic("prefect-night", "a-night-secret")
POLICY = GrantPolicy(frozenset({"prefect-*"}), timeout=5)
KEY = "a-secret-of-more-than-thirty-two-characters"


@pytest.fixture
def registered() -> dict[str, str]:
    return {NIGHT.username: NIGHT.password}


@pytest.fixture
def provider(registered: dict[str, str]) -> Iterator[Provider]:
    with Provider("ES256") as running:
        running.grant_to(registered)
        yield running


@asynccontextmanager
async def asking(
    url: str,
    policy: GrantPolicy = POLICY,
    shared: Shared | None = None,
    memory: ClientTokens | None = None,
    **trust: Any,
) -> AsyncIterator[Clients]:
    """Yield what asks an issuer about its clients."""
    trusted = {"audiences": frozenset({"prefect"}), "algorithms": ALGORITHMS, "role": "worker", **trust}
    async with open_client("test") as client:
        issuer = issuer_of(IssuerTrust(url, **trusted), client, policy=KeyPolicy(timeout=5, cooldown=0.01))
        tokens = Tokens({issuer.trust.issuer: issuer})
        memory = ClientTokens() if memory is None else memory
        yield Clients(issuer, policy, tokens, client, memory, RefusalDelay(), shared=shared)
        await issuer.keys.close()


@pytest.fixture
async def clients(provider: Provider) -> AsyncIterator[Clients]:
    async with asking(provider.url) as made:
        yield made


async def refused(clients: Clients, credential: Basic = NIGHT) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await clients.authenticate(credential)
    return caught.value


# who it is ------------------------------------------------------------------------------------------------


async def test_a_client_is_whom_its_token_says_and_is_asked_about_once(clients: Clients, provider: Provider) -> None:
    proofs = await asyncio.gather(*(clients.authenticate(NIGHT) for _ in range(20)))
    proofs.append(await clients.authenticate(NIGHT))
    assert {(one.principal.issuer, one.principal.subject, one.principal.roles) for one in proofs} == {
        (provider.url, "prefect-night", ("worker",))
    }
    assert [call.form for call in provider.calls] == [{"grant_type": "client_credentials"}]
    assert clients._memory.outcomes == {(provider.url, "granted"): 1}
    assert time.time() < proofs[0].until <= time.time() + 300


async def test_what_is_asked_for(provider: Provider) -> None:
    policy = replace(POLICY, scopes=frozenset({"b", "a"}), audience="prefect", resource="https://prefect.example/")
    async with asking(provider.url, policy) as clients:
        await clients.authenticate(NIGHT)
    (call,) = provider.calls
    assert call.form == {
        "grant_type": "client_credentials",
        "scope": "a b",
        "audience": "prefect",
        "resource": "https://prefect.example/",
    }


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize(
    "credential",
    [
        Basic("prefect-a", "colon:in:it"),
        Basic("prefect-b", "100%41 + a & b = c"),
        Basic("prefect-ü", "pässwörd ☂"),
        Basic("prefect-c d@example.com/e", "?#/\\\"'"),
    ],
)
async def test_any_id_and_secret_arrive_as_they_are(
    method: Any, credential: Basic, provider: Provider, registered: dict[str, str]
) -> None:
    registered[credential.username] = credential.password
    async with asking(provider.url, replace(POLICY, client_auth=method)) as clients:
        assert (await clients.authenticate(credential)).principal.subject == credential.username


async def test_an_endpoint_that_is_told_is_not_discovered(provider: Provider) -> None:
    del provider.metadata["token_endpoint"]
    async with asking(provider.url) as clients:
        assert isinstance(await refused(clients), OutOfReach)
    async with asking(provider.url, replace(POLICY, token_endpoint=f"{provider.url}/token")) as clients:
        assert (await clients.authenticate(NIGHT)).principal.name == "prefect-night"


@pytest.mark.parametrize("endpoint", ["http://idp.example.com/token", "ftp://127.0.0.1/token"])
async def test_no_secret_is_sent_in_clear(provider: Provider, endpoint: str) -> None:
    provider.metadata["token_endpoint"] = endpoint
    async with asking(provider.url) as clients:
        refusal = await refused(clients)
    assert isinstance(refusal, OutOfReach)
    assert "is not an https URL" in logged(refusal)


@pytest.mark.parametrize(
    ("name", "taken"), [("prefect-night", True), ("prefect-", True), ("alice", False), ("", False)]
)
async def test_a_name_tells_whose_it_is(clients: Clients, name: str, taken: bool) -> None:  # noqa: FBT001
    assert clients.takes(name) is taken


# who it is not --------------------------------------------------------------------------------------------

# the answer, the kind of refusal, and what it says
ERRORS: dict[str, tuple[Reply, type[Refusal], Problem]] = {
    "invalid_client": (Reply({"error": "invalid_client"}, 401), Rejected, Problem.PAIR_WRONG_AT_ISSUER),
    "invalid_client 400": (Reply({"error": "invalid_client"}, 400), Rejected, Problem.PAIR_WRONG_AT_ISSUER),
    "unauthorized_client": (Reply({"error": "unauthorized_client"}, 400), Rejected, Problem.CLIENT_NOT_AUTHORIZED),
    "Keycloak's": (Reply({"error": "unauthorized_client"}, 401), Rejected, Problem.CLIENT_REFUSED),
    "access_denied": (Reply({"error": "access_denied"}, 401), Rejected, Problem.PAIR_WRONG_AT_ISSUER),
    "Auth0's": (Reply({"error": "access_denied"}, 403), Rejected, Problem.CLIENT_NOT_AUTHORIZED),
    "a page": (Reply(b"<html>", 401, "text/html"), Rejected, Problem.PAIR_WRONG_AT_ISSUER),
    "Glewlwyd's": (Reply(b"", 403, "text/plain"), Rejected, Problem.PAIR_WRONG_AT_ISSUER),
    "invalid_scope": (Reply({"error": "invalid_scope"}, 400), OutOfReach, Problem.GRANT_REFUSED),
    "an error of its own": (Reply({"error": NIGHT.password}, 400), Unclear, Problem.GRANT_REFUSED),
    "busy": (Reply({"error": "invalid_client"}, 429), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "broken": (Reply({"error": "invalid_client"}, 500), Unclear, Problem.ISSUER_OUT_OF_REACH),
    "a redirect": (Reply(status=302, headers={"Location": "/token"}), Unclear, Problem.ISSUER_OUT_OF_REACH),
    "endless": (Reply(b" " * 600_000), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "no token": (Reply({"token_type": "Bearer"}), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "not JSON": (Reply(b"\xff\xfe"), Unclear, Problem.ISSUER_OUT_OF_REACH),
    "slow": (Reply(delay=1.0), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_what_an_issuers_answer_says_of_a_client(
    name: str, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker ends at its first 401: whatever does not decide about it is 503."""
    provider.replies["/token"], kind, problem = ERRORS[name]
    caplog.set_level(logging.DEBUG)
    async with asking(provider.url, replace(POLICY, timeout=0.5)) as clients:
        refusal = await refused(clients)
    assert (type(refusal), refusal.problem) == (kind, problem), logged(refusal)
    assert NIGHT.password not in f"{told(refusal)} {logged(refusal)} {caplog.text}"
    assert len(provider.calls) == 1


async def test_the_log_has_the_issuers_own_words_and_the_caller_has_not(provider: Provider) -> None:
    for said, shown in (("Invalid client secret", True), (f"{NIGHT.password} is wrong", False), ("a\nb", False)):
        provider.replies["/token"] = Reply({"error": "invalid_client", "error_description": said}, 401)
        async with asking(provider.url) as clients:
            refusal = await refused(clients)
        assert (said in logged(refusal)) is shown
        assert said not in told(refusal)


@pytest.mark.parametrize(("secret", "hinted"), [("a+b/c%", True), ("plain-secret_1", False)])
async def test_the_log_names_the_cure_for_a_secret_that_an_issuer_may_not_decode(
    *,
    secret: str,
    hinted: bool,
    provider: Provider,
) -> None:
    for reply in (Reply({"error": "invalid_client"}, 401), Reply(b"", 403, "text/plain")):
        provider.replies["/token"] = reply
        async with asking(provider.url) as clients:
            refusal = await refused(clients, NIGHT._replace(password=secret))
        assert ('client_auth = "client_secret_post"' in logged(refusal)) is hinted
        assert secret not in f"{told(refusal)} {logged(refusal)}"


ENCRYPTED = ".".join([b64url(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), "AA", "AA", "AA", "AA"])
TOKENS: dict[str, tuple[Callable[[Provider], str], str]] = {
    "opaque": (lambda _: "2YotnFZFEjr1zCsicMWpAA", "client_token_not_a_jwt"),
    "encrypted": (lambda _: ENCRYPTED, "client_token_encrypted"),
    "another audience": (lambda provider: provider.mint(aud="billing"), "billing"),
    "another issuer": (lambda provider: provider.mint(iss="https://elsewhere.example"), "elsewhere"),
    "a stranger's key": (lambda provider: provider.mint(key=SigningKey.generate("ES256", "ES256-1")), "kid"),
    "an ID token": (lambda provider: provider.mint(nonce="n"), "not_an_access_token claim=nonce"),
    "expired": (lambda provider: provider.mint(exp=1, iat=1), "expired"),
    "no subject": (lambda provider: provider.mint(sub=None), "sub"),
}


@pytest.mark.parametrize("name", TOKENS)
async def test_a_token_that_is_not_good_here_proves_nobody(name: str, clients: Clients, provider: Provider) -> None:
    make, word = TOKENS[name]
    provider.replies["/token"] = Reply({"access_token": make(provider), "token_type": "Bearer"})
    refusal = await refused(clients)
    assert isinstance(refusal, Rejected)
    assert word in logged(refusal)
    said = {"opaque": "access tokens are JWTs", "encrypted": "encrypts this client's tokens"}
    assert said.get(name, "tell whoever runs this") in told(refusal)


async def test_a_refused_pair_is_not_asked_about_again_for_a_while(
    clients: Clients, provider: Provider, registered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Basic("prefect-night", "wrong")
    for _ in range(50):
        assert isinstance(await refused(clients, wrong), Rejected)
    assert len(provider.calls) == 1
    assert (await clients.authenticate(NIGHT)).principal.name == "prefect-night"  # nobody else waits for that
    registered["prefect-night"] = "wrong"
    clients._refused.clear()
    assert (await clients.authenticate(wrong)).principal.name == "prefect-night"
    assert module.REFUSED_SECONDS <= 30


async def test_no_more_calls_at_once_than_may_be_and_no_more_callers_wait(provider: Provider) -> None:
    under_way: list[int] = []
    most = 0
    answers = threading.Event()

    def slow(_: Call) -> Reply:
        nonlocal most
        under_way.append(1)
        most = max(most, len(under_way))
        answers.wait(5)
        under_way.pop()
        return Reply({"error": "invalid_client"}, 401)

    provider.replies["/token"] = slow
    async with asking(provider.url) as clients:
        answers.set()
        await refused(clients, Basic("prefect-first", "x"))  # discovers
        answers.clear()
        flood = [
            asyncio.create_task(refused(clients, Basic("prefect-night", f"guess {number}"))) for number in range(200)
        ]
        too_many = len(flood) - CALLS_AT_ONCE - CALLS_WAITING
        async with asyncio.timeout(5):
            while sum(one.done() for one in flood) < too_many:
                await asyncio.sleep(0.01)
        answers.set()
        kinds = [type(one) for one in await asyncio.gather(*flood)]
    assert most <= CALLS_AT_ONCE
    assert kinds.count(Rejected) == CALLS_AT_ONCE + CALLS_WAITING
    assert kinds.count(Throttled) == too_many
    assert len(provider.calls) == 1 + CALLS_AT_ONCE + CALLS_WAITING


# for how long ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets time pass."""
    ahead, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    def passes(seconds: float) -> None:
        ahead[0] += seconds

    return passes


@pytest.mark.parametrize(("lifetime", "within"), [(3_600, 300), (60, 60)])
async def test_a_rotated_secret_ends_with_what_is_remembered(
    lifetime: int, within: int, clients: Clients, provider: Provider, registered: dict[str, str], clock: Any
) -> None:
    provider.grant_to(registered, lifetime=lifetime)
    await clients.authenticate(NIGHT)
    registered["prefect-night"] = "another secret"
    assert (await clients.authenticate(Basic("prefect-night", "another secret"))).principal.name == "prefect-night"
    clock(within - 5)
    assert (await clients.authenticate(NIGHT)).until <= time.time() + 5
    clock(6)
    assert isinstance(await refused(clients), Rejected)


async def test_when_what_is_remembered_runs_out_and_the_issuer_is_away_nothing_is_decided(
    clients: Clients, provider: Provider, clock: Any
) -> None:
    await clients.authenticate(NIGHT)
    provider.stop()
    clock(200)
    assert (await clients.authenticate(NIGHT)).principal.name == "prefect-night"
    clock(101)
    refusal = await refused(clients)
    assert isinstance(refusal, OutOfReach)
    assert refusal.retry_after >= 1
    provider.start()
    assert (await clients.authenticate(NIGHT)).principal.name == "prefect-night"


async def test_what_is_remembered_is_verified_by_the_keys_of_now(clients: Clients, provider: Provider) -> None:
    await clients.authenticate(NIGHT)
    provider.rotate()
    provider.drop_old()
    assert await clients._issuer.keys.refresh(clients._issuer.policy)
    assert (await clients.authenticate(NIGHT)).principal.name == "prefect-night"
    assert len(provider.calls) == 2  # its token was by a key that is gone, so another was asked for


async def test_other_settings_decide_about_what_was_granted_before_them(provider: Provider) -> None:
    async with AsyncExitStack() as stack:
        memory = ClientTokens()
        before = await stack.enter_async_context(asking(provider.url, memory=memory))
        await before.authenticate(NIGHT)
        alike = await stack.enter_async_context(asking(provider.url, memory=memory, role="viewer"))
        assert (await alike.authenticate(NIGHT)).principal.roles == ("viewer",)
        assert len(provider.calls) == 1
        stricter = await stack.enter_async_context(
            asking(provider.url, memory=memory, audiences=frozenset({"billing"}))
        )
        assert isinstance(await refused(stricter), Rejected)
        other = await stack.enter_async_context(asking(provider.url, replace(POLICY, remember=10), memory=memory))
        assert (await other.authenticate(NIGHT)).until <= time.time() + 10


# replicas -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("redis")
    with RedisServer(folder) as running:
        yield running


@pytest.fixture
async def store(redis: RedisServer, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made = Store(redis.url, f"{request.node.name}:", timeout=PATIENT)
    yield made
    await made.close()


async def everything(store: Store) -> dict[str, str]:
    names = [name async for name in store._client.scan_iter(f"{store._prefix}*")]
    return {name: await store._client.get(name) for name in names}


async def test_a_second_replica_makes_no_call_and_no_secret_is_in_the_store(provider: Provider, store: Store) -> None:
    async with (
        asking(provider.url, shared=Shared(store, Seal((KEY,)))) as first,
        asking(provider.url, shared=Shared(store, Seal((KEY,)))) as second,
    ):
        proof = await first.authenticate(NIGHT)
        kept = await everything(store)
        assert len(kept) == 1
        assert (await second.authenticate(NIGHT)).until == pytest.approx(proof.until, abs=1)
        assert len(provider.calls) == 1
        (granted,) = first._memory.granted.values()
    for secret in (NIGHT.username, NIGHT.password, granted.token, granted.token.split(".")[1], KEY):
        assert secret not in json.dumps(kept)
    assert 0 < await store._client.pttl(next(iter(kept))) <= 300_000


async def test_the_store_gives_nobody_what_was_granted_to_another(
    provider: Provider, registered: dict[str, str], store: Store
) -> None:
    registered["prefect-admin"] = "an admin's secret"
    admin = Basic("prefect-admin", "an admin's secret")
    seals = [Seal((KEY,)), Seal((KEY,)), Seal(("another-key-that-has-more-than-32-characters",))]
    async with AsyncExitStack() as stack:
        first, second, stranger = [
            await stack.enter_async_context(asking(provider.url, shared=Shared(store, seal))) for seal in seals
        ]
        await first.authenticate(admin)
        ((_, sealed),) = (await everything(store)).items()
        registered["prefect-night"] = "gone"
        await store.keep(second._shared_name(NIGHT), sealed, 60)  # whoever can write to the store swaps the names
        assert isinstance(await refused(second), Rejected)
        assert (await stranger.authenticate(admin)).principal.name == "prefect-admin"  # by a call of its own
        audience = replace(POLICY, audience="another")
        other = await stack.enter_async_context(asking(provider.url, audience, Shared(store, Seal((KEY,)))))
        await other.authenticate(admin)
    assert [call.form.get("audience") for call in provider.calls] == [None, None, None, "another"]


async def test_without_the_store_each_replica_asks_by_itself(provider: Provider, redis: RedisServer) -> None:
    store = Store(redis.url, "away:")
    redis.freeze()
    try:
        shared = Shared(store, Seal((KEY,)))
        async with asking(provider.url, shared=shared) as first, asking(provider.url, shared=shared) as second:
            for one in (first, second):
                assert (await one.authenticate(NIGHT)).principal.name == "prefect-night"
    finally:
        redis.thaw()
        await store.close()
    assert len(provider.calls) == 2


# a certified provider -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    provider = OpenIDProvider(tmp_path_factory.mktemp("openid"))
    provider.start()
    yield provider
    provider.stop()


async def test_a_certified_provider_vouches_for_its_client_and_no_other(certified: OpenIDProvider) -> None:
    policy = replace(POLICY, resource=f"{AUDIENCE}/EdDSA", scopes=frozenset({"prefect:write"}))
    trust = {"audiences": frozenset({AUDIENCE}), "required_scopes": frozenset({"prefect:write"})}
    async with asking(certified.url, policy, **trust) as clients:
        who = (await clients.authenticate(Basic("worker", "worker-secret"))).principal
        assert (who.subject, who.groups) == ("worker", ("machines",))
        for wrong in (Basic("worker", "worker-secret "), Basic("nobody", "worker-secret"), Basic("browser", "x")):
            assert isinstance(await refused(clients, wrong), Rejected)
        # with its right secret it is told that it may not have tokens this way: that is for operators to put right
        assert isinstance(await refused(clients, Basic("browser", "browser-secret")), OutOfReach)
    async with asking(certified.url, replace(policy, scopes=frozenset()), **trust) as clients:
        refusal = await refused(clients, Basic("worker", "worker-secret"))
        assert (type(refusal), "prefect:write" in logged(refusal)) == (Rejected, True)  # a scope that nobody asked for


async def test_a_certified_provider_that_goes_and_comes_back(certified: OpenIDProvider) -> None:
    policy = replace(POLICY, resource=f"{AUDIENCE}/RS256")
    async with asking(certified.url, policy, audiences=frozenset({AUDIENCE})) as clients:
        with pytest.raises(Rejected):
            await clients.authenticate(Basic("worker", "wrong"))
        certified.stop()
        assert isinstance(await refused(clients, Basic("worker", "worker-secret")), OutOfReach)
        certified.start()
        assert await clients._issuer.keys.refresh(clients._issuer.policy)  # it came back with other keys
        assert (await clients.authenticate(Basic("worker", "worker-secret"))).principal.subject == "worker"


def test_nothing_of_it_shows_a_token() -> None:
    assert "secret" not in repr(ClientToken("a-secret-token", 1.0))
