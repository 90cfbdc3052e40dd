"""Which public keys are accepted, and that every other is refused with its reason."""

import base64
import hashlib
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
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
from birthmark_sma.pki.keys.key_policy import (
    MAX_PEM_CHARACTERS,
    DeviceKey,
    KeyEncryptionKey,
    are_one_key,
    check_is_secret,
    check_key,
    check_key_encryption_key,
    fingerprint,
    load_public_key,
)
from birthmark_sma.pki.keys.published_keys import PUBLISHED_KEYS
from tests.support.pki.chains import DEVICE_KEY_KINDS, device_key, sound_chain
from tests.support.pki.weak_keys import public_key, sound_modulus
from vectors.generator import authorities, seeded_keys
from vectors.generator.all_files import all_files

HERE = Path(__file__).parent


def rsa_key(bits: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    """Return a public key of this size and exponent; nobody knows a private key for it."""
    return public_key(sound_modulus(bits), exponent)


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
    """EC P-256 and P-384, RSA of three sizes with e = 65537, and Ed25519."""
    key = device_key(kind).public_key()
    assert check_key(load_public_key(pem_of(key))) == key


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_accepted_rsa_sizes(bits: int) -> None:
    """Three sizes, and none between them."""
    key = rsa_key(bits)
    assert check_key(load_public_key(pem_of(key))) == key
    assert check_key_encryption_key(key) == key


# Made by the test that needs it: the large primes take seconds.
REFUSED_EVERYWHERE: dict[str, tuple[Callable[[], Any], str]] = {
    "RSA-1024": (lambda: rsa_key(1024), "RSA key of 1024 bits"),
    "RSA-2046": (lambda: rsa_key(2046), "RSA key of 2046 bits"),
    "RSA-2056": (lambda: rsa_key(2056), "RSA key of 2056 bits"),
    "RSA-4098": (lambda: rsa_key(4098), "RSA key of 4098 bits"),
    "RSA-8192": (lambda: rsa_key(8192), "RSA key of 8192 bits"),
    "e-3": (lambda: rsa_key(2048, 3), "e = 3 "),
    "e-17": (lambda: rsa_key(2048, 17), "e = 17 "),
    "e-65539": (lambda: rsa_key(2048, 65539), "e = 65539 "),
    "P-521": (lambda: ec.generate_private_key(ec.SECP521R1()).public_key(), "curve secp521r1"),
    "P-224": (lambda: ec.generate_private_key(ec.SECP224R1()).public_key(), "curve secp224r1"),
    "secp256k1": (lambda: ec.generate_private_key(ec.SECP256K1()).public_key(), "curve secp256k1"),
    "brainpool": (
        lambda: ec.generate_private_key(ec.BrainpoolP256R1()).public_key(),
        "curve brainpoolP256r1",
    ),
    "Ed448": (lambda: ed448.Ed448PrivateKey.generate().public_key(), "Ed448"),
    "X448": (lambda: x448.X448PrivateKey.generate().public_key(), "X448"),
}


@pytest.mark.parametrize("name", REFUSED_EVERYWHERE)
def test_refused_for_signing_and_for_encryption(name: str) -> None:
    """Threat 4: a weak or uncommon key is refused with the reason, and with what to use instead."""
    new_public_key, reason = REFUSED_EVERYWHERE[name]
    loaded = load_public_key(pem_of(new_public_key()))
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


# --- what is encoded as something else than the library reads


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    """Run OpenSSL, which encodes keys in ways that pyca does not."""
    done = subprocess.run(
        ["openssl", *arguments], input=given, check=True, capture_output=True, timeout=60
    )
    return done.stdout


def ec_key(*options: str) -> str:
    """A new P-256 public key in PEM, encoded as asked."""
    private = openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout")
    return openssl("ec", "-pubout", *options, given=private).decode()


def rsa_key_of(algorithm: str, *options: str) -> str:
    """A new public key in PEM, whose algorithm is as asked."""
    private = openssl("genpkey", "-algorithm", algorithm, *options)
    return openssl("pkey", "-pubout", given=private).decode()


OAEP = (
    device_key("rsa-2048")
    .public_key()
    .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    .replace(bytes.fromhex("06092a864886f70d010101"), bytes.fromhex("06092a864886f70d010107"))
)
MISREAD: dict[str, tuple[Callable[[], str], str]] = {
    "PSS": (lambda: rsa_key_of("RSA-PSS"), "RSASSA-PSS keys are not accepted"),
    "PSS with parameters": (
        lambda: rsa_key_of("RSA-PSS", "-pkeyopt", "rsa_pss_keygen_md:sha256"),
        "RSASSA-PSS keys are not accepted",
    ),
    "OAEP": (lambda: armoured("PUBLIC KEY", OAEP), "RSAES-OAEP keys are not accepted"),
    "hybrid": (lambda: ec_key("-conv_form", "hybrid"), "hybrid form"),
    "explicit": (lambda: ec_key("-param_enc", "explicit"), "explicit curve parameters"),
}


@pytest.mark.parametrize("name", MISREAD)
def test_what_the_library_takes_for_another_key_is_refused(name: str) -> None:
    """Threat 39: a PSS key could never sign a bundle; the others are not what is certified."""
    make, reason = MISREAD[name]
    with pytest.raises(KeyRefusedError, match=reason):
        load_public_key(make())


def test_a_compressed_point_is_accepted() -> None:
    """RFC 5480 allows it; it is certified uncompressed."""
    check_key(load_public_key(ec_key("-conv_form", "compressed")))


POINT = (
    device_key("ec-p256")
    .public_key()
    .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    if isinstance(device_key("ec-p256"), ec.EllipticCurvePrivateKey)
    else b""
)
RSA_PKCS1 = (
    device_key("rsa-2048")
    .public_key()
    .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (base64.b64encode(POINT).decode(), "bare EC point"),
        (base64.encodebytes(POINT).decode(), "bare EC point"),
        (armoured("PUBLIC KEY", POINT), "bare EC point"),
        (armoured("PUBLIC KEY", RSA_PKCS1), r"PKCS#1 RSAPublicKey"),
        (armoured("RSA PUBLIC KEY", RSA_PKCS1), "begins '-----BEGIN PUBLIC KEY-----'"),
        (P256_PEM + P256_PEM, "more than one PEM block"),
        (P256_PEM + "-----BEGIN CERTIFICATE-----", "more than one PEM block"),
        (
            P256_PEM.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
            "encryption headers",
        ),
        (P256_PEM.replace("M", "!", 1), "damaged: it is not base64"),
    ],
    ids=[
        "point, base64",
        "point, base64 in lines",
        "point, armoured",
        "PKCS#1",
        "PKCS#1 by its own armour",
        "two keys",
        "key and certificate",
        "encryption headers",
        "no base64",
    ],
)
def test_the_cause_is_named(text: str, reason: str) -> None:
    """Threat 39: what iOS exports, and texts with more than one meaning, are told apart."""
    with pytest.raises(KeyRefusedError, match=reason):
        load_public_key(text)


