"""A signature → VerifiedClaims: forgeries as a table, around tokens of every accepted algorithm."""

import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.authn.tokens import Tokens
from service.core.errors import Refusal, Rejected
from service.core.identity.compact import decode_segment, parse_header, parse_json_object
from service.core.identity.grant_index import GrantIndex
from service.core.identity.grants import ClaimRule, Grant
from service.core.model import Bearer
from service.core.problems import Problem
from service.core.request.headers import parse_credential
from tests.authn.conftest import Keeping, authenticate, recall
from tests.support.issuer import Issuer as Provider
from tests.support.issuer import SigningKey, b64url, encode_jws
from tests.support.refusals import logged, refused, told

pytestmark = pytest.mark.anyio
STRANGER = SigningKey.generate("RS256", "RS256-1")


def claims(provider: Provider, **changes: Any) -> bytes:
    now = time.time()
    good = {"iss": provider.url, "sub": "svc", "aud": "prefect", "iat": now, "exp": now + 300}
    return json.dumps({**good, **changes}).encode()


def head(**changes: Any) -> dict[str, Any]:
    header = {"alg": "RS256", "kid": "RS256-1", "typ": "at+jwt", **changes}
    return {name: value for name, value in header.items() if value is not None}


def hmac_with(secret: bytes, algorithm: str = "HS256", **header: Any) -> Callable[[Provider], str]:
    def forge(provider: Provider) -> str:
        signed = f"{b64url(json.dumps(head(alg=algorithm, **header)).encode())}.{b64url(claims(provider))}"
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(signed.encode())
        return f"{signed}.{b64url(mac.finalize())}"

    return forge


def public(provider: Provider, encoding: Encoding) -> bytes:
    return provider.key().private.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


def signed(payload: Callable[[Provider], bytes] = claims, **header: Any) -> Callable[[Provider], str]:
    return lambda provider: encode_jws(head(**header), payload(provider), provider.key())


GOOD = '{"iss":"ISS","sub":"svc","aud":"prefect","iat":1,"exp":4000000000'  # and what is wrong, and the brace


def raw_payload(text: str) -> Callable[[Provider], bytes]:
    return lambda provider: text.replace("ISS", provider.url).encode("utf-8", "surrogatepass")


def with_segments(change: Callable[[list[str]], list[str]]) -> Callable[[Provider], str]:
    return lambda provider: ".".join(change(provider.mint().split(".")))


