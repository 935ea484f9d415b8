"""Opaque tokens: their issuer says whose they are, and whatever it does not clearly say is no Allow."""

import asyncio
import base64
import hashlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from service.adapters.oauth_endpoints import MAX_INTROSPECTION
from service.adapters.outbound import open_client
from service.authn import introspection as module
from service.authn.introspection import CALLS_AT_ONCE, CALLS_WAITING, Introspection
from service.authn.tokens import Tokens
from service.core.errors import OutOfReach, Refusal, Rejected, Throttled, Unclear
from service.core.model import ALGORITHMS, Bearer, IssuerTrust, Principal, Proof
from service.core.problems import Problem
from service.state.concurrency import RefusalDelay
from service.state.introspections import INACTIVE_SECONDS, ActiveToken, IntrospectionPolicy, Introspections
from service.state.issuer_keys import KeyPolicy
from tests.authn.conftest import issuer_of
from tests.support.issuer import Call, Reply
from tests.support.issuer import Issuer as Provider
from tests.support.openid import AUDIENCE, OpenIDProvider, ProviderBrowser
from tests.support.refusals import logged, told

pytestmark = pytest.mark.anyio

TOKEN = Bearer(b"2YotnFZFEjr1zCsicMWpAA")
POLICY = IntrospectionPolicy("gate", "the gate's secret", timeout=5)