@pytest.mark.parametrize("text", [P256_PEM.replace("\n", "\r\n"), f"Subject: Zoë\n{P256_PEM}\n"])
def test_harmless_spellings_are_accepted(text: str) -> None:
    """Line ends of Windows, and text around the block (RFC 7468, section 2)."""
    check_key(load_public_key(text))


CASES = {
    "rsa_close_primes.pem": "close primes",
    "rsa_close_primes_500_bits.pem": "close primes",
    "rsa_factor_757.pem": "small factor",
    "rsa_factor_65537.pem": "small factor",
    "rsa_pss_without_parameters.pem": "RSASSA-PSS",
    "pem_encryption_headers.pem": "encryption headers",
    "ec_raw_point_base64.pem": "bare EC point",
    "ec_raw_point_in_pem.pem": "bare EC point",
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_that_got_a_wrong_answer(name: str) -> None:
    """Threat 39: each was certified, or refused without its cause."""
    text = (HERE / "refused_keys" / name).read_text()
    for check in (check_key, check_key_encryption_key):
        with pytest.raises(KeyRefusedError, match=CASES[name]):
            check(load_public_key(text))


# --- keys that anybody knows

RFC_6979_P256 = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
RFC_6979_P384 = int(
    "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
    "96D5724E4C70A825F872C9EA60D2EDF5",
    16,
)
RFC_8032 = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
RFC_7748 = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"


def p256_of(scalar: int) -> ec.EllipticCurvePublicKey:
    """The P-256 public key of a scalar."""
    return ec.derive_private_key(scalar, ec.SECP256R1()).public_key()


KNOWN: dict[str, DeviceKey | KeyEncryptionKey] = {
    "P-256 generator": p256_of(1),
    "P-384 generator": ec.derive_private_key(1, ec.SECP384R1()).public_key(),
    "RFC 6979, A.2.5": p256_of(RFC_6979_P256),
    "RFC 6979, A.2.6": ec.derive_private_key(RFC_6979_P384, ec.SECP384R1()).public_key(),
    "RFC 8032": ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_8032)).public_key(),
    "RFC 7748": x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_7748)).public_key(),
    "X25519 base point": x25519.X25519PublicKey.from_public_bytes(bytes([9, *bytes(31)])),
    "Ed25519 base point": ed25519.Ed25519PublicKey.from_public_bytes(bytes([0x58, *[0x66] * 31])),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_key_is_refused(name: str) -> None:
    """Threat 39: whoever has read an RFC could pose as the device."""
    with pytest.raises(KeyRefusedError, match=r"private key of this public key is published"):
        check_is_secret(KNOWN[name])


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
def test_a_new_key_is_secret(kind: str) -> None:
    """Keys that nobody has published are accepted."""
    check_is_secret(check_key(device_key(kind).public_key()))


