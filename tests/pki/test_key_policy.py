"""Which public keys are accepted, and that every other is refused with its reason."""

import base64
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import (
    dsa,
    ec,
    ed448,
    ed25519,
    rsa,
    x448,
    x25519,
)
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import KeyRefusedError
from birthmark_sma.pki.key_policy import (
    MAX_PEM_CHARACTERS,
    check_key,
    check_key_encryption_key,
    load_public_key,
)
from tests.support.chains import DEVICE_KEY_KINDS, device_key, sound_chain

SMALL_PRIMES = [n for n in range(2, 752) if all(n % divisor for divisor in range(2, n))]


def modulus(bits: int) -> int:
    """Return a number of so many bits without a small factor; nobody knows a private key for it."""
    candidate = (1 << bits - 1) + 1
    while any(candidate % prime == 0 for prime in SMALL_PRIMES):
        candidate += 2
    return candidate


def rsa_key(bits: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    """Return a public key of this size and exponent."""
    return rsa.RSAPublicNumbers(exponent, modulus(bits)).public_key()


def pem_of(key: Any) -> str:
    """Write a public key as PEM SubjectPublicKeyInfo."""
    pem: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def armoured(label: str, der: bytes) -> str:
    """Wrap bytes as PEM, whatever they are."""
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


P256_PEM = pem_of(device_key("ec-p256").public_key())


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
def test_accepted_for_signing(kind: str) -> None:
    """EC P-256 and P-384, RSA of 2048 to 4096 bits with e = 65537, and Ed25519."""
    key = device_key(kind).public_key()
    assert check_key(load_public_key(pem_of(key))) == key


@pytest.mark.parametrize("bits", [2048, 2056, 3072, 4096])
def test_accepted_rsa_sizes(bits: int) -> None:
    """Both ends of the range belong to it."""
    key = rsa_key(bits)
    assert check_key(load_public_key(pem_of(key))) == key
    assert check_key_encryption_key(key) == key


REFUSED_EVERYWHERE: dict[str, tuple[Any, str]] = {
    "RSA-1024": (rsa_key(1024), "RSA key of 1024 bits"),
    "RSA-2047": (rsa_key(2047), "RSA key of 2047 bits"),
    "RSA-4097": (rsa_key(4097), "RSA key of 4097 bits"),
    "RSA-8192": (rsa_key(8192), "RSA key of 8192 bits"),
    "e-3": (rsa_key(2048, 3), "e = 3 "),
    "e-17": (rsa_key(2048, 17), "e = 17 "),
    "e-65539": (rsa_key(2048, 65539), "e = 65539 "),
    "small-factor": (
        rsa.RSAPublicNumbers(65537, modulus(2041) * 251).public_key(),
        "small factor",
    ),
    "P-521": (ec.generate_private_key(ec.SECP521R1()).public_key(), "curve secp521r1"),
    "P-224": (ec.generate_private_key(ec.SECP224R1()).public_key(), "curve secp224r1"),
    "secp256k1": (ec.generate_private_key(ec.SECP256K1()).public_key(), "curve secp256k1"),
    "brainpool": (
        ec.generate_private_key(ec.BrainpoolP256R1()).public_key(),
        "curve brainpoolP256r1",
    ),
    "Ed448": (ed448.Ed448PrivateKey.generate().public_key(), "Ed448"),
    "X448": (x448.X448PrivateKey.generate().public_key(), "X448"),
}


@pytest.mark.parametrize("name", REFUSED_EVERYWHERE)
def test_refused_for_signing_and_for_encryption(name: str) -> None:
    """Threat 4: a weak or uncommon key is refused with the reason, and with what to use instead."""
    key, reason = REFUSED_EVERYWHERE[name]
    loaded = load_public_key(pem_of(key))
    for check in (check_key, check_key_encryption_key):
        with pytest.raises(KeyRefusedError, match=reason) as caught:
            check(loaded)
        assert "Use EC P-256 or P-384" in str(caught.value)


def test_x25519_agrees_but_does_not_sign() -> None:
    """Threat 4: an X25519 key is refused for signing; table keys can be sealed to it."""
    key = load_public_key(pem_of(x25519.X25519PrivateKey.generate().public_key()))
    with pytest.raises(KeyRefusedError, match="X25519 is not accepted: it can agree on keys"):
        check_key(key)
    assert check_key_encryption_key(key) is key


def test_ed25519_signs_but_does_not_decrypt() -> None:
    """Table keys cannot be sealed to an Ed25519 key."""
    key = load_public_key(pem_of(ed25519.Ed25519PrivateKey.generate().public_key()))
    with pytest.raises(KeyRefusedError, match="Ed25519 is not accepted: it can sign"):
        check_key_encryption_key(key)


def test_dsa_is_refused() -> None:
    """DSA is refused by name, whether or not it can still be read."""
    key = dsa.generate_private_key(1024).public_key()
    with pytest.raises(KeyRefusedError, match="DSA is not accepted"):
        check_key(key)
    with pytest.raises(KeyRefusedError, match="DSA is not accepted"):
        check_key_encryption_key(key)


@pytest.mark.parametrize("key", [None, b"key", object(), device_key("ec-p256")])
def test_what_is_no_public_key_is_refused(key: object) -> None:
    """Another object, a private key among them, is not let through for being unknown."""
    with pytest.raises(KeyRefusedError, match="This kind of key is not accepted"):
        check_key(key)
    with pytest.raises(KeyRefusedError, match="This kind of key is not accepted"):
        check_key_encryption_key(key)


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
)
@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
def test_a_private_key_is_refused(kind: str, form: serialization.PrivateFormat) -> None:
    """Whoever sends a private key is told so, and does not get it repeated."""
    pem = (
        device_key(kind)
        .private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        .decode()
    )
    with pytest.raises(KeyRefusedError, match="This is a private key") as caught:
        load_public_key(pem)
    assert pem.splitlines()[1] not in str(caught.value)
    with pytest.raises(KeyRefusedError, match="This is a private key"):
        load_public_key(P256_PEM + pem)