def active(**changes: Any) -> dict[str, Any]:
    """Return the answer about a token that is good but for what is given here; a member of None is left out."""
    now = int(time.time())
    good = {"active": True, "sub": "svc", "aud": "prefect", "exp": now + 86_400, "iat": now, "token_type": "Bearer"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider("ES256") as running:
        running.metadata["introspection_endpoint"] = f"{running.url}/introspect"
        running.replies["/introspect"] = Reply(active())
        yield running


@asynccontextmanager
async def asking(
    url: str, policy: IntrospectionPolicy = POLICY, memory: Introspections | None = None, **trust: Any
) -> AsyncIterator[Tokens]:
    """Yield what verifies tokens of an issuer that is asked about opaque ones."""
    trusted = {"audiences": frozenset({"prefect"}), "algorithms": ALGORITHMS, "role": "worker", **trust}
    async with open_client("test") as client:
        issuer = issuer_of(IssuerTrust(url, **trusted), client, policy=KeyPolicy(timeout=5, cooldown=0.01))
        asked = Introspection(issuer, policy, client, memory or Introspections(), RefusalDelay())
        yield Tokens({url: issuer}, introspection=asked)
        await issuer.keys.close()


@pytest.fixture
async def tokens(provider: Provider) -> AsyncIterator[Tokens]:
    async with asking(provider.url) as made:
        yield made


def memory_of(tokens: Tokens) -> Introspections:
    assert tokens._introspection is not None
    return tokens._introspection._memory


async def refused(tokens: Tokens, credential: Bearer = TOKEN) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await tokens.authenticate(credential)
    return caught.value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets time pass."""
    ahead, wall = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: wall() + ahead[0])

    def passes(seconds: float) -> None:
        ahead[0] += seconds

    return passes


# whose it is ----------------------------------------------------------------------------------------------


async def test_the_issuer_says_whose_it_is_and_is_asked_once(tokens: Tokens, provider: Provider) -> None:
    provider.replies["/introspect"] = Reply(active(scope="a b", groups=["g"], username="Svc"))
    proofs = await asyncio.gather(*(tokens.authenticate(TOKEN) for _ in range(20)))
    proofs.append(await tokens.authenticate(TOKEN))
    (who,) = {one.principal for one in proofs}
    assert (who.issuer, who.subject, who.name, who.roles) == (provider.url, "svc", "svc", ("worker",))
    assert (who.scopes, who.groups) == ({"a", "b"}, ("g",))
    (call,) = provider.calls
    assert call.form == {"token": TOKEN.token.decode(), "token_type_hint": "access_token"}
    pair = base64.b64encode(b"gate:the+gate%27s+secret").decode()
    assert (call.headers["authorization"], call.headers["accept"]) == (f"Basic {pair}", "application/json")
    assert memory_of(tokens).outcomes == {(provider.url, "active"): 1}
    assert time.time() < proofs[0].until <= time.time() + POLICY.remember


async def test_the_secret_may_go_into_the_form_and_the_endpoint_may_be_told(provider: Provider) -> None:
    del provider.metadata["introspection_endpoint"]
    async with asking(provider.url) as tokens:
        assert isinstance(await refused(tokens), OutOfReach)
    told_it = replace(POLICY, endpoint=f"{provider.url}/introspect", client_auth="client_secret_post")
    async with asking(provider.url, told_it) as tokens:
        assert (await tokens.authenticate(TOKEN)).principal.name == "svc"
    (call,) = provider.calls
    assert (call.form["client_id"], call.form["client_secret"]) == (POLICY.client_id, POLICY.client_secret)
    assert "authorization" not in call.headers


async def test_a_jwt_is_never_asked_about(tokens: Tokens, provider: Provider) -> None:
    assert (await tokens.authenticate(Bearer(provider.mint().encode()))).principal.name == "svc"
    for jwt in (provider.mint(exp=1, iat=1), provider.mint()[:-8] + "AAAAAAAA", "a.b.c", "eyJ..", "ya29.c.opaque"):
        assert isinstance(await refused(tokens, Bearer(jwt.encode())), Rejected), jwt
    assert provider.calls == []


@pytest.mark.parametrize("token", [b"a.b", b"opaque", b"a.b.c.d.e", b"ory_at_x.y", b"100%/+~=".replace(b"%", b"_")])
async def test_everything_else_is_opaque(token: bytes, tokens: Tokens, provider: Provider) -> None:
    assert (await tokens.authenticate(Bearer(token))).principal.name == "svc"
    assert provider.calls[0].form["token"] == token.decode()


async def test_without_introspection_an_opaque_token_is_refused(provider: Provider) -> None:
    async with open_client("test") as client:
        issuer = issuer_of(IssuerTrust(provider.url, frozenset({"prefect"}), ALGORITHMS), client)
        assert (await refused(Tokens({provider.url: issuer}))).problem is Problem.TOKEN_NOT_A_JWT
    assert provider.calls == []


# answers that prove nobody --------------------------------------------------------------------------------

# the answer, the kind of refusal, and what it says: a worker ends at its first 401, so what does not decide is 503
ANSWERS: dict[str, tuple[Reply, type[Refusal], Problem]] = {
    "inactive": (Reply({"active": False}), Rejected, Problem.TOKEN_NOT_ACTIVE),
    "inactive, with claims": (Reply(active(active=False)), Rejected, Problem.TOKEN_NOT_ACTIVE),
    "active is a word": (Reply(active(active="true")), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "active is one": (Reply(active(active=1)), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "active is missing": (Reply(active(active=None)), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "active twice": (Reply(b'{"active": false, "active": true}'), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "a list": (Reply(json.dumps([active()]).encode()), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "not JSON": (Reply(b"\xff\xfe"), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "a page": (Reply(b"<html>", 200, "text/html"), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "JSON as a page": (Reply(active(), 200, "text/html"), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "signed": (
        Reply(b"eyJ.e30.x", 200, "application/token-introspection+jwt"),
        OutOfReach,
        Problem.ISSUER_OUT_OF_REACH,
    ),
    "our secret is wrong": (Reply({"error": "invalid_client"}, 401), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "we may not ask": (Reply(active(), 403), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "not found": (Reply(active(), 404), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "created": (Reply(active(), 201), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "a redirect": (Reply(active(), 302, headers={"Location": "/introspect"}), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "busy": (Reply(active(), 429), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "broken": (Reply(active(), 500), Unclear, Problem.ISSUER_OUT_OF_REACH),
    "too long": (Reply(active(x="x" * MAX_INTROSPECTION)), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "packed": (Reply(active(), headers={"Content-Encoding": "gzip"}), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "slow": (Reply(active(), delay=2.0), OutOfReach, Problem.ISSUER_OUT_OF_REACH),
    "another issuer": (Reply(active(iss="https://evil.example")), Rejected, Problem.ISSUER_NOT_TRUSTED),
    "issuer is null": (Reply(b'{"active":true,"iss":null,"aud":"prefect"}'), Rejected, Problem.ISSUER_NOT_TRUSTED),
    "another audience": (Reply(active(aud="billing")), Rejected, Problem.AUDIENCE_OTHER),
    "no audience": (Reply(active(aud=None)), Rejected, Problem.AUDIENCE_MISSING),
    "no expiry": (Reply(active(exp=None)), Rejected, Problem.EXPIRY_MISSING),
    "expired": (Reply(active(exp=1)), Rejected, Problem.TOKEN_EXPIRED),
    "expiry is a word": (Reply(active(exp="never")), Rejected, Problem.DATE_INVALID),
    "expiry is true": (Reply(active(exp=True)), Rejected, Problem.DATE_INVALID),
    "expiry is huge": (Reply(active(exp=10**400)), Rejected, Problem.DATE_INVALID),
    "not yet": (Reply(active(nbf=time.time() + 10_000)), Rejected, Problem.TOKEN_NOT_YET_VALID),
    "nobody": (Reply(active(sub=None)), Rejected, Problem.PRINCIPAL_NOT_NAMED),
    "only a client": (Reply(active(sub=None, client_id="ci")), Rejected, Problem.PRINCIPAL_NOT_NAMED),
    "bound to a key": (Reply(active(cnf={"jkt": "x"})), Rejected, Problem.TOKEN_SENDER_CONSTRAINED),
    "bound by its type": (Reply(active(token_type="DPoP")), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "Keycloak's refresh token": (Reply(active(typ="Refresh")), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "Hydra's refresh token": (Reply(active(token_use="refresh_token")), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "a refresh token": (Reply(active(token_type="refresh_token")), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "no type, no audience": (Reply(active(token_type=None, aud=None)), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "an ID token": (Reply(active(nonce="n")), Rejected, Problem.NOT_AN_ACCESS_TOKEN),
    "a name with a new line": (Reply(active(sub="a\nb")), Rejected, Problem.CLAIM_UNUSABLE),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_an_answer_says_of_a_token(name: str, provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    provider.replies["/introspect"], kind, problem = ANSWERS[name]
    caplog.set_level(logging.DEBUG)
    async with asking(provider.url, replace(POLICY, timeout=1.0 if name == "slow" else 5.0)) as tokens:
        refusal = await refused(tokens)
        assert (type(refusal), refusal.problem) == (kind, problem), logged(refusal)
        if isinstance(refusal, OutOfReach):
            assert refusal.retry_after >= 1
            assert memory_of(tokens).outcomes == {(provider.url, "unavailable"): 1}
            provider.replies["/introspect"] = Reply(active())
            assert (await tokens.authenticate(TOKEN)).principal.name == "svc"  # nothing of it is remembered
        else:
            assert isinstance(await refused(tokens), Rejected)
            assert len(provider.calls) == 1  # remembered, for as long as the other tests say
    shown = f"{told(refusal)} {logged(refusal)} {caplog.text}"
    assert TOKEN.token.decode() not in shown
    assert POLICY.client_secret not in shown


async def test_an_issuer_that_is_away_decides_nothing(tokens: Tokens, provider: Provider, clock: Any) -> None:
    await tokens.authenticate(TOKEN)
    provider.stop()
    assert (await tokens.authenticate(TOKEN)).principal.name == "svc"
    assert isinstance(await refused(tokens, Bearer(b"another")), OutOfReach)
    clock(POLICY.remember + 1)
    assert isinstance(await refused(tokens), OutOfReach)  # never allowed by an answer that is over
    provider.start()
    assert (await tokens.authenticate(TOKEN)).principal.name == "svc"


@pytest.mark.parametrize("endpoint", ["http://idp.example.com/introspect", "ftp://127.0.0.1/introspect"])
async def test_no_token_is_sent_in_clear(provider: Provider, endpoint: str) -> None:
    provider.metadata["introspection_endpoint"] = endpoint
    async with asking(provider.url) as tokens:
        refusal = await refused(tokens)
    assert isinstance(refusal, OutOfReach)
    assert "is not an https URL" in logged(refusal)


async def test_a_type_may_be_missing_where_an_audience_is_named_and_never_else(provider: Provider) -> None:
    provider.replies["/introspect"] = Reply(active(token_type=None))
    async with asking(provider.url) as tokens:
        assert (await tokens.authenticate(TOKEN)).principal.name == "svc"
    provider.replies["/introspect"] = Reply(active(token_type=None, aud=None, client_id="prefect"))
    async with asking(provider.url, client_id_as_audience=True) as tokens:
        assert (await refused(tokens)).problem is Problem.NOT_AN_ACCESS_TOKEN
    provider.replies["/introspect"] = Reply(active(aud=None, client_id="prefect"))
    async with asking(provider.url, client_id_as_audience=True) as tokens:
        assert (await tokens.authenticate(TOKEN)).principal.name == "svc"


async def test_who_accepts_tokens_that_are_bound_to_a_key_says_so(provider: Provider) -> None:
    provider.replies["/introspect"] = Reply(active(token_type="DPoP", cnf={"jkt": "x"}))
    async with asking(provider.url, allow_sender_constrained=True) as tokens:
        assert (await tokens.authenticate(TOKEN)).principal.name == "svc"


async def test_a_client_is_the_subject_of_its_own_token_if_the_configuration_says_so(provider: Provider) -> None:
    provider.replies["/introspect"] = Reply(active(sub=None, client_id="ci"))
    async with asking(provider.url, principal_claim="client_id") as tokens:
        who = (await tokens.authenticate(TOKEN)).principal
        assert (who.subject, who.name) == ("ci", "ci")
    provider.replies["/introspect"] = Reply(active(client_id="ci"))
    async with asking(provider.url, principal_claim="client_id") as tokens:
        who = (await tokens.authenticate(TOKEN)).principal
        assert (who.subject, who.name) == ("svc", "ci")


async def test_other_rules_of_a_token_hold_too(provider: Provider) -> None:
    for trust, problem in (
        ({"required_scopes": frozenset({"prefect"})}, Problem.SCOPE_MISSING),
        ({"required_claims": {"tenant": frozenset({"a"})}}, Problem.CLAIM_NOT_ACCEPTED),
        ({"authorized_parties": frozenset({"ci"})}, Problem.PARTY_NOT_ACCEPTED),
        ({"token_types": frozenset({"at+jwt"})}, None),  # a header that such a token does not have
    ):
        async with asking(provider.url, **trust) as tokens:
            if problem is not None:
                assert (await refused(tokens)).problem is problem
            else:
                assert (await tokens.authenticate(TOKEN)).principal.name == "svc"


# for how long ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lifetime", "within"), [(3_600, 60), (20, 20)])
async def test_a_revoked_token_ends_with_what_is_remembered(
    lifetime: int, within: int, tokens: Tokens, provider: Provider, clock: Any
) -> None:
    provider.replies["/introspect"] = Reply(active(exp=int(time.time()) + lifetime))
    proof = await tokens.authenticate(TOKEN)
    assert proof.until <= time.time() + within
    assert proof.principal.expires == proof.until  # a WebSocket ends then, unless the issuer says otherwise
    provider.replies["/introspect"] = Reply({"active": False})
    clock(within - 5)
    await tokens.authenticate(TOKEN)
    clock(6)
    assert (await refused(tokens)).problem is Problem.TOKEN_NOT_ACTIVE
    assert not memory_of(tokens).active


async def test_a_token_that_is_not_active_is_asked_about_again_after_a_while(
    tokens: Tokens, provider: Provider
) -> None:
    provider.replies["/introspect"] = Reply({"active": False})
    for _ in range(50):
        assert isinstance(await refused(tokens), Rejected)
    assert len(provider.calls) == 1
    provider.replies["/introspect"] = Reply(active())
    assert (await tokens.authenticate(Bearer(b"another"))).principal.name == "svc"
    memory_of(tokens).inactive.expire(time.monotonic() + INACTIVE_SECONDS + 1)
    assert (await tokens.authenticate(TOKEN)).principal.name == "svc"


async def test_settings_of_now_decide_about_an_answer_from_before(provider: Provider) -> None:
    memory = Introspections()
    async with asking(provider.url, memory=memory) as before:
        await before.authenticate(TOKEN)
    async with asking(provider.url, memory=memory, role="viewer") as alike:
        assert (await alike.authenticate(TOKEN)).principal.roles == ("viewer",)
    async with asking(provider.url, memory=memory, audiences=frozenset({"billing"})) as stricter:
        assert isinstance(await refused(stricter), Rejected)
    assert len(provider.calls) == 1
    for other in (replace(POLICY, client_id="other"), replace(POLICY, remember=10)):
        async with asking(provider.url, other, memory=memory) as asked:
            assert (await asked.authenticate(TOKEN)).until <= time.time() + other.remember
    assert len(provider.calls) == 3


# how many -------------------------------------------------------------------------------------------------


async def test_invented_tokens_wait_for_each_other_and_nobody_else_for_them(
    tokens: Tokens, provider: Provider, clock: Any
) -> None:
    under_way: list[int] = []
    most = 0
    answers = threading.Event()

    def slow(call: Call) -> Reply:
        nonlocal most
        if call.form["token"] == TOKEN.token.decode():
            return Reply(active(exp=int(time.time()) + 300))
        under_way.append(1)
        most = max(most, len(under_way))
        answers.wait(5)
        under_way.pop()
        return Reply({"active": False})

    provider.replies["/introspect"] = slow
    await tokens.authenticate(TOKEN)
    flood = [asyncio.create_task(refused(tokens, Bearer(b"guess-%d" % number))) for number in range(200)]
    too_many = len(flood) - CALLS_AT_ONCE - CALLS_WAITING
    async with asyncio.timeout(5):
        while sum(one.done() for one in flood) < too_many:
            await asyncio.sleep(0.01)
    clock(POLICY.remember + 1)
    assert (await tokens.authenticate(TOKEN)).principal.name == "svc"  # asked about anew, while all others wait
    answers.set()
    kinds = [type(one) for one in await asyncio.gather(*flood)]
    assert most <= CALLS_AT_ONCE
    assert kinds.count(Throttled) == too_many
    assert kinds.count(Rejected) == CALLS_AT_ONCE + CALLS_WAITING


async def test_what_is_remembered_has_a_bound_and_holds_no_token() -> None:
    memory = Introspections()
    memory.active[memory.key_of(TOKEN.token, b"asked")] = ActiveToken({"sub": "svc"}, 1.0)
    assert TOKEN.token not in str(memory.active).encode()
    assert memory.active.maxsize == memory.inactive.maxsize == 10_000
    assert memory.key_of(b"b", b"a") != memory.key_of(b"", b"ab")
    assert POLICY.client_secret not in repr(POLICY)
    assert module.CALLS_WAITING < 1_000


# a certified provider -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(tmp_path_factory.mktemp("openid")) as provider:
        yield provider


WORKER = IntrospectionPolicy("worker", "worker-secret", timeout=10)
TRUST = {"audiences": frozenset({AUDIENCE}), "required_scopes": frozenset({"prefect:write"})}


async def proved(tokens: Tokens, token: str) -> Principal:
    proof: Proof = await tokens.authenticate(Bearer(token.encode()))
    return proof.principal


async def test_a_certified_providers_opaque_tokens(certified: OpenIDProvider, clock: Any) -> None:
    token = certified.token("opaque")
    assert "." not in token
    async with asking(certified.url, WORKER, principal_claim="client_id", **TRUST) as tokens:
        who = await proved(tokens, token)
        assert (who.subject, who.name, who.groups) == ("worker", "worker", ("machines",))
        assert (await refused(tokens, Bearer(token[:-1].encode()))).problem is Problem.TOKEN_NOT_ACTIVE
        assert (await proved(tokens, certified.token("ES256"))).subject == "worker"  # a JWT needs no answer
        certified.revoke(token)
        clock(WORKER.remember + 1)
        assert (await refused(tokens, Bearer(token.encode()))).problem is Problem.TOKEN_NOT_ACTIVE
    async with asking(certified.url, replace(WORKER, client_secret="wrong"), **TRUST) as tokens:
        assert isinstance(await refused(tokens, Bearer(certified.token("opaque").encode())), OutOfReach)


async def test_a_certified_providers_refresh_token_is_no_access_token(certified: OpenIDProvider) -> None:
    """The provider says of both that they are active."""
    verifier = "v" * 50
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "client_id": "browser",
        "response_type": "code",
        "scope": "openid offline_access prefect:write",
        "resource": f"{AUDIENCE}/opaque",
        "redirect_uri": "http://127.0.0.1:8000/_auth/callback",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "prompt": "consent",
    }
    with ProviderBrowser(certified) as browser:
        code = browser.sign_in(f"{certified.url}/auth?{urlencode(asked)}", "alice")["code"]
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": verifier,
        "redirect_uri": asked["redirect_uri"],
        "resource": asked["resource"],
    }
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{certified.url}/token", data=form, auth=("browser", "browser-secret"))
    granted = answer.json()
    async with asking(certified.url, WORKER, client_id_as_audience=True, **TRUST) as tokens:
        who = await proved(tokens, granted["access_token"])
        assert (who.subject, who.groups) == ("alice", ("data-engineers", "prefect-admins"))
        assert (await refused(tokens, Bearer(granted["refresh_token"].encode()))).problem is Problem.NOT_AN_ACCESS_TOKEN
        assert isinstance(await refused(tokens, Bearer(granted["id_token"].encode())), Rejected)
