"""The relying party before a small provider that answers whatever it is told: hostile, broken, slow, gone."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.outbound import MAX_DOCUMENT, open_client
from service.authn.oidc import MAX_HINT, RelyingParty
from service.core.errors import NotPermitted, OutOfReach, Refusal, Rejected, SessionEnded, SignInFailed
from service.core.identity.sign_in import LOGOUT_EVENT, SignedIn
from service.core.model import ALGORITHMS, IssuerTrust
from service.core.problems import Problem
from service.state.issuer_keys import KeyPolicy
from tests.authn.conftest import issuer_of, renew, session_of
from tests.support.issuer import Issuer as Provider
from tests.support.issuer import Reply, SigningKey, b64url, encode_jws
from tests.support.refusals import logged, refused, told
from tests.support.waiting import free_port

pytestmark = pytest.mark.anyio

BACK = "https://prefect.example/_auth/callback"
CODE = "code-0123456789"
VERIFIER = "verifier-" + "v" * 40
SECRET = "client secret: 0123/+%"
ACCESS = "access-0123456789"
REFRESH = "refresh-0123456789"
SECRETS = (CODE, VERIFIER, SECRET, ACCESS, REFRESH)
QUICK = KeyPolicy(cooldown=0, timeout=2)
POLICY = ClientPolicy("gate", SECRET, timeout=1)
ENDPOINTS = {"authorization": "/auth", "token": "/token", "userinfo": "/userinfo", "revocation": "/revoke"}


@pytest.fixture
def provider() -> Any:
    with Provider("ES256", "EdDSA") as running:
        running.metadata = {f"{name}_endpoint": running.url + path for name, path in ENDPOINTS.items()}
        running.metadata["end_session_endpoint"] = running.url + "/end"
        running.replies["/userinfo"] = Reply({"sub": "248", "email": "alice@example.test", "groups": ["data"]})
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client("tests") as one:
        yield one


@pytest.fixture
def relying(provider: Provider, client: httpx.AsyncClient) -> Callable[..., RelyingParty]:
    """Return a maker of relying parties, with changes of policy and of trust."""

    def make(policy: ClientPolicy = POLICY, **changes: Any) -> RelyingParty:
        trust = replace(IssuerTrust(provider.url, frozenset({"gate"}), ALGORITHMS), **changes)
        return RelyingParty(issuer_of(trust, client, policy=QUICK), policy, client, {})

    return make


def id_token(provider: Provider, *, alg: str = "ES256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims = {"sub": "248", "aud": "gate", "nonce": "n", "email": "alice@example.test", "groups": ["data"], **changes}
    return provider.mint(alg=alg, header={"typ": None, **(header or {})}, **claims)


def tokens(token: str, **changes: Any) -> Reply:
    body = {"access_token": ACCESS, "token_type": "Bearer", "id_token": token, "refresh_token": REFRESH, **changes}
    return Reply({name: value for name, value in body.items() if value is not None})


async def redeem(party: RelyingParty, **changes: str) -> SignedIn:
    call = {"code_verifier": VERIFIER, "nonce": "n", "redirect_uri": BACK, **changes}
    return await party.redeem(CODE, **call)


def assert_tells_nothing(refusal: Refusal) -> None:
    for secret in SECRETS:
        assert secret not in f"{refusal!r} {told(refusal)} {logged(refusal)}"


# what goes well -------------------------------------------------------------------------------------------------


async def test_a_code_becomes_a_person(provider: Provider, relying: Callable[..., RelyingParty]) -> None:
    provider.replies["/token"] = tokens(id_token(provider, sid="s-1"))
    who = await redeem(relying())
    assert who[:7] == (provider.url, "248", "248", "alice@example.test", ("data",), {}, "s-1")
    assert (who.id_token.count("."), who.refresh_token) == (2, REFRESH)
    (call,) = provider.calls
    assert call.form == {
        "grant_type": "authorization_code",
        "code": CODE,
        "redirect_uri": BACK,
        "code_verifier": VERIFIER,
    }
    assert not any(secret in f"{who!r}" for secret in SECRETS)


@pytest.mark.parametrize(
    ("claims", "userinfo", "asked"),
    [
        pytest.param({}, "auto", 0, id="auto-and-nothing-missing"),
        pytest.param({"groups": None}, "auto", 1, id="auto-without-groups"),
        pytest.param({"email": None}, "auto", 1, id="auto-without-email"),
        pytest.param({}, "always", 1, id="always"),
        pytest.param({"groups": None}, "never", 0, id="never"),
    ],
)
async def test_userinfo_is_asked_as_configured(
    claims: dict[str, Any], userinfo: Any, asked: int, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider, **claims))
    who = await redeem(relying(replace(POLICY, userinfo=userinfo)))
    calls = [call for call in provider.calls if call.path == "/userinfo"]
    assert [call.headers["authorization"] for call in calls] == [f"Bearer {ACCESS}"] * asked
    assert who.groups == (() if userinfo == "never" else ("data",))


@pytest.mark.parametrize("userinfo", ["auto", "always"])
@pytest.mark.parametrize(
    ("claims", "decisive", "roles"),
    [
        pytest.param({}, {"department"}, {"department": ["data"]}, id="a-claim-of-a-grant-alone"),
        pytest.param({"groups": []}, {"groups"}, {}, id="groups-that-are-empty"),
    ],
)
async def test_signing_in_and_the_check_find_the_same(
    userinfo: Any,
    claims: dict[str, Any],
    decisive: set[str],
    roles: dict[str, list[str]],
    provider: Provider,
    relying: Callable[..., RelyingParty],
) -> None:
    kept = frozenset(decisive)
    party = relying(replace(POLICY, userinfo=userinfo, decisive_claims=kept, kept_claims=kept - {"groups"}))
    provider.replies["/token"] = tokens(id_token(provider, **claims))
    provider.replies["/userinfo"] = Reply({"sub": "248", "groups": ["data"], "department": "data"})
    signed_in = await redeem(party)
    checked = await renew(party, REFRESH, subject="248")
    assert (signed_in.groups, signed_in.claims) == (checked.groups, checked.claims) == (("data",), roles)


async def test_roles_that_stand_in_the_access_token_alone_are_read_where_that_is_set(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    policy = replace(POLICY, access_token_claims=True, userinfo="never")
    at = {"sub": "248", "aud": "account", "azp": "gate", "realm_access": {"roles": ["data"]}}
    by_roles = {"groups_claim": "realm_access.roles"}
    provider.replies["/token"] = tokens(id_token(provider), access_token=provider.mint(**at))
    assert (await redeem(relying(policy, **by_roles))).groups == ("data",)
    assert (await renew(relying(policy, **by_roles), REFRESH, subject="248")).groups == ("data",)
    assert (await redeem(relying(**by_roles))).groups == ()
    for stranger in (
        provider.mint(**{**at, "azp": "other"}),
        provider.mint(**{**at, "sub": "1"}),
        provider.mint(key=STRANGER, **at),
        "opaque",
    ):
        provider.replies["/token"] = tokens(id_token(provider), access_token=stranger)
        with pytest.raises(SignInFailed):
            await redeem(relying(policy, **by_roles))


async def test_what_a_sign_in_lacks_is_one_line_that_says_what_helps(
    provider: Provider, relying: Callable[..., RelyingParty], caplog: pytest.LogCaptureFixture
) -> None:
    def policy(preset: str = "") -> ClientPolicy:
        return replace(POLICY, userinfo="never", decisive_claims=frozenset({"groups"}), preset=preset)

    provider.replies["/token"] = tokens(id_token(provider))
    await redeem(relying(policy()))
    provider.replies["/token"] = tokens(id_token(provider, groups=[]))
    await redeem(relying(policy()))
    assert caplog.text == ""
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    await redeem(relying(policy()))
    await redeem(relying(policy("keycloak")))
    first, second = caplog.records
    assert "without any groups" in first.getMessage()
    assert "oidc.groups_claim" in first.getMessage()
    assert "Group Membership" in second.getMessage()
    assert (second.fields["user"], second.fields["claim"]) == ("248", "groups")  # type: ignore[attr-defined]
    await redeem(relying(replace(POLICY, userinfo="never")))  # groups give no role
    assert len(caplog.records) == 2
    provider.replies["/token"] = tokens(id_token(provider, groups="data,ops"))
    await redeem(relying(policy()))
    assert "oidc.groups_separator" in caplog.records[2].getMessage()


async def test_a_provider_without_refresh_tokens_is_told_once(
    provider: Provider, relying: Callable[..., RelyingParty], caplog: pytest.LogCaptureFixture
) -> None:
    provider.replies["/token"] = tokens(id_token(provider), refresh_token=None)
    party = relying()
    await redeem(party)
    await redeem(party)
    (line,) = caplog.records
    assert "offline_access" in line.getMessage()


@pytest.mark.parametrize(
    ("listed", "changes", "has_hint", "way"),
    [
        pytest.param(None, {}, True, "sign_out", id="nothing-is-listed"),
        pytest.param(["none", "login", "consent"], {}, True, "sign_out", id="keycloak"),
        pytest.param(["none", "login", "select_account"], {}, True, "select_account", id="it-is-listed"),
        pytest.param("select_account", {}, True, "sign_out", id="no-list"),
        pytest.param(None, {"another_account": "select_account"}, True, "select_account", id="google"),
        pytest.param(None, {"another_account": "login"}, True, "login", id="hydra"),
        pytest.param(["select_account"], {"another_account": "sign_out"}, True, "sign_out", id="as-it-is-set"),
        pytest.param(None, {}, False, "sign_out", id="without-a-hint"),
        pytest.param(None, {"logout_needs_hint": True}, False, "login", id="without-the-hint-that-is-needed"),
        pytest.param(None, {"logout_needs_hint": True}, True, "sign_out", id="with-the-hint-that-is-needed"),
    ],
)
async def test_somebody_else_signs_in_as_the_provider_can(
    listed: Any,
    changes: dict[str, Any],
    has_hint: bool,  # noqa: FBT001 - of the table
    way: str,
    provider: Provider,
    relying: Callable[..., RelyingParty],
) -> None:
    provider.metadata["prompt_values_supported"] = listed
    assert await relying(replace(POLICY, **changes)).way_to_another_account(has_hint=has_hint) == way
    del provider.metadata["end_session_endpoint"]
    by_discovery = "another_account" not in changes and not isinstance(listed, list)  # such as Google's
    expected = "select_account" if by_discovery else "login" if way == "sign_out" else way
    assert await relying(replace(POLICY, **changes)).way_to_another_account(has_hint=has_hint) == expected


async def test_an_issuer_without_userinfo_is_not_asked(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    del provider.metadata["userinfo_endpoint"]
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    assert (await redeem(relying())).groups == ()
    with pytest.raises(SignInFailed):
        await redeem(relying(replace(POLICY, userinfo="always")))


async def test_required_claims_are_looked_for_in_both_and_failing_them_is_not_failing_to_sign_in(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider))
    provider.replies["/userinfo"] = Reply({"sub": "248", "department": "data"})
    assert await redeem(relying(required_claims={"department": frozenset({"data"})}))
    party = relying(required_claims={"department": frozenset({"sales"})})
    with pytest.raises(NotPermitted) as refusal:
        await redeem(party)
    assert (refusal.value.status, refusal.value.name) == (403, "248")
    with pytest.raises(NotPermitted):
        await renew(party, REFRESH, subject="248")


async def test_the_authorization_url_asks_for_what_the_provider_lists(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    async def query(policy: ClientPolicy = POLICY, **more: str) -> dict[str, list[str]]:
        url = await relying(policy).authorization_url(
            state="s", nonce="n", code_challenge="c", redirect_uri=BACK, **more
        )
        assert url.startswith(f"{provider.url}/auth?")
        return parse_qs(urlsplit(url).query)

    assert await query() == {
        "response_type": ["code"],
        "client_id": ["gate"],
        "redirect_uri": [BACK],
        "scope": ["openid profile email groups"],
        "state": ["s"],
        "nonce": ["n"],
        "code_challenge": ["c"],
        "code_challenge_method": ["S256"],
    }
    assert (await query(prompt="select_account"))["prompt"] == ["select_account"]
    provider.metadata["scopes_supported"] = ["email", "offline_access", "phone"]
    assert (await query())["scope"] == ["openid email"]  # and never offline_access by itself
    offline = frozenset({"roles", "offline_access"})
    assert (await query(replace(POLICY, scopes=offline)))["scope"] == ["offline_access openid roles"]
    provider.metadata["authorization_endpoint"] = f"{provider.url}/auth?p=b2c"
    assert (await query())["p"] == ["b2c"]


async def test_what_a_provider_sets_as_a_cookie_is_not_sent_back(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    """One client makes everybody's calls: a cookie would carry one person's session into another's."""
    provider.replies["/token"] = tokens(id_token(provider))._replace(headers={"Set-Cookie": "session=1; Path=/"})
    party = relying(replace(POLICY, userinfo="always"))
    for _ in range(2):
        await redeem(party)
    assert len(provider.calls) == 4
    assert not any("cookie" in map(str.lower, call.headers) for call in provider.calls)


