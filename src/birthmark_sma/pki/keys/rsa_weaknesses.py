"""Find RSA moduli that anyone can factor.

`key_policy` calls it. The checks are those of `badkeys` (Böck), which the tests compare against,
and two more: a modulus that is a prime, whose private exponent anyone can compute, and a modulus
with a factor below 2**17.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, lru_cache

_SMALL_FACTOR_BITS = 17
_FERMAT_ROUNDS = 100
_CACHED = 1_024
"""The most moduli whose result is kept, for each of the two functions."""


@lru_cache(maxsize=_CACHED)
def find_weakness(modulus: int) -> str | None:
    """Return the reason why anyone can factor a modulus, as the end of a sentence, or None.

    It takes 0.8 ms for 2048 bits and 1.6 ms for 4096 bits, nearly all of it for small factors. The
    check for a prime modulus costs far more, so it is separate: see `is_prime`.
    """
    if math.gcd(modulus, _small_primes()) != 1:
        return f"has a small factor, below 2**{_SMALL_FACTOR_BITS}"
    if math.isqrt(modulus) ** 2 == modulus:
        return "is a perfect square"
    if _has_close_primes(modulus):
        return "has close primes, so that Fermat's method factors it at once"
    if _has_roca_fingerprint(modulus):
        return (
            "has the ROCA fingerprint of a faulty generator (CVE-2017-15361), and can be factored"
        )
    return None


_tested: OrderedDict[int, bool] = OrderedDict()
"""The results of `is_prime`, the oldest first. Not `lru_cache`: it would also cache `breathe`. No
lock, as a forked process could inherit it locked."""


def is_prime(modulus: int, breathe: Callable[[], None] = lambda: None) -> bool:
    """Return True if an RSA modulus is itself a prime, by Fermat's test to base 2.

    A product of two large primes passes this test with a probability below 2**-100. The test takes
    25 ms for 2048 bits and 200 ms for 4096 bits. `pow` holds the interpreter's lock (GIL), so the
    exponent is processed one byte at a time. `breathe` is called between two bytes, so that the
    caller can release the GIL for other threads.
    """
    result = _tested.get(modulus)
    if result is None:
        result = _tested[modulus] = _passes_fermat_test(modulus, breathe)
        if len(_tested) > _CACHED:
            _tested.popitem(last=False)
    return result


def _passes_fermat_test(modulus: int, breathe: Callable[[], None]) -> bool:
    power = 1
    for byte in (modulus - 1).to_bytes((modulus.bit_length() + 7) // 8, "big"):
        power = (pow(power, 256, modulus) << byte) % modulus
        breathe()
    return power == 1


def _has_close_primes(modulus: int) -> bool:
    """Try 100 rounds of Fermat's factorization: a**2 - modulus is a square for a = (p + q) / 2."""
    a = math.isqrt(modulus) + 1
    square = a * a - modulus
    for _ in range(_FERMAT_ROUNDS):
        if _is_square(square):
            return True
        square += 2 * a + 1
        a += 1
    return False


def _is_square(number: int) -> bool:
    # A square has one of 12 remainders modulo 64, and one of few modulo small primes. So only one
    # number in 500 needs the square root, which costs twenty times as much.
    return (
        number & 63 in _SQUARES_MODULO_64
        and number % _SIEVE in _SQUARES_MODULO_SIEVE
        and math.isqrt(number) ** 2 == number
    )


_SQUARES_MODULO_64 = frozenset(n * n % 64 for n in range(64))
_SIEVE = 3 * 5 * 7 * 11 * 13
_SQUARES_MODULO_SIEVE = frozenset(n * n % _SIEVE for n in range(_SIEVE))


@cache
def _small_primes() -> int:
    """Return the product of all primes below 2**17: 188,523 bits, computed once in 40 ms."""
    limit = 1 << _SMALL_FACTOR_BITS
    prime = bytearray([1]) * limit
    prime[:2] = bytes(2)
    for n in range(2, math.isqrt(limit) + 1):
        if prime[n]:
            prime[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return _product([n for n in range(limit) if prime[n]])


def _product(numbers: list[int]) -> int:
    """Multiply halves of similar size: a tenth of the time of one factor after another."""
    if len(numbers) == 1:
        return numbers[0]
    middle = len(numbers) // 2
    return _product(numbers[:middle]) * _product(numbers[middle:])


# ROCA: Nemec, Sys, Svenda, Klinec, Matyas, "The Return of Coppersmith's Attack", ACM CCS 2017,
# section 3.3. Primes of the faulty generator are k * M + (65537**a mod M), so the modulus is a
# power of 65537 modulo M as well. One random modulus in 2**154 has this property by chance.
_ROCA_GENERATOR = 65537
_ROCA_PRIMES = tuple(n for n in range(2, 168) if all(n % d for d in range(2, n)))
_ROCA_MODULUS = math.prod(_ROCA_PRIMES)
_ROCA_ORDER_FACTORS = (16, 81, 25, 7, 11, 13, 17, 23, 29, 37, 41, 53, 83)
_ROCA_ORDER = math.prod(_ROCA_ORDER_FACTORS)
"""The multiplicative order of 65537 modulo M. `_ROCA_ORDER_FACTORS` has its prime powers."""


def _has_roca_fingerprint(modulus: int) -> bool:
    """Return True if the modulus has a discrete logarithm to base 65537 modulo M.

    Pohlig and Hellman, 1978: check it modulo each prime power of the order.
    """
    if pow(modulus, _ROCA_ORDER, _ROCA_MODULUS) != 1:
        return False
    for factor in _ROCA_ORDER_FACTORS:
        cofactor = _ROCA_ORDER // factor
        base = pow(_ROCA_GENERATOR, cofactor, _ROCA_MODULUS)
        sought = pow(modulus, cofactor, _ROCA_MODULUS)
        if all(pow(base, power, _ROCA_MODULUS) != sought for power in range(factor)):
            return False
    return True
