"""RSA moduli that anybody can factor, with the library badkeys as a judge."""

import gc
import weakref
from collections import OrderedDict

import pytest
from badkeys.checks import checkrsa

from birthmark_sma.errors import KeyRefusedError
from birthmark_sma.pki.keys import rsa_weaknesses
from birthmark_sma.pki.keys.key_policy import (
    check_is_secret,
    check_key,
    check_key_encryption_key,
)
from birthmark_sma.pki.keys.rsa_weaknesses import find_weakness, is_prime
from tests.support.pki.weak_keys import (
    WEAKNESSES,
    next_prime,
    public_key,
    sound_modulus,
    weak_moduli,
)

SIZES = (2048, 3072, 4096)
JUDGED = ("fermat", "roca", "smallfactors")


@pytest.mark.parametrize("weakness", [name for name in WEAKNESSES if name != "prime"])
def test_a_modulus_that_can_be_factored_is_refused(weakness: str) -> None:
    """Threat 39: as a signing key and as a recipient key, with the cause."""
    key = public_key(weak_moduli()[weakness])
    assert key.key_size == 2048
    for check in (check_key, check_key_encryption_key):
        with pytest.raises(KeyRefusedError, match=r"^This RSA modulus (has|is) .*new key pair"):
            check(key)


@pytest.mark.parametrize("weakness", WEAKNESSES)
def test_badkeys_finds_no_more(weakness: str) -> None:
    """Threat 39: what the judge says can be factored is refused, and 131071 and primes besides."""
    found = checkrsa(weak_moduli()[weakness], checks=JUDGED)
    beyond_the_judge = weakness in {"small factor 131071", "prime"}
    assert bool(found) is not beyond_the_judge
    refused = find_weakness(weak_moduli()[weakness]) is not None or is_prime(
        weak_moduli()[weakness]
    )
    assert refused


@pytest.mark.parametrize("bits", SIZES)
def test_badkeys_finds_no_less(bits: int) -> None:
    """Sound keys are sound to both."""
    modulus = sound_modulus(bits)
    assert modulus.bit_length() == bits
    assert checkrsa(modulus, checks=JUDGED) == {}
    assert find_weakness(modulus) is None
    assert not is_prime(modulus)
    check_is_secret(check_key(public_key(modulus)))


@pytest.mark.parametrize("bits", SIZES)
def test_a_prime_modulus_is_refused(bits: int) -> None:
    """Threat 39: its private exponent is the inverse of 65537 modulo n - 1."""
    modulus = next_prime(sound_modulus(bits))
    assert find_weakness(modulus) is None
    with pytest.raises(KeyRefusedError, match="is a prime"):
        check_is_secret(public_key(modulus))


def test_the_bound_of_small_factors() -> None:
    """The largest prime below 2**17 is looked for; the first one above is not."""
    rest = next_prime(sound_modulus(2030))
    assert find_weakness(131071 * rest) is not None
    assert find_weakness(131101 * rest) is None


class Breaths:
    """A callable that counts its calls."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_modulus_is_tested_once_whoever_asks() -> None:
    """The result depends on the modulus alone, so another callable gets the same one from cache."""
    modulus = sound_modulus(2048) + 2
    first, second = Breaths(), Breaths()
    results = is_prime(modulus, first), is_prime(modulus, second), is_prime(modulus)
    assert len(set(results)) == 1
    assert (first.calls, second.calls) == (256, 0)


def test_a_callable_does_not_stay_in_the_cache() -> None:
    breathe = Breaths()
    is_prime(sound_modulus(2048) + 4, breathe)
    assert breathe.calls == 256
    gone = weakref.ref(breathe)
    del breathe
    gc.collect()
    assert gone() is None


def test_the_cache_of_prime_tests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsa_weaknesses, "_CACHED", 3)
    monkeypatch.setattr(rsa_weaknesses, "_tested", OrderedDict())
    again = Breaths()
    for modulus in (1_000_001, 1_000_003, 1_000_005, 1_000_007):
        is_prime(modulus)
    assert is_prime(1_000_003, again) is True
    assert again.calls == 0
    assert is_prime(1_000_001, again) is False
    assert again.calls == 3