# what is hostile or broken --------------------------------------------------------------------------------------

STRANGER = SigningKey.generate("ES256", "ES256-1")


def unsigned(provider: Provider) -> str:
    payload = id_token(provider).split(".")[1]
    return ".".join([b64url(b'{"alg":"none"}'), payload, b64url(b"x")])


def by_hmac(provider: Provider) -> str:
    payload = id_token(provider).split(".")[1]
    signed = ".".join([b64url(b'{"alg":"HS256","kid":"ES256-1"}'), payload])
    return f"{signed}.{b64url(hmac.digest(SECRET.encode(), signed.encode(), 'sha256'))}"


def by_a_stranger(provider: Provider) -> str:
    return provider.mint(key=STRANGER, header={"typ": None}, sub="248", aud="gate", nonce="n")


def repeated(provider: Provider) -> str:
    claims = json.dumps(
        {"iss": provider.url, "sub": "248", "aud": "gate", "nonce": "n", "iat": 1, "exp": 4_000_000_000}
    )
    payload = claims[:-1].encode() + b', "sub": "1"}'
    return encode_jws({"alg": "ES256", "kid": "ES256-1"}, payload, provider.key())


def token(**changes: Any) -> Callable[[Provider], Reply]:
    return lambda provider: tokens(id_token(provider, **changes))


