"""RSA keys that a faulty library made (ROCA, CVE-2017-15361), told by the modulus alone.

Infineon's library made each prime as k·M + (65537^a mod M), with M the product of the first 39 primes or, for longer
keys, of more. Modulo M, such a modulus is a power of 65537: the product of two. So it is one modulo each of those 39
primes, and by one common exponent. Both are easily tested, since the powers of 65537 modulo a small prime are few. The
structure is what makes such a key easy to factor (Nemec et al., "The Return of Coppersmith's Attack", CCS 2017, §2 and
§3.1). Another modulus has it by chance with a probability of less than 2^-150.
"""

from collections.abc import Mapping
from math import gcd
from typing import Final

GENERATOR: Final = 65537


def _exponents(prime: int) -> dict[int, int]:
    """Return each power of the generator modulo a prime, with its exponent; their number is the generator's order."""
    found: dict[int, int] = {}
    power = 1
    while power not in found:
        found[power] = len(found)
        power = power * GENERATOR % prime
    return found


# the odd ones among the first 39 primes: modulo 2, every odd number is a power
_EXPONENTS: Final[Mapping[int, Mapping[int, int]]] = {
    prime: _exponents(prime) for prime in range(3, 168) if all(prime % divisor for divisor in range(2, prime))
}


def has_roca_structure(modulus: int) -> bool:
    """Tell whether a modulus is a power of 65537 modulo the product of the first 39 primes.

    The exponent is put together prime by prime (Chinese remainder theorem); where two primes contradict each other,
    there is none.
    """
    exponent, period = 0, 1  # it is ``exponent`` plus any multiple of ``period``, by the primes so far
    for prime, exponents in _EXPONENTS.items():
        here, order = exponents.get(modulus % prime), len(exponents)
        if here is None:
            return False
        common = gcd(period, order)
        steps, rest = divmod(here - exponent, common)
        if rest:
            return False
        exponent += period * (steps * pow(period // common, -1, order // common) % (order // common))
        period *= order // common
    return True