FORGERIES: list[Any] = [
    pytest.param(lambda p: ".".join([b64url(b'{"alg":"none"}'), b64url(claims(p)), ""]), id="row26-none-unsigned"),
    pytest.param(with_segments(lambda s: [b64url(b'{"alg":"none"}'), s[1], s[2]]), id="row26-none"),
    pytest.param(with_segments(lambda s: [b64url(b'{"alg":"NonE"}'), s[1], s[2]]), id="row26-none-odd-case"),
    pytest.param(with_segments(lambda s: [s[0], s[1], ""]), id="row26-signature-cut"),
    pytest.param(lambda p: hmac_with(public(p, Encoding.PEM))(p), id="row26-hs256-public-pem"),
    pytest.param(lambda p: hmac_with(public(p, Encoding.DER))(p), id="row26-hs256-public-der"),
    pytest.param(lambda p: hmac_with(json.dumps(p.key().jwk()).encode())(p), id="row26-hs256-public-jwk"),
    pytest.param(hmac_with(b""), id="row26-hs256-empty-key"),
    pytest.param(lambda p: hmac_with(public(p, Encoding.PEM), "RS256")(p), id="row26-mac-labelled-rs256"),
    pytest.param(lambda p: encode_jws(head(alg="ES256"), claims(p), p.key("RS256")), id="row26-alg-of-another-key"),
    pytest.param(signed(alg="RS384"), id="row26-alg-not-the-keys"),
    pytest.param(signed(alg=["RS256"]), id="row26-alg-list"),
    pytest.param(signed(alg=None), id="row26-alg-missing"),
    pytest.param(lambda p: encode_jws(head(jwk=STRANGER.jwk()), claims(p), STRANGER), id="row27-jwk"),
    pytest.param(lambda p: encode_jws(head(jku="http://127.0.0.1:9/"), claims(p), STRANGER), id="row27-jku"),
    pytest.param(lambda p: encode_jws(head(x5u="file:///etc/passwd"), claims(p), STRANGER), id="row27-x5u"),
    pytest.param(lambda p: encode_jws(head(x5c=["AA"]), claims(p), STRANGER), id="row27-x5c"),
    pytest.param(lambda p: encode_jws(head(kid="../../dev/null"), claims(p, iat=1), STRANGER), id="row27-kid-path"),
    pytest.param(lambda p: encode_jws(head(), claims(p), STRANGER), id="strangers-key"),
    pytest.param(signed(kid="ES256-1"), id="kid-of-another-type"),
    pytest.param(signed(kid=7), id="kid-number"),
    pytest.param(signed(kid="k" * 600), id="kid-long"),
    pytest.param(signed(kid=0), id="kid-zero"),
    pytest.param(signed(kid=False), id="kid-false"),
    pytest.param(signed(kid=[]), id="kid-list"),
    pytest.param(signed(lambda p: claims(p, iat=1), kid=" "), id="kid-space"),
    pytest.param(lambda p: encode_jws(head(kid=""), claims(p, iat=1), STRANGER), id="strangers-key-without-kid"),
    pytest.param(signed(crit=["exp"]), id="row28-crit"),
    pytest.param(signed(crit=[]), id="row28-crit-empty"),
    pytest.param(signed(crit=["b64"], b64=False), id="row28-b64-false"),
    pytest.param(signed(b64=True), id="row28-b64-true"),
    pytest.param(with_segments(lambda s: [s[0], "", s[2]]), id="row28-detached"),
    pytest.param(lambda p: ".".join([*p.mint().split("."), "AA", "AA"]), id="row30-five-segments"),
    pytest.param(signed(enc="A256GCM", alg="RSA-OAEP"), id="row30-jwe-header"),
    pytest.param(signed(zip="DEF"), id="row30-zip"),
    pytest.param(lambda p: p.mint() + "=", id="row32-padding"),
    pytest.param(lambda p: p.mint() + "A", id="row32-one-more-character"),
    pytest.param(lambda p: p.mint().replace(".", "..", 1), id="row32-empty-segment"),
    pytest.param(lambda p: p.mint()[:10] + "\n" + p.mint()[10:], id="row32-newline"),
    pytest.param(lambda p: p.mint() + "%", id="row32-junk"),
    pytest.param(with_segments(lambda s: [s[0], s[1], s[2].replace("-", "+").replace("_", "/") + "+"]), id="row32-std"),
    pytest.param(signed(raw_payload(GOOD + ',"sub":"svc"}')), id="row33-duplicate-names"),
    pytest.param(signed(raw_payload(GOOD + ',"x":Infinity}')), id="row33-infinity"),
    pytest.param(signed(raw_payload(GOOD + ',"x":NaN}')), id="row33-nan"),
    pytest.param(signed(raw_payload(GOOD + ',"x":' + "9" * 5000 + "}")), id="row33-long-integer"),
    pytest.param(signed(raw_payload(GOOD + ',"x":' + "[" * 6000 + "]" * 6000 + "}")), id="row33-deep"),
    pytest.param(signed(raw_payload('{"iss":"ISS","sub":"\\ud800"}')), id="row33-lone-surrogate"),
    pytest.param(signed(raw_payload('{"iss":"\ud800"}')), id="row33-raw-surrogate"),
    pytest.param(signed(raw_payload("[]")), id="payload-list"),
    pytest.param(signed(raw_payload("null")), id="payload-null"),
    pytest.param(signed(raw_payload("{")), id="payload-cut"),
    pytest.param(signed(raw_payload("\ufeff" + GOOD + "}")), id="payload-bom"),
    pytest.param(signed(lambda p: claims(p, iss="https://elsewhere")), id="row34-unknown-issuer"),
    pytest.param(signed(lambda p: claims(p, iss=[p.url])), id="row34-issuer-list"),
    pytest.param(signed(lambda p: claims(p, aud="other")), id="row34-audience"),
    pytest.param(signed(lambda p: claims(p, nonce="n"), typ="JWT"), id="row34-id-token"),
    pytest.param(signed(typ="logout+jwt"), id="row34-logout-token"),
    pytest.param(signed(typ=["at+jwt"]), id="typ-list"),
    pytest.param(lambda _: "pnu_0123456789", id="prefect-cloud-key"),
    pytest.param(lambda _: "", id="empty"),
    pytest.param(lambda _: "..", id="dots"),
    pytest.param(lambda _: "a.b.c", id="letters"),
]