def made(forge: Callable[[Provider], str]) -> Callable[[Provider], Reply]:
    return lambda provider: tokens(forge(provider))


def sent(**changes: Any) -> Callable[[Provider], Reply]:
    return lambda provider: tokens(id_token(provider), **changes)


def raw(body: bytes = b"{}", **changes: Any) -> Callable[[Provider], Reply]:
    return lambda _: Reply(body, **changes)


def huge(reply: Reply) -> Reply:
    """Return a good answer, and too much of it."""
    return reply._replace(body=json.dumps(dict(reply.body)).encode() + b" " * MAX_DOCUMENT)  # type: ignore[arg-type]


# by the provider's token, its form, and its HTTP; what nobody can be signed in with, and no session may go on with
TOKENS: list[Any] = [
    pytest.param(token(aud="other"), id="row34-foreign-audience"),
    pytest.param(token(aud=["gate", "other"]), id="several-audiences-without-azp"),
    pytest.param(token(azp="other"), id="row34-azp-of-another-client"),
    pytest.param(token(lifetime=-60), id="expired"),
    pytest.param(token(iat=4_000_000_000), id="of-the-future"),
    pytest.param(token(iss="https://other.example"), id="other-issuer"),
    pytest.param(token(sub=None), id="sub-missing"),
    pytest.param(token(sub=["248"]), id="sub-list"),
    pytest.param(token(at_hash="77QmUPtjPfzWtF2AnpK9RQ"), id="at-hash-of-another"),
    pytest.param(token(header={"typ": "at+jwt"}), id="row34-access-token"),
    pytest.param(token(header={"typ": "logout+jwt"}), id="row34-logout-token"),
    pytest.param(token(header={"crit": ["exp"]}), id="row28-crit"),
    pytest.param(token(groups=["a\r\nX-Auth-Request-Roles: admin"]), id="row16-group-crlf"),
    pytest.param(token(email="a\x00@b"), id="row16-email-nul"),
    pytest.param(made(unsigned), id="row26-alg-none"),
    pytest.param(made(by_hmac), id="row26-hs256-client-secret"),
    pytest.param(made(by_a_stranger), id="strangers-key"),
    pytest.param(made(repeated), id="row33-duplicate-claims"),
    pytest.param(made(lambda _: "no.jw.t"), id="no-jwt"),
    pytest.param(made(lambda p: ".".join([*id_token(p).split("."), "AA", "AA"])), id="row30-encrypted"),
    pytest.param(token(sid={"a": 1}), id="sid-object"),
]
ANSWERS: list[Any] = [
    pytest.param(sent(access_token=None), id="no-access-token"),
    pytest.param(sent(access_token=""), id="empty-access-token"),
    pytest.param(sent(access_token=["a"]), id="access-token-list"),
    pytest.param(sent(access_token="a\r\nb"), id="access-token-crlf"),
    pytest.param(sent(token_type=None), id="no-token-type"),
    pytest.param(sent(token_type="DPoP"), id="another-token-type"),
    pytest.param(sent(id_token=7), id="id-token-number"),
    pytest.param(sent(id_token="x" * 70_000), id="id-token-long"),
    pytest.param(sent(refresh_token={"a": 1}), id="refresh-token-object"),
    pytest.param(raw(b"[]"), id="list"),
    pytest.param(raw(b"null"), id="null"),
    pytest.param(raw(b""), id="empty"),
    pytest.param(raw(b"{" * 2000), id="deep"),
    pytest.param(raw(b'{"access_token": "a", "access_token": "b"}'), id="duplicate-names"),
    pytest.param(raw(b"\xff"), id="not-utf8"),
    pytest.param(raw(b"<html>", content_type="text/html"), id="html"),
    pytest.param(lambda p: tokens(id_token(p))._replace(content_type="text/html"), id="html-by-name"),
    pytest.param(lambda p: huge(tokens(id_token(p))), id="row31-huge"),
    pytest.param(raw(status=302, headers={"Location": "http://127.0.0.1:1/"}), id="row31-redirect"),
    pytest.param(raw(status=404), id="not-found"),
    pytest.param(raw(b'{"error": ["invalid_grant"]}', status=400), id="error-list"),
    pytest.param(raw(b"<html>", status=400, content_type="text/html"), id="error-html"),
    pytest.param(raw(b'{"error": "invalid_grant"}', status=200), id="error-and-200"),
]
ABSENCES: list[Any] = [
    pytest.param(raw(status=500), id="500"),
    pytest.param(raw(b"<html>", status=502, content_type="text/html"), id="502-html"),
    pytest.param(raw(status=429), id="429"),
    pytest.param(raw(delay=1.5), id="slow"),
    pytest.param(raw(b" " * 20, drip=0.15), id="a-byte-at-a-time"),
]


