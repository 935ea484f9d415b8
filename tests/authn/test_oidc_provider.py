"""The relying party at a certified OpenID Provider, with a person who signs in, stays, and leaves."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.adapters.oauth_client_auth import ClientPolicy, load_signer
from service.adapters.outbound import open_client
from service.authn.oidc import RelyingParty
from service.core.errors import NotPermitted, SessionEnded, SignInFailed
from service.core.identity.sign_in import SignedIn, pkce_challenge, provider_error
from service.core.model import ALGORITHMS, IssuerTrust
from service.state.issuer_keys import KeyPolicy
from tests.authn.conftest import issuer_of, renew
from tests.support.issuer import Issuer as Receiver
from tests.support.issuer import Reply, SigningKey
from tests.support.openid import OpenIDProvider, ProviderBrowser
from tests.support.refusals import logged, refused, told

pytestmark = pytest.mark.anyio

VERIFIER = "v" * 43
BROWSER = ClientPolicy("browser", "browser-secret")
KEYS = {alg: SigningKey.generate(alg, f"client-{alg}") for alg in ("RS256", "PS256", "ES256", "EdDSA")}
ODD = ClientPolicy("odd: 100%+/client", "s: 100%+/&=?~ ")  # RFC 6749 §2.3.1 wants both encoded before RFC 7617 does
POST = ClientPolicy("post", "post-secret", auth_method="client_secret_post")


def pem(key: SigningKey) -> str:
    return key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def with_key(alg: str) -> ClientPolicy:
    return ClientPolicy(
        f"key-{alg}",
        private_key=pem(KEYS[alg]),
        private_key_id=f"client-{alg}",
        private_key_alg=alg if alg == "PS256" else "",
        auth_method="private_key_jwt",
    )


CLIENTS: list[dict[str, Any]] = [
    {"client_id": ODD.client_id, "client_secret": ODD.client_secret},
    {"client_id": "post", "client_secret": "post-secret", "token_endpoint_auth_method": "client_secret_post"},
    *(
        {"client_id": f"key-{alg}", "token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [key.jwk()]}}
        for alg, key in KEYS.items()
    ),
    *(
        {"client_id": f"id-{alg}", "client_secret": "secret", "id_token_signed_response_alg": alg}
        for alg in ("PS256", "ES256", "ES384", "EdDSA")
    ),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Receiver]:
    """Return the site that people sign in to: here, what receives the provider's notices of logouts."""
    with Receiver("ES256") as running:
        running.replies["/_auth/backchannel-logout"] = Reply()
        yield running