@pytest.mark.parametrize(
    ("form", "scheme"),
    [("{}", "Bearer"), ("jwt:{}", "Basic"), ("anybody:{}", "Basic")],
    ids=["bearer", "basic", "name"],
)
async def test_row30_an_encrypted_token_is_told_as_that(form: str, scheme: str) -> None:
    """Five segments are a JWE (RFC 7516 §7.1), wherever a token may stand."""
    token = ".".join([b64url(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), "AA", "AA", "AA", "AA"])
    text = form.format(token).encode()
    credential = parse_credential(b"Bearer " + text if scheme == "Bearer" else b"Basic " + base64.b64encode(text))
    assert isinstance(credential, Bearer)
    with refused(Rejected, "This token is encrypted", Problem.TOKEN_ENCRYPTED):
        await Tokens({}).authenticate(credential)


async def test_the_payload_that_the_forgeries_build_on_passes(provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (_, tokens):
        assert await authenticate(tokens, Bearer(signed(raw_payload(GOOD + "}"))(provider).encode()))


@pytest.mark.parametrize("forge", FORGERIES)
async def test_a_forgery_is_rejected(forge: Callable[[Provider], str], provider: Provider, keeping: Keeping) -> None:
    async with keeping(provider) as (_, tokens):
        assert await authenticate(tokens, Bearer(provider.mint().encode()))  # the table stands around one that passes
        token = Bearer(forge(provider).encode())
        for _attempt in range(2):  # the second time, nothing was remembered
            with pytest.raises(Rejected) as refusal:
                await authenticate(tokens, token)
            assert recall(tokens, token) is None
        assert not any(secret in told(refusal.value) + logged(refusal.value) for secret in (provider.mint()[-40:],))


@pytest.mark.parametrize("kid", ["", None])
async def test_a_token_that_names_no_key_is_verified_by_the_only_one_for_its_algorithm(
    kid: str | None, keeping: Keeping
) -> None:
    """Tokens of older Kubernetes have an empty ``kid``."""
    with Provider("RS256", "ES256") as provider:
        async with keeping(provider) as (_, tokens):
            assert await authenticate(tokens, Bearer(signed(kid=kid)(provider).encode()))
    with Provider("RS256") as provider:
        provider.rotate()  # both keys are published
        async with keeping(provider) as (_, tokens):
            assert await authenticate(tokens, Bearer(provider.mint().encode()))
            with refused(Rejected, problem=Problem.SIGNING_KEY_UNKNOWN):
                await authenticate(tokens, Bearer(signed(lambda p: claims(p, iat=1), kid=kid)(provider).encode()))


async def test_row32_a_signature_has_one_spelling(provider: Provider, keeping: Keeping) -> None:
    """The last character of a 256-byte signature has four bits to spare."""
    async with keeping(provider) as (_, tokens):
        token = provider.mint()
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        last = alphabet.index(token[-1])
        assert last % 16 == 0
        for spare in range(1, 16):
            with pytest.raises(Rejected):
                await authenticate(tokens, Bearer((token[:-1] + alphabet[last + spare]).encode()))


@pytest.mark.parametrize(
    "alg", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
async def test_a_token_of_each_algorithm_is_verified_and_remembered(alg: str, keeping: Keeping) -> None:
    with Provider(alg) as provider:
        async with keeping(provider) as (_, tokens):
            token = Bearer(provider.mint(header={"typ": "JWT"}).encode())
            assert recall(tokens, token) is None
            principal = await authenticate(tokens, token)
            assert principal.subject == "svc"
            assert recall(tokens, token) is principal
            tampered = Bearer(token.token[:-8] + b"AAAAAAAA")
            assert recall(tokens, tampered) is None


async def test_what_is_remembered_ends_with_the_token(
    provider: Provider, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keeping(provider) as (_, tokens):
        token = Bearer(provider.mint(lifetime=20).encode())
        await authenticate(tokens, token)
        now = time.time()
        for seconds, remembered in ((18, True), (21, False)):
            with monkeypatch.context() as later:
                later.setattr(time, "time", lambda seconds=seconds: now + seconds)
                assert (recall(tokens, token) is not None) is remembered
        longer = Bearer(provider.mint(lifetime=3600).encode())
        await authenticate(tokens, longer)
        for seconds, remembered in ((50, True), (62, False)):  # the bound, verdict_seconds
            with monkeypatch.context() as later:
                later.setattr(time, "time", lambda seconds=seconds: now + seconds)
                assert (recall(tokens, longer) is not None) is remembered


async def test_what_is_remembered_is_bounded_and_strangers_cannot_push_it_out(
    provider: Provider, keeping: Keeping
) -> None:
    async with keeping(provider) as (_, tokens):
        token = Bearer(provider.mint().encode())
        await authenticate(tokens, token)
        for number in range(300):
            with pytest.raises(Rejected):
                await authenticate(
                    tokens, Bearer(encode_jws(head(), claims(provider, sub=str(number)), STRANGER).encode())
                )
        assert recall(tokens, token)
        for number in range(150):
            await authenticate(tokens, Bearer(provider.mint(sub=str(number)).encode()))
        assert len(tokens.verdicts._proofs) == 100


async def test_an_exception_of_our_own_is_a_refusal(
    provider: Provider, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keeping(provider) as (issuer, tokens):
        await authenticate(tokens, Bearer(provider.mint().encode()))
        monkeypatch.setattr(type(issuer), "key_at_hand", lambda *_: 1 / 0)
        with pytest.raises(Rejected):
            await authenticate(tokens, Bearer(provider.mint(sub="x").encode()))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=80))
def test_a_header_is_parsed_or_refused(raw: bytes) -> None:
    for parse in (parse_header, decode_segment, parse_json_object):
        with suppress(Refusal, ValueError, RecursionError):  # Tokens.verify refuses on these; another would be new
            parse(raw)


async def test_a_role_for_an_address_is_not_for_who_only_claims_it(provider: Provider, keeping: Keeping) -> None:
    grant = Grant(("admin",), provider.url, claims={"email": ClaimRule(glob=("*@corp.example",))})
    async with keeping(provider) as (issuer, _):
        tokens = Tokens({provider.url: issuer}, GrantIndex([grant]))
        for said, roles in (({"email_verified": False}, ()), ({"email_verified": True}, ("admin",)), ({}, ("admin",))):
            token = Bearer(provider.mint(email="ceo@corp.example", **said).encode())
            assert (await authenticate(tokens, token)).roles == roles


async def test_groups_in_one_text_are_told_once_with_the_setting_that_helps(
    provider: Provider, keeping: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(provider) as (_, tokens):
        assert (await authenticate(tokens, Bearer(provider.mint(groups=["data", "ops"]).encode()))).groups == (
            "data",
            "ops",
        )
        assert caplog.text == ""
        for number in range(2):
            token = Bearer(provider.mint(groups="data,ops", jti=str(number)).encode())
            assert (await authenticate(tokens, token)).groups == ("data,ops",)
    assert caplog.text.count("groups_separator") == 1
