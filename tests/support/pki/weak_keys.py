"""Make RSA moduli for tests: strong ones, and weak ones that can be factored.

The primes are not kept.
"""

import math
import random
from functools import cache

import gmpy2
from cryptography.hazmat.primitives.asymmetric import rsa

# M of the ROCA generator (CVE-2017-15361): the product of the first 39 primes, 2 to 167.
_ROCA_MODULUS = math.prod(n for n in range(2, 168) if all(n % d for d in range(2, n)))


def public_key(modulus: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    """Return the public key of a modulus."""
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


@cache
def sound_modulus(bits: int) -> int:
    """Return a modulus without any of the weaknesses, the same in every run."""
    p, q = (next_prime(part << (bits // 2 - 4)) for part in (13, 15))
    return p * q


def next_prime(number: int) -> int:
    """Return the first prime above a number."""
    return int(gmpy2.next_prime(number))


_SMALL_FACTORS = (3, 757, 65537, 131071)
WEAKNESSES = (
    "prime",
    "square",
    "close primes",
    "primes that Fermat finds after 90 rounds",
    *(f"small factor {factor}" for factor in _SMALL_FACTORS),
    "ROCA",
)


@cache
def weak_moduli(bits: int = 2048) -> dict[str, int]:
    """Return one modulus of `bits` bits for each of WEAKNESSES, by its weakness."""
    half = bits // 2
    prime = next_prime((13 << (half - 4)) + 1)
    moduli = (
        next_prime(sound_modulus(bits)),
        prime * prime,
        prime * next_prime(prime),
        _found_after(90, half),
        *(factor * next_prime((7 << (bits - 3)) // factor) for factor in _SMALL_FACTORS),
        _roca_prime(half, 1) * _roca_prime(half, 2),
    )
    return dict(zip(WEAKNESSES, moduli, strict=True))


def _found_after(rounds: int, half: int) -> int:
    """Return a modulus whose primes are so far apart that Fermat needs about `rounds` rounds."""
    p = next_prime(13 << (half - 4))
    # a - sqrt(n) is about (q - p)**2 / (8 p).
    return p * next_prime(p + math.isqrt(8 * p * rounds))


def _roca_prime(bits: int, seed: int) -> int:
    """Return a prime of the ROCA generator's form: k * M + (65537**a mod M)."""
    chance = random.Random(seed)
    while True:
        least = (13 << (bits - 4)) // _ROCA_MODULUS
        k = chance.randrange(least, least + least // 13)
        candidate = k * _ROCA_MODULUS + pow(65537, chance.randrange(1 << 61), _ROCA_MODULUS)
        if gmpy2.is_prime(candidate):
            return candidate