@pytest.fixture(scope="module")
def provider(site: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(tmp_path_factory.mktemp("openid"), sites=[site.url], clients=CLIENTS) as running:
        yield running


@pytest.fixture
def browser(provider: OpenIDProvider) -> Iterator[ProviderBrowser]:
    with ProviderBrowser(provider) as one:
        yield one


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client("tests") as one:
        yield one


@pytest.fixture
def relying(provider: OpenIDProvider, client: httpx.AsyncClient) -> Callable[..., RelyingParty]:
    def make(policy: ClientPolicy = BROWSER, **changes: Any) -> RelyingParty:
        trust = IssuerTrust(provider.url, frozenset({policy.client_id}), ALGORITHMS)
        trust = replace(trust, **changes)
        return RelyingParty(issuer_of(trust, client, policy=KeyPolicy(cooldown=0)), policy, client, {})

    return make


@pytest.fixture
def back(site: Receiver) -> str:
    return f"{site.url}/_auth/callback"


async def begin(party: RelyingParty, back: str, **more: str) -> str:
    return await party.authorization_url(
        state="state", nonce="nonce", code_challenge=pkce_challenge(VERIFIER), redirect_uri=back, **more
    )


async def redeem(party: RelyingParty, answer: dict[str, str], back: str, verifier: str = VERIFIER) -> SignedIn:
    assert answer["state"] == "state"
    return await party.redeem(
        answer["code"],
        code_verifier=verifier,
        nonce="nonce",
        redirect_uri=back,
        response_issuer=answer["iss"],
    )


async def sign_in(party: RelyingParty, browser: ProviderBrowser, back: str, user: str = "alice") -> SignedIn:
    return await redeem(party, browser.sign_in(await begin(party, back), user), back)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(BROWSER, id="client_secret_basic"),
        pytest.param(ODD, id="client_secret_basic-odd-characters"),
        pytest.param(POST, id="client_secret_post"),
        pytest.param(ClientPolicy("public", auth_method="none"), id="none"),
        *(pytest.param(with_key(alg), id=f"private_key_jwt-{alg}") for alg in KEYS),
        *(
            pytest.param(ClientPolicy(f"id-{alg}", "secret"), id=f"id-token-{alg}")
            for alg in ("PS256", "ES256", "ES384", "EdDSA")
        ),
    ],
)
async def test_a_person_signs_in_stays_and_is_revoked(
    policy: ClientPolicy,
    provider: OpenIDProvider,
    relying: Callable[..., RelyingParty],
    browser: ProviderBrowser,
    back: str,
) -> None:
    party = relying(policy)
    who = await sign_in(party, browser, back)
    assert who[:5] == (provider.url, "alice", "alice", "alice@example.test", ("data-engineers", "prefect-admins"))
    assert (who.claims, bool(who.provider_sid)) == ({}, True)
    again = await renew(party, who.refresh_token, subject="alice")
    assert again._asdict().items() >= {"name": who.name, "email": who.email, "groups": who.groups, "claims": {}}.items()
    assert again.refresh_token not in {"", who.refresh_token}
    await party.revoke(again.refresh_token)
    with pytest.raises(SessionEnded):
        await renew(party, again.refresh_token, subject="alice")


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(replace(BROWSER, client_secret="wrong"), id="secret"),
        pytest.param(replace(with_key("ES256"), client_id="key-RS256"), id="key-of-another"),
        pytest.param(replace(BROWSER, auth_method="none"), id="none"),
    ],
)
async def test_a_client_that_cannot_prove_itself_is_said_to_be_set_up_wrongly(
    policy: ClientPolicy, relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    with refused(SignInFailed, "tell whoever runs it") as refusal:
        await sign_in(relying(policy), browser, back)
    assert "invalid_client" in logged(refusal.value) or "invalid_request" in logged(refusal.value)
    assert "wrong" not in logged(refusal.value)


async def test_a_code_is_good_once_and_its_replay_ends_what_it_began(
    relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying()
    answer = browser.sign_in(await begin(party, back), "alice")
    who = await redeem(party, answer, back)
    with refused(SignInFailed, "used already") as refusal:
        await redeem(party, answer, back)
    assert answer["code"] not in logged(refusal.value)
    with pytest.raises(SessionEnded):
        await renew(party, who.refresh_token, subject="alice")


async def test_row36_a_code_without_its_verifier_is_worthless(
    relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying()
    answer = browser.sign_in(await begin(party, back), "alice")
    with pytest.raises(SignInFailed):
        await redeem(party, answer, back, verifier="w" * 43)


async def test_a_code_of_another_client_is_worthless(
    relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    answer = browser.sign_in(await begin(relying(), back), "alice")
    with pytest.raises(SignInFailed):
        await redeem(relying(POST), answer, back)


async def test_new_groups_are_seen_at_the_next_renewal(
    provider: OpenIDProvider, relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying(required_claims={"groups": frozenset({"staff"})})
    provider.set_groups("carol", "staff", "analysts")
    who = await sign_in(party, browser, back, "carol")
    assert who.groups == ("staff", "analysts")
    provider.set_groups("carol", "staff")
    who = await renew(party, who.refresh_token, subject="carol")
    assert who.groups == ("staff",)
    provider.set_groups("carol", "guests")
    with pytest.raises(NotPermitted):
        await renew(party, who.refresh_token, subject="carol")
    with pytest.raises(NotPermitted) as refusal:
        await sign_in(party, browser, back, "carol")
    assert refusal.value.name == "carol"


async def test_somebody_whom_the_provider_no_longer_knows_is_out_at_the_next_renewal(
    provider: OpenIDProvider, relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying()
    who = await sign_in(party, browser, back, "mallory")
    provider.deny("mallory")
    with pytest.raises(SessionEnded):
        await renew(party, who.refresh_token, subject="mallory")


async def test_whoever_declines_is_told_what_happened(
    relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying()
    answer = browser.decline(await begin(party, back))
    assert "ask for access" in told(provider_error(answer["error"], answer.get("error_description", "")))
    answer = browser.sign_in(await begin(party, back, prompt="none"), "alice")
    assert "sign in again" in told(provider_error(answer["error"]))


async def test_signing_out_reaches_the_provider_and_comes_back(
    site: Receiver, relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    """The whole way out: to the provider, from it over the back channel, and back to the site."""
    party = relying()
    who = await sign_in(party, browser, back)
    site.calls.clear()
    home = f"{site.url}/_auth/signed-out"
    url = await party.logout_url(id_token=who.id_token, return_to=home, state="state")
    assert url
    assert browser.sign_out(url) == f"{home}?state=state"
    (call,) = site.calls
    notice = await party.verify_logout_token(call.form["logout_token"].encode(), time.time())
    assert (notice.subject, notice.sid) == ("alice", who.provider_sid)
    assert notice.token_id
    with pytest.raises(SessionEnded):
        await renew(party, who.refresh_token, subject="alice")
    answer = browser.sign_in(await begin(party, back, prompt="none"), "alice")
    assert answer["error"] == "login_required"


async def test_keys_turn_in_the_midst_of_it(
    provider: OpenIDProvider, relying: Callable[..., RelyingParty], browser: ProviderBrowser, back: str
) -> None:
    party = relying()
    who = await sign_in(party, browser, back)
    provider.rotate()
    provider.drop_old()
    who = await renew(party, who.refresh_token, subject="alice")
    assert (await sign_in(party, browser, back)).subject == who.subject == "alice"


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        pytest.param("not a key", "", id="not-pem"),
        pytest.param(pem(KEYS["ES256"]), "RS256", id="rsa-by-an-ec-key"),
        pytest.param(pem(KEYS["RS256"]), "HS256", id="hmac"),
        pytest.param(pem(KEYS["EdDSA"]), "ES256", id="ec-by-ed25519"),
        pytest.param(pem(KEYS["RS256"])[:-200], "", id="cut"),
    ],
)
def test_a_key_that_cannot_sign_is_found_out_at_the_start_and_not_shown(text: str, algorithm: str) -> None:
    with pytest.raises(ValueError, match="private key") as problem:
        load_signer(text, algorithm)
    assert "BEGIN" not in str(problem.value)
