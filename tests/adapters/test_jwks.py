"""A JWKS is a stranger's document: whatever is in it, the usable keys are used and nothing else happens."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from service.adapters.jwks import JWKSError, parse_jwks
from service.core.model import ALGORITHMS
from tests.support.issuer import SigningKey, b64url

RS = SigningKey.generate("RS256", "rs")
ES = SigningKey.generate("ES256", "es")


def document(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def without_alg(key: SigningKey, **changes: Any) -> dict[str, Any]:
    jwk = {name: value for name, value in key.jwk().items() if name != "alg"}
    return {**jwk, **changes}


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_each_accepted_algorithm_verifies_its_own_signature_and_no_other(algorithm: str) -> None:
    signer, stranger = SigningKey.generate(algorithm, "k"), SigningKey.generate(algorithm, "k")
    key = parse_jwks(document(signer.jwk()), ALGORITHMS, "i").find("k", algorithm)
    assert key is not None
    assert key.verify(b"message", signer.sign(b"message")) is True
    assert key.verify(b"message", stranger.sign(b"message")) is False
    assert key.verify(b"massage", signer.sign(b"message")) is False
    assert key.verify(b"message", b"") is False


def test_a_key_without_alg_verifies_all_that_fits_its_type() -> None:
    keys = parse_jwks(document(without_alg(RS), without_alg(ES)), ALGORITHMS, "i")
    assert all(keys.find("rs", one) for one in ("RS256", "RS512", "PS256", "PS512"))
    assert keys.find("es", "ES256")
    assert not any(keys.find("es", one) for one in ("ES384", "ES512", "RS256", "EdDSA", "HS256"))


def test_row26_no_key_ever_verifies_an_hmac_or_nothing() -> None:
    octet = {"kty": "oct", "k": b64url(b"secret" * 8), "kid": "o", "alg": "HS256"}
    keys = parse_jwks(document(octet, without_alg(RS)), ALGORITHMS | {"HS256", "none"}, "i")
    assert len(keys) == 1
    assert not any(keys.find(kid, one) for kid in ("o", "rs", None) for one in ("HS256", "HS512", "none"))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b"\xff\xfe", id="binary"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="no-keys"),
        pytest.param(b'{"keys": {}}', id="keys-object"),
        pytest.param(b'{"keys": null}', id="keys-null"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(document(*[{"kid": str(n)} for n in range(101)]), id="too-many"),
    ],
)
def test_row31_a_document_that_is_no_jwks_is_an_error(bad: bytes) -> None:
    with pytest.raises(JWKSError):
        parse_jwks(bad, ALGORITHMS, "i")


def small_rsa() -> dict[str, str]:
    return SigningKey("RS256", "x", rsa.generate_private_key(public_exponent=65537, key_size=1024)).jwk()


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(None, id="null"),
        pytest.param("key", id="string"),
        pytest.param([], id="list"),
        pytest.param({}, id="empty"),
        pytest.param({**RS.jwk(), "kid": 7}, id="kid-number"),
        pytest.param({**RS.jwk(), "kid": "x", "use": "enc"}, id="use-enc"),
        pytest.param({**RS.jwk(), "kid": "x", "key_ops": ["encrypt"]}, id="key-ops"),
        pytest.param({**RS.jwk(), "kid": "x", "key_ops": 5}, id="key-ops-number"),
        pytest.param({**RS.jwk(), "kid": "x", "alg": "RSA-OAEP"}, id="alg-of-encryption"),
        pytest.param({**RS.jwk(), "kid": "x", "alg": "HS256"}, id="alg-hmac"),
        pytest.param({**RS.jwk(), "kid": "x", "alg": ["RS256"]}, id="alg-list"),
        pytest.param({**RS.jwk(), "kid": "x", "n": 5}, id="n-number"),
        pytest.param({**RS.jwk(), "kid": "x", "n": "!"}, id="n-junk"),
        pytest.param({**RS.jwk(), "kid": "x", "n": "AQAB"}, id="n-tiny"),
        pytest.param({**RS.jwk(), "kid": "x", "e": "AQ"}, id="e-one"),
        pytest.param({**RS.jwk(), "kid": "x", "e": b64url(b"\x01" + bytes(39) + b"\x01")}, id="e-huge"),
        pytest.param({**small_rsa(), "kid": "x"}, id="rsa-1024"),
        pytest.param({**ES.jwk(), "kid": "x", "x": b64url(bytes(32))}, id="ec-off-curve"),
        pytest.param({**ES.jwk(), "kid": "x", "crv": "P-384"}, id="ec-other-curve"),
        pytest.param({**ES.jwk(), "kid": "x", "crv": "secp256k1"}, id="ec-unknown-curve"),
        pytest.param({**ES.jwk(), "kid": "x", "crv": ["P-256"]}, id="ec-curve-list"),
        pytest.param({"kty": "OKP", "crv": "X25519", "x": b64url(bytes(32)), "kid": "x"}, id="okp-x25519"),
        pytest.param({"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(31)), "kid": "x"}, id="okp-short"),
        pytest.param({"kty": "EC", "n": "AQAB", "e": "AQAB", "kid": "x"}, id="mixed-kty"),
        pytest.param({"kty": "oct", "k": "", "kid": "x"}, id="oct-empty"),
        pytest.param({"kty": {}, "kid": "x"}, id="kty-object"),
    ],
)
def test_row31_an_unusable_key_is_left_out_and_the_others_are_used(member: object) -> None:
    keys = parse_jwks(document(member, RS.jwk()), ALGORITHMS, "i")
    assert len(keys) == 1
    assert keys.find("rs", "RS256")
    assert keys.find("x", "RS256") is None


def test_row31_an_id_that_several_keys_share_names_none_of_them() -> None:
    other = SigningKey.generate("RS256", "rs")
    assert parse_jwks(document(RS.jwk(), other.jwk()), ALGORITHMS, "i").find("rs", "RS256") is None
    assert parse_jwks(document(RS.jwk(), RS.jwk()), ALGORITHMS, "i").find("rs", "RS256")
    both = parse_jwks(document(without_alg(RS, kid="k"), without_alg(ES, kid="k")), ALGORITHMS, "i")
    assert both.find("k", "RS256")
    assert both.find("k", "ES256")


def test_a_token_without_kid_needs_a_set_with_one_key_for_it() -> None:
    assert parse_jwks(document(RS.jwk(), ES.jwk()), ALGORITHMS, "i").find(None, "RS256")
    two = document(RS.jwk(), SigningKey.generate("RS256", "rs2").jwk())
    assert parse_jwks(two, ALGORITHMS, "i").find(None, "RS256") is None


@pytest.mark.parametrize("kid", ["", None])
def test_an_empty_id_is_none(kid: str | None) -> None:
    nameless = {**RS.jwk(), "kid": kid}
    alone = parse_jwks(document(nameless, ES.jwk()), ALGORITHMS, "i")
    assert alone.find(None, "RS256")
    assert not alone.knows("")
    assert parse_jwks(document(nameless, SigningKey.generate("RS256", "rs2").jwk()), ALGORITHMS, "i").find(
        "rs2", "RS256"
    )


def test_a_private_key_in_the_set_verifies_as_a_public_one() -> None:
    leaked = {**RS.jwk(), "d": "AQAB", "p": "AQAB"}
    key = parse_jwks(document(leaked), ALGORITHMS, "i").find("rs", "RS256")
    assert key is not None
    assert key.verify(b"m", RS.sign(b"m"))


def test_sets_are_equal_if_their_keys_are() -> None:
    first, second = document(RS.jwk(), ES.jwk()), document(ES.jwk(), RS.jwk())
    assert parse_jwks(first, ALGORITHMS, "i") == parse_jwks(second, ALGORITHMS, "i")
    assert parse_jwks(first, ALGORITHMS, "i") != parse_jwks(document(RS.jwk()), ALGORITHMS, "i")


def test_a_key_without_an_id_verifies_a_token_with_one_where_it_is_the_only_one_that_fits() -> None:
    """OIDC Core §10.1 lets an issuer leave the ids out where it has one key; libraries of the field then use it."""
    keys = parse_jwks(document(without_alg(RS, kid=None), without_alg(ES, kid="es")), ALGORITHMS, "i")
    assert keys.find("any", "RS256") is keys.find(None, "RS256") is not None
    assert keys.find("any", "ES256") is None  # that one has an id, and it is another
    assert not keys.knows("any")
    assert not keys.lacks_ids("RS256")


def test_of_several_keys_without_ids_none_is_used_and_that_can_be_told() -> None:
    another = SigningKey.generate("RS256", "other")
    for second in (without_alg(another, kid=None), without_alg(another, kid="other")):
        keys = parse_jwks(document(without_alg(RS, kid=None), second), ALGORITHMS, "i")
        assert keys.find("any", "RS256") is None
        assert keys.lacks_ids("RS256")
        assert not keys.lacks_ids("ES256")