def test_every_key_of_the_vectors_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat 39: anybody can make them from their labels."""
    made: dict[str, Any] = {}
    for maker in ("p256", "p384", "ed25519_key", "x25519_key", "rsa_key"):
        original = getattr(seeded_keys, maker)

        def record(label: str, *bits: int, original: Any = original, maker: str = maker) -> Any:
            key = original(label, *bits)
            if not bits:  # others are too small for any device
                made[f"{maker} {label}"] = key.public_key()
            return key

        for module in (seeded_keys, authorities):
            if hasattr(module, maker):
                monkeypatch.setattr(module, maker, record)
    all_files(HERE.parents[2] / "vectors")
    assert {"p256 test device", "x25519_key test recipient X25519"} <= made.keys()
    missing = [label for label, key in made.items() if fingerprint(key) not in PUBLISHED_KEYS]
    assert not missing, {label: fingerprint(made[label]).hex() for label in missing}


# --- one key for two purposes


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048"])
def test_one_key_is_one_key(kind: str) -> None:
    """Threat 39: the same key is recognised, and another of its kind is another."""
    key = check_key(device_key(kind).public_key())
    assert not isinstance(key, ed25519.Ed25519PublicKey)
    assert are_one_key(key, key)
    assert not are_one_key(key, check_key_encryption_key(p256_of(12345)))


def test_an_ed25519_key_and_its_x25519_twin_are_one() -> None:
    """Threat 39: both have one scalar: that of RFC 8032's first test (RFC 7748, section 4.1)."""
    seed = bytes.fromhex(RFC_8032)
    scalar = hashlib.sha512(seed).digest()[:32]
    twin = x25519.X25519PrivateKey.from_private_bytes(scalar).public_key()
    signing = ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()
    assert are_one_key(signing, twin)
    assert not are_one_key(signing, x25519.X25519PrivateKey.generate().public_key())
    assert not are_one_key(signing, p256_of(12345))