@pytest.mark.parametrize("answer", [*TOKENS, *ANSWERS])
async def test_nobody_signs_in_with_it(
    answer: Callable[[Provider], Reply], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = answer(provider)
    with pytest.raises(SignInFailed) as refusal:
        await redeem(relying())
    assert refusal.value.status == 400
    assert_tells_nothing(refusal.value)


@pytest.mark.parametrize("answer", TOKENS)
async def test_a_session_ends_with_it(
    answer: Callable[[Provider], Reply], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = answer(provider)
    with pytest.raises(SessionEnded) as refusal:
        await renew(relying(), REFRESH, subject="248")
    assert_tells_nothing(refusal.value)


@pytest.mark.parametrize("answer", [*ANSWERS, *ABSENCES])
async def test_a_provider_out_of_its_mind_decides_nothing_about_a_session(
    answer: Callable[[Provider], Reply], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = answer(provider)
    with pytest.raises(OutOfReach) as refusal:
        await renew(relying(), REFRESH, subject="248")
    assert refusal.value.status == 503
    assert_tells_nothing(refusal.value)


@pytest.mark.parametrize("answer", ABSENCES)
async def test_signing_in_at_an_absent_provider_is_for_later(
    answer: Callable[[Provider], Reply], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = answer(provider)
    began = time.monotonic()
    with pytest.raises(OutOfReach) as refusal:
        await redeem(relying())
    assert time.monotonic() - began < 1.4
    assert_tells_nothing(refusal.value)


@pytest.mark.parametrize("changes", [{"nonce": "other"}, {"nonce": None}, {"nonce": 7}])
async def test_row36_an_id_token_of_another_sign_in_is_refused(
    changes: dict[str, Any], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider, **changes))
    with pytest.raises(SignInFailed) as refusal:
        await redeem(relying())
    assert "id_token_nonce_other" in logged(refusal.value)


async def test_a_code_alone_signs_nobody_in(provider: Provider, relying: Callable[..., RelyingParty]) -> None:
    provider.replies["/token"] = tokens("", id_token=None)
    with pytest.raises(SignInFailed) as refusal:
        await redeem(relying())
    assert "id_token_missing" in logged(refusal.value)


async def test_an_algorithm_that_only_machines_may_use_is_refused(
    provider: Provider, client: httpx.AsyncClient
) -> None:
    machines = IssuerTrust(provider.url, frozenset({"prefect"}), ALGORITHMS)
    people = replace(machines, audiences=frozenset({"gate"}), algorithms=frozenset({"EdDSA"}))
    party = RelyingParty(issuer_of(people, client, policy=QUICK), POLICY, client, {})
    provider.replies["/token"] = tokens(id_token(provider))
    with pytest.raises(SignInFailed):
        await redeem(party)
    provider.replies["/token"] = tokens(id_token(provider, alg="EdDSA"))
    assert await redeem(party)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply({"sub": "1", "groups": ["admin"]}), id="of-somebody-else"),
        pytest.param(Reply({"groups": ["admin"]}), id="of-nobody"),
        pytest.param(Reply(b"e30.e30.AA", content_type="application/jwt"), id="signed"),
        pytest.param(Reply(b"<html>", content_type="text/html"), id="html"),
        pytest.param(Reply(b'{"sub": "248", "sub": "1"}'), id="duplicate-names"),
        pytest.param(Reply(status=401), id="401"),
        pytest.param(Reply(status=302, headers={"Location": "/auth"}), id="redirect"),
        pytest.param(Reply({"sub": "248", "groups": ["a\nb"]}), id="row16-group-newline"),
        pytest.param(Reply({"sub": "248", "groups": ["g"] * 300}), id="too-many-groups"),
    ],
)
async def test_userinfo_that_cannot_be_believed_fails_the_sign_in(
    reply: Reply, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    provider.replies["/userinfo"] = reply
    with pytest.raises(SignInFailed) as refusal:
        await redeem(relying())
    assert_tells_nothing(refusal.value)


def signed_userinfo(provider: Provider, *, header: dict[str, Any] | None = None, **claims: Any) -> Reply:
    said = {"sub": "248", "aud": "gate", "groups": ["signed"], "exp": None, "iat": None, **claims}
    token = provider.mint(alg="ES256", header={"typ": "JWT", **(header or {})}, **said)
    return Reply(token.encode(), content_type="application/jwt")


async def test_signed_userinfo_is_verified(provider: Provider, relying: Callable[..., RelyingParty]) -> None:
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    provider.replies["/userinfo"] = signed_userinfo(provider)
    assert (await redeem(relying())).groups == ("signed",)
    provider.replies["/userinfo"] = signed_userinfo(provider, aud=["gate", "other"], exp=4_000_000_000)
    assert (await redeem(relying(replace(POLICY, userinfo="always")))).groups == ("signed",)
    provider.replies["/token"] = tokens(id_token(provider, groups=None, nonce=None))
    assert (await renew(relying(), REFRESH, subject="248")).groups == ("signed",)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda p: signed_userinfo(p, aud="other"), id="for-another-client"),
        pytest.param(lambda p: signed_userinfo(p, aud=None), id="for-nobody"),
        pytest.param(lambda p: signed_userinfo(p, iss="https://other.example"), id="of-another-issuer"),
        pytest.param(lambda p: signed_userinfo(p, sub="1"), id="of-somebody-else"),
        pytest.param(lambda p: signed_userinfo(p, exp=1), id="expired"),
        pytest.param(lambda p: signed_userinfo(p, header={"typ": "at+jwt"}), id="an-access-token"),
        pytest.param(lambda p: Reply(unsigned(p).encode(), content_type="application/jwt"), id="row26-alg-none"),
        pytest.param(lambda p: Reply(by_hmac(p).encode(), content_type="application/jwt"), id="row26-hs256"),
        pytest.param(lambda p: Reply(b"\xff", content_type="application/jwt"), id="bytes"),
    ],
)
async def test_signed_userinfo_that_cannot_be_believed_fails_the_sign_in(
    forge: Callable[[Provider], Reply], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    provider.replies["/userinfo"] = forge(provider)
    with pytest.raises(SignInFailed):
        await redeem(relying())


ENCRYPTED = ".".join([b64url(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), "AA", "AA", "AA", "AA"])


@pytest.mark.parametrize("where", ["/token", "/userinfo"])
async def test_what_a_provider_encrypts_is_said_to_be_encrypted(
    where: str, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    if where == "/token":
        provider.replies["/token"] = tokens(ENCRYPTED)
    else:
        provider.replies["/userinfo"] = Reply(ENCRYPTED.encode(), content_type="application/jwt")
    with refused(SignInFailed, "turn encryption off", Problem.PROVIDER_ENCRYPTS):
        await redeem(relying())


async def test_userinfo_out_of_reach_is_for_later(provider: Provider, relying: Callable[..., RelyingParty]) -> None:
    """Letting somebody in without their groups would be a decision on half of what is known."""
    provider.replies["/token"] = tokens(id_token(provider, groups=None))
    provider.replies["/userinfo"] = Reply(status=503)
    with pytest.raises(OutOfReach):
        await redeem(relying())


async def test_an_answer_that_another_provider_sent_is_refused_before_the_code_goes_anywhere(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = tokens(id_token(provider))
    party = relying()
    assert await redeem(party, response_issuer=provider.url)
    provider.calls.clear()
    with pytest.raises(SignInFailed):
        await redeem(party, response_issuer="https://other.example")
    provider.metadata["authorization_response_iss_parameter_supported"] = True
    with pytest.raises(SignInFailed):
        await redeem(relying())
    assert provider.calls == []


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [("invalid_grant", 400, "too long"), ("invalid_client", 401, "whoever runs it"), ("strange", 400, "try again")],
)
async def test_a_refused_code_is_a_sentence(
    error: str, status: int, word: str, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = Reply({"error": error, "error_description": f"<b>\n{CODE}"}, status=status)
    with refused(SignInFailed, word) as refusal:
        await redeem(relying())
    assert error in logged(refusal.value)
    assert_tells_nothing(refusal.value)


# renewal --------------------------------------------------------------------------------------------------------


async def test_renewal_keeps_the_rotated_token_and_picks_up_the_groups(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    party = relying()
    provider.replies["/token"] = tokens(id_token(provider, groups=["new"], nonce=None), refresh_token="rotated")
    who = await renew(party, REFRESH, subject="248")
    assert (who.groups, who.refresh_token) == (("new",), "rotated")
    assert provider.calls[0].form == {"grant_type": "refresh_token", "refresh_token": REFRESH}
    provider.replies["/token"] = tokens("", id_token=None, refresh_token=None)
    provider.replies["/userinfo"] = Reply({"sub": "248", "groups": ["newer"]})
    who = await renew(party, REFRESH, subject="248")
    assert (who.groups, who.refresh_token, who.id_token, who.subject) == (("newer",), REFRESH, "", "248")


@pytest.mark.parametrize("asked", ["never", "auto"])
async def test_what_a_renewal_does_not_say_stays_as_it_was_known(
    asked: Any, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    """A refresh need not bring an ID token (OIDC Core §12.2), and userinfo is not asked, or not there."""
    del provider.metadata["userinfo_endpoint"]
    provider.replies["/token"] = tokens("", id_token=None, refresh_token="rotated")
    known = session_of("248", REFRESH, name="alice", groups=("data",), claims={"team": ["a"]}, id_token="known")
    renewed = await relying(replace(POLICY, userinfo=asked)).renew(known, 900)
    assert renewed == known._replace(refresh_token="rotated", check_at=renewed.check_at)
    assert renewed.check_at > time.time() + 800


UNANSWERED = [
    pytest.param({"/userinfo": Reply(status=503)}, id="userinfo-down"),
    pytest.param({"/userinfo": Reply(delay=1.5)}, id="userinfo-slow"),
    pytest.param({"/userinfo": Reply(b"<html>", content_type="text/html")}, id="userinfo-is-a-page"),
]


@pytest.mark.parametrize("replies", UNANSWERED)
async def test_a_rotated_refresh_token_is_kept_whatever_fails_after_it(
    replies: dict[str, Reply],
    provider: Provider,
    relying: Callable[..., RelyingParty],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.replies |= replies
    provider.replies["/token"] = tokens(id_token(provider, nonce=None), refresh_token="rotated")
    due = session_of("248", REFRESH, name="alice")
    party = relying(replace(POLICY, userinfo="always"))
    assert await party.renew(due, 900) == due._replace(refresh_token="rotated")
    (line,) = caplog.records
    assert (line.levelname, line.message) == ("WARNING", "a session was renewed in part, and is still due")
    assert vars(line)["fields"]["user"] == "alice"
    assert "userinfo" in vars(line)["fields"]["reason"]


async def test_a_rotated_refresh_token_is_kept_while_the_keys_cannot_be_had(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.body = b"no keys"
    provider.replies["/token"] = tokens(id_token(provider, nonce=None), refresh_token="rotated")
    provider.metadata["jwks_uri"] = f"{provider.url}/jwks"
    due = session_of("248", REFRESH)
    party = relying()
    party._issuer.keys.metadata = provider.metadata  # read before the keys were lost
    assert await party.renew(due, 900) == due._replace(refresh_token="rotated")


@pytest.mark.parametrize(
    ("reply", "level", "reason"),
    [
        (Reply({"error": "invalid_grant"}, status=400), "INFO", "invalid_grant"),
        (Reply({"error": "unauthorized_client"}, status=401), "WARNING", "unauthorized_client"),
        (Reply(status=502), "WARNING", "answered 502"),
    ],
)
async def test_each_failed_renewal_is_one_line_of_the_log(
    reply: Reply,
    level: str,
    reason: str,
    provider: Provider,
    relying: Callable[..., RelyingParty],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "service.authn.oidc")
    provider.replies["/token"] = reply
    with pytest.raises(Refusal):
        await renew(relying(), REFRESH, subject="248")
    (line,) = caplog.records
    assert (line.levelname, line.message) == (level, "a session was not renewed")
    assert reason in vars(line)["fields"]["reason"]


@pytest.mark.parametrize("subject", ["1", "248 ", ""])
async def test_a_renewal_of_somebody_else_ends_the_session(
    subject: str, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    if not subject:
        provider.replies["/token"] = tokens("", id_token=None)
    else:
        provider.replies["/token"] = tokens(id_token(provider))
    with pytest.raises(SessionEnded):
        await renew(relying(), REFRESH, subject=subject)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        ("invalid_grant", SessionEnded),
        ("interaction_required", SessionEnded),
        ("strange", SessionEnded),
        ("invalid_client", OutOfReach),  # a client secret that has run out is nothing that people did
        ("unauthorized_client", OutOfReach),  # as Keycloak calls it
        ("invalid_request", SessionEnded),  # as Canaille says of somebody who was disabled
        ("temporarily_unavailable", OutOfReach),
    ],
)
async def test_a_refused_renewal_ends_the_session_if_it_is_about_the_person(
    error: str, refusal: type[Refusal], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    provider.replies["/token"] = Reply({"error": error, "error_description": REFRESH}, status=400)
    with pytest.raises(refusal) as raised:
        await renew(relying(), REFRESH, subject="248")
    assert error in logged(raised.value)
    assert_tells_nothing(raised.value)


async def test_a_provider_that_does_not_take_this_client_is_remembered_until_it_does(
    provider: Provider, client: httpx.AsyncClient
) -> None:
    faults: dict[str, str] = {}
    trust = IssuerTrust(provider.url, frozenset({"gate"}), ALGORITHMS)
    party = RelyingParty(issuer_of(trust, client, policy=QUICK), POLICY, client, faults)
    provider.replies["/token"] = Reply({"error": "unauthorized_client", "error_description": "Wrong"}, status=401)
    with refused(SignInFailed, "whoever runs it", Problem.PROVIDER_REFUSES_CLIENT):
        await redeem(party)
    assert list(faults) == [provider.url]
    assert "unauthorized_client" in faults[provider.url]
    faults.clear()
    provider.replies["/token"] = Reply(b"", status=403, content_type="")
    with pytest.raises(SignInFailed):
        await redeem(party)
    assert "403" in faults[provider.url]
    provider.replies["/token"] = tokens(id_token(provider))
    await redeem(party)
    assert faults == {}


@pytest.mark.parametrize(
    ("secret", "method", "hinted"),
    [
        ("sEcr3t+/%", "client_secret_basic", True),
        ("plain-secret_1", "client_secret_basic", False),
        ("sEcr3t+/%", "client_secret_post", False),
    ],
)
async def test_a_provider_that_may_not_decode_the_secret_is_named_with_the_cure(
    *, secret: str, method: Any, hinted: bool, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    """RFC 6749 §2.3.1 is followed; Glewlwyd, for one, takes the encoded secret for the secret."""
    for reply in (Reply({"error": "invalid_client"}, status=401), Reply(b"", status=400, content_type="")):
        provider.replies["/token"] = reply  # the second is Glewlwyd's
        with refused(SignInFailed, "whoever runs") as raised:
            await redeem(relying(replace(POLICY, client_secret=secret, auth_method=method)))
        assert ('client_auth = "client_secret_post"' in logged(raised.value)) is hinted
        assert secret not in logged(raised.value)


# starting, ending -----------------------------------------------------------------------------------------------


async def test_it_starts_while_the_provider_is_down_and_recovers_by_itself(client: httpx.AsyncClient) -> None:
    provider = Provider("ES256", port=free_port())
    provider.metadata = {"token_endpoint": f"{provider.url}/token"}
    trust = IssuerTrust(provider.url, frozenset({"gate"}), ALGORITHMS)
    party = RelyingParty(issuer_of(trust, client, policy=QUICK), POLICY, client, {})
    for _ in range(2):
        with pytest.raises(OutOfReach):
            await party.authorization_url(state="s", nonce="n", code_challenge="c", redirect_uri=BACK)
        with pytest.raises(OutOfReach):
            await redeem(party)
        with pytest.raises(OutOfReach):
            await renew(party, REFRESH, subject="248")
        assert await party.logout_url(id_token="a", return_to=BACK) is None
        await party.revoke(REFRESH)
    with provider:
        provider.replies["/token"] = tokens(id_token(provider))
        assert await redeem(party)


async def test_a_cold_provider_is_asked_once_a_cooldown_however_many_want_in(
    provider: Provider, client: httpx.AsyncClient
) -> None:
    provider.status = 500
    trust = IssuerTrust(provider.url, frozenset({"gate"}), ALGORITHMS)
    party = RelyingParty(issuer_of(trust, client, policy=KeyPolicy(cooldown=30)), POLICY, client, {})
    asked = [party.authorization_url(state="s", nonce="n", code_challenge="c", redirect_uri=BACK) for _ in range(50)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, OutOfReach) for answer in answers)
    with pytest.raises(OutOfReach) as refusal:
        await redeem(party)
    assert 1 <= refusal.value.retry_after <= 31
    assert provider.fetches["/.well-known/openid-configuration"] == 1


@pytest.mark.parametrize(
    "url", ["http://idp.example/token", "file:///etc/passwd", "//idp.example/", "https://[", "", 7, None]
)
async def test_row27_an_endpoint_that_is_not_safe_is_not_called(
    url: object, provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    for name in ("authorization_endpoint", "token_endpoint", "end_session_endpoint", "revocation_endpoint"):
        provider.metadata[name] = url
    party = relying()
    with pytest.raises(OutOfReach):
        await party.authorization_url(state="s", nonce="n", code_challenge="c", redirect_uri=BACK)
    with pytest.raises(SignInFailed):
        await redeem(party)
    with pytest.raises(OutOfReach):
        await renew(party, REFRESH, subject="248")
    assert await party.logout_url(id_token="a", return_to=BACK) is None
    await party.revoke(REFRESH)
    assert provider.calls == []


async def test_the_logout_url_names_the_session_as_far_as_a_url_can(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    party = relying()
    url = await party.logout_url(id_token="a.b.c", return_to=BACK, state="s")
    assert url is not None
    assert url.startswith(f"{provider.url}/end?")
    common = {"client_id": ["gate"], "post_logout_redirect_uri": [BACK]}
    assert parse_qs(urlsplit(url).query) == {**common, "id_token_hint": ["a.b.c"], "state": ["s"]}
    for unusable in ("", "x" * (MAX_HINT + 1)):
        url = await party.logout_url(id_token=unusable, return_to=BACK)
        assert parse_qs(urlsplit(url or "").query) == common
    strict = relying(replace(POLICY, logout_needs_hint=True))  # it would show its own error, or go nowhere
    assert await strict.logout_url(id_token="a.b.c", return_to=BACK, state="s") == await party.logout_url(
        id_token="a.b.c", return_to=BACK, state="s"
    )
    url = await strict.logout_url(id_token="", return_to=BACK, state="s")
    assert parse_qs(urlsplit(url or "").query) == {"client_id": ["gate"]}


async def test_revocation_is_asked_for_and_awaited_for_a_moment(
    provider: Provider, relying: Callable[..., RelyingParty], caplog: pytest.LogCaptureFixture
) -> None:
    party = relying()
    provider.replies["/revoke"] = Reply()
    await party.revoke(REFRESH)
    assert provider.calls[0].form == {"token": REFRESH, "token_type_hint": "refresh_token"}
    assert caplog.text == ""
    provider.replies["/revoke"] = Reply(delay=5)
    began = time.monotonic()
    await party.revoke(REFRESH)
    assert time.monotonic() - began < 2
    assert "not revoked" in caplog.text
    assert REFRESH not in caplog.text


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(unsigned, id="row26-alg-none"),
        pytest.param(by_hmac, id="row26-hs256"),
        pytest.param(by_a_stranger, id="strangers-key"),
        pytest.param(id_token, id="row34-id-token"),
        pytest.param(lambda p: id_token(p, events={LOGOUT_EVENT: {}}), id="with-nonce"),
        pytest.param(lambda p: id_token(p, nonce=None, events={LOGOUT_EVENT: {}}, aud="other"), id="foreign-audience"),
        pytest.param(lambda _: "x" * 100_000, id="long"),
        pytest.param(lambda _: "\udcff.a.b", id="bytes"),
    ],
)
async def test_what_is_no_logout_token_ends_nothing(
    forge: Callable[[Provider], str], provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    hostile = forge(provider).encode("utf-8", "surrogateescape")
    with pytest.raises(Rejected):
        await relying().verify_logout_token(hostile, time.time())


async def test_a_logout_token_is_verified_by_the_same_keys(
    provider: Provider, relying: Callable[..., RelyingParty]
) -> None:
    good = id_token(provider, nonce=None, events={LOGOUT_EVENT: {}}, jti="l-1", header={"typ": "logout+jwt"})
    notice = await relying().verify_logout_token(good.encode(), time.time())
    assert (notice.subject, notice.sid, notice.token_id) == ("248", "", "l-1")
    provider.stop()
    with pytest.raises(OutOfReach):
        await relying().verify_logout_token(good.encode(), time.time())
