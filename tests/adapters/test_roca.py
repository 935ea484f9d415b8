"""RSA keys of the faulty library are told from all others."""

import json
import logging
from functools import cache
from math import lcm, prod
from secrets import choice, randbelow, randbits

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.adapters.jwks import parse_jwks
from service.adapters.oauth_client_auth import load_signer
from service.adapters.roca import _EXPONENTS, has_roca_structure
from service.core.model import ALGORITHMS
from tests.support.issuer import SigningKey

PRIMES = [number for number in range(2, 1430) if all(number % divisor for divisor in range(2, number))]
COUNTS = {1024: 126, 2048: 225}  # bits of a prime: of how many primes the library's M is the product


def is_prime(number: int) -> bool:
    """Miller and Rabin, with more rounds than a test needs."""
    odd, twos = number - 1, 0
    while not odd % 2:
        odd, twos = odd // 2, twos + 1
    for _ in range(20):
        power = pow(2 + randbelow(number - 3), odd, number)
        if power in {1, number - 1}:
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def faulty_prime(bits: int) -> int:
    modulus = prod(PRIMES[: COUNTS[bits]])
    while True:
        power = pow(65537, randbits(64), modulus)
        most, least = 1 << bits, 3 << bits - 2  # so that two of them have twice the bits
        number = (least + randbelow(most - least)) // modulus * modulus + power
        if least <= number < most and is_prime(number):
            return number


@cache
def faulty_key() -> rsa.RSAPrivateKey:
    p, q = faulty_prime(1024), faulty_prime(1024)
    d = pow(65537, -1, lcm(p - 1, q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), public)
    return numbers.private_key()


def test_a_modulus_of_such_primes_is_found() -> None:
    modulus = faulty_key().public_key().public_numbers().n
    assert modulus.bit_length() == 2048
    assert has_roca_structure(modulus)
    assert not has_roca_structure(modulus + 2)


def test_so_is_one_of_every_length() -> None:
    """That the factors are primes is no part of the structure."""
    for bits in (2048, 3072, 4096, 8192):
        for count in (39, 71, 126, 225):
            product = prod(PRIMES[:count])
            p, q = (randbits(bits // 2) // product * product + pow(65537, randbits(80), product) for _ in range(2))
            assert has_roca_structure(p * q), (bits, count)


def test_no_honest_modulus_is_found() -> None:
    for _ in range(20):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        assert not has_roca_structure(key.public_key().public_numbers().n)
    assert not any(has_roca_structure(randbits(2048) | 1 << 2047 | 1) for _ in range(50_000))


def test_powers_modulo_each_prime_are_not_enough() -> None:
    """One honest modulus of 240 million is one modulo each; a common exponent is what only a faulty one has."""
    product = prod(_EXPONENTS)
    for _ in range(200):
        modulus = 0
        for prime, exponents in _EXPONENTS.items():
            others = product // prime
            modulus += choice(list(exponents)) * others * pow(others, -1, prime)
        modulus = modulus % product + 2 * product * randbits(1800)
        assert all(modulus % prime in exponents for prime, exponents in _EXPONENTS.items())
        assert not has_roca_structure(modulus)


def test_a_jwks_that_has_one_is_used_without_it_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    faulty, good = SigningKey("RS256", "faulty", faulty_key()), SigningKey.generate("RS256", "good")
    document = json.dumps({"keys": [faulty.jwk(), good.jwk()]}).encode()
    with caplog.at_level(logging.WARNING):
        keys = parse_jwks(document, ALGORITHMS, "https://idp.example")
    assert (len(keys), keys.find("faulty", "RS256")) == (1, None)
    assert keys.find("good", "RS256") is not None
    assert "issuer https://idp.example: a key is not used" in caplog.text
    assert "CVE-2017-15361" in caplog.text


def test_our_own_key_may_not_be_one_either() -> None:
    pem = faulty_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(ValueError, match="CVE-2017-15361"):
        load_signer(pem)