def test_a_certificate_is_not_a_key() -> None:
    """A certificate is refused, alone and in the armour of a key."""
    certificate = sound_chain().leaf
    with pytest.raises(KeyRefusedError, match="SubjectPublicKeyInfo"):
        load_public_key(certificate.public_bytes(serialization.Encoding.PEM).decode())
    with pytest.raises(KeyRefusedError, match="cannot be read"):
        load_public_key(
            armoured("PUBLIC KEY", certificate.public_bytes(serialization.Encoding.DER))
        )


def inside(text: str) -> str:
    """Put text into the middle of a sound PEM's base64."""
    return P256_PEM[:60] + text + P256_PEM[60:]


GARBAGE = {
    "empty": "",
    "space": " ",
    "NUL": "\0",
    "word": "garbage",
    "surrogate": "\ud800",
    "first line only": "-----BEGIN PUBLIC KEY-----",
    "no base64": "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    "no first line": P256_PEM[30:],
    "no last line": P256_PEM[:-26],
    "cut last line": P256_PEM[:-20],
    "NUL inside": inside("\0"),
    "letter of no base64 inside": inside("!"),
    "accent inside": inside("é"),
    "emoji inside": inside("📷"),
    "surrogate inside": inside("\ud800"),
    "surrogate before": "\udfff" + P256_PEM,
    "surrogate behind": P256_PEM + "\ud800",
    "no bytes": armoured("PUBLIC KEY", b""),
    "zeros": armoured("PUBLIC KEY", bytes(100)),
    "deep": armoured("PUBLIC KEY", b"\x30\x80" * 2_000),
    "PKCS 1": armoured("RSA PUBLIC KEY", bytes(100)),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(name: str) -> None:
    """Threat 21: whatever the text, NUL and lone surrogates among it, it is refused as a key."""
    with pytest.raises(KeyRefusedError):
        load_public_key(GARBAGE[name])


@pytest.mark.parametrize("length", [MAX_PEM_CHARACTERS + 1, 10**7])
def test_a_huge_text_is_refused_before_it_is_read(length: int) -> None:
    """Threat 16: the length is looked at first, even where a sound key stands at the front."""
    with pytest.raises(KeyRefusedError, match="at most 8192 characters"):
        load_public_key(P256_PEM.ljust(length, "\n"))


def test_the_largest_accepted_key_fits() -> None:
    """The bound on the text leaves room for every key that the policy accepts."""
    assert len(pem_of(rsa_key(4096))) < MAX_PEM_CHARACTERS / 4


@given(st.text())
def test_any_text_is_a_key_or_refused(text: str) -> None:
    """No text raises anything but KeyRefusedError, wherever it stands in a PEM."""
    for pem in (text, armoured("PUBLIC KEY", text.encode("utf-8", "surrogatepass")), inside(text)):
        with suppress(KeyRefusedError):
            check_key(load_public_key(pem))


KEYS_AS_DER = [
    device_key(kind)
    .public_key()
    .public_bytes(
        serialization.Encoding.DER,
        serialization.PublicFormat.SubjectPublicKeyInfo,
    )
    for kind in ("ec-p256", "ec-p384", "rsa-2048", "ed25519")
]


@given(
    st.sampled_from(KEYS_AS_DER),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_any_altered_key_is_accepted_or_refused(
    der: bytes, alterations: list[tuple[int, int]]
) -> None:
    """Any few bytes changed in a key give a key or KeyRefusedError, and never another error."""
    altered = bytearray(der)
    for place, byte in alterations:
        altered[place % len(altered)] = byte
    with suppress(KeyRefusedError):
        check_key(load_public_key(armoured("PUBLIC KEY", bytes(altered))))


# --- points that sign nothing

SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NO_POINT = ["ff" * 32, "02" + "00" * 31, "ee" + "ff" * 30 + "7f"]


@pytest.mark.parametrize("encoded", SMALL_ORDER + NO_POINT)
def test_an_ed25519_key_that_anybody_can_sign_for_is_refused(encoded: str) -> None:
    """Threat 4: under a point of small order a signature needs no private key."""
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(encoded))
    with pytest.raises(KeyRefusedError, match="Ed25519"):
        check_key(key)


def test_a_signature_without_a_private_key_verifies_under_such_a_point() -> None:
    """Why they are refused: the library's own verification accepts it for any message."""
    identity = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(SMALL_ORDER[0]))
    identity.verify(bytes.fromhex("01" + "00" * 63), b"anything")
    with pytest.raises(KeyRefusedError):
        check_key(identity)


def test_ed25519_keys_that_were_made_are_accepted() -> None:
    """Two hundred of them: the arithmetic refuses no sound one."""
    for _ in range(200):
        key = ed25519.Ed25519PrivateKey.generate().public_key()
        assert check_key(key) is key


@pytest.mark.parametrize("encoded", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_an_x25519_key_of_small_order_is_refused(encoded: str) -> None:
    """Threat 4: an agreement with it gives zero, which everybody knows."""
    key = x25519.X25519PublicKey.from_public_bytes(bytes.fromhex(encoded))
    with pytest.raises(KeyRefusedError, match="small order"):
        check_key_encryption_key(key)
