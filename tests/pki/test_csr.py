"""PKCS#10 requests: what proves possession, and that nothing else is believed."""

import base64
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import CsrRefusedError, KeyRefusedError
from birthmark_sma.pki import csr
from birthmark_sma.pki.key_policy import MAX_PEM_CHARACTERS
from tests.support.chains import DEVICE_KEY_KINDS, DevicePrivateKey, device_key, sound_chain

SERIAL = "camera-7"


def request(
    key: DevicePrivateKey | ed448.Ed448PrivateKey, *common_names: str, organization: str = ""
) -> x509.CertificateSigningRequest:
    """Make a request that is signed by the key inside."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA256())


def pem_of(made: x509.CertificateSigningRequest) -> str:
    """Write a request as PEM."""
    return made.public_bytes(serialization.Encoding.PEM).decode()


def der_of(made: x509.CertificateSigningRequest) -> bytes:
    """Write a request as DER."""
    return made.public_bytes(serialization.Encoding.DER)


def armoured(der: bytes) -> str:
    """Wrap bytes as the PEM of a request, whatever they are."""
    label = "CERTIFICATE REQUEST"
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


def spki_of(key: DevicePrivateKey) -> bytes:
    """Write the public half of a key as DER."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


P256 = device_key("ec-p256")
SOUND = request(P256, SERIAL)


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
@pytest.mark.parametrize("common_names", [(), (SERIAL,)], ids=["no name", "its name"])
def test_possession_is_proven(kind: str, common_names: tuple[str, ...]) -> None:
    """Every accepted kind of key can prove itself, with or without a common name."""
    key = device_key(kind)
    assert csr.verify(pem_of(request(key, *common_names)), SERIAL) == key.public_key()


def test_nothing_but_the_key_is_taken() -> None:
    """A request for CA rights and another device's name in extensions yields a key, no more."""
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Another")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("example.org")]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    assert csr.verify(pem_of(asked), SERIAL) == asked.public_key()


def test_an_altered_signature_is_refused() -> None:
    """Threat 4: without the private key nobody makes the signature."""
    altered = bytearray(der_of(SOUND))
    altered[-1] ^= 1
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(armoured(bytes(altered)), SERIAL)


def test_a_swapped_key_is_refused() -> None:
    """Threat 4: another device's public key cannot be put into one's own request."""
    theirs = ec.generate_private_key(ec.SECP256R1())
    swapped = der_of(SOUND).replace(spki_of(P256), spki_of(theirs))
    assert swapped != der_of(SOUND)
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(armoured(swapped), SERIAL)


def test_a_swapped_name_is_refused() -> None:
    """Threat 4: a request that was seen elsewhere cannot be renamed."""
    renamed = der_of(SOUND).replace(b"camera-7", b"camera-8")
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(armoured(renamed), "camera-8")


@pytest.mark.parametrize(
    "common_names",
    [("camera-8",), ("Camera-7",), (" camera-7",), (SERIAL, "camera-8"), ("camera-8", SERIAL)],
)
def test_the_name_of_another_device_is_refused(common_names: tuple[str, ...]) -> None:
    """Threat 4: a request made for another serial is not taken for this one."""
    with pytest.raises(CsrRefusedError, match="common name is not the device_serial"):
        csr.verify(pem_of(request(P256, *common_names)), SERIAL)


def test_other_parts_of_the_subject_do_not_matter() -> None:
    """The authority chooses the subject; the request's organisation is not looked at."""
    asked = request(P256, SERIAL, organization="Somebody else")
    assert csr.verify(pem_of(asked), SERIAL) == P256.public_key()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (rsa.generate_private_key(65537, 1024), "1024 bits"),
        (rsa.generate_private_key(3, 2048), "e = 3"),
        (ec.generate_private_key(ec.SECP521R1()), "secp521r1"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
    ],
    ids=["RSA-1024", "e-3", "P-521", "secp256k1", "Ed448"],
)
def test_a_refused_key_is_refused_in_a_request(
    key: DevicePrivateKey | ed448.Ed448PrivateKey, reason: str
) -> None:
    """Threat 4: the policy holds for requests too, however well they are signed."""
    with pytest.raises(KeyRefusedError, match=reason):
        csr.verify(pem_of(request(key, SERIAL)), SERIAL)


def openssl_request(kind: str, *options: str) -> str:
    """Make a request with OpenSSL, which signs in ways that pyca refuses to."""
    with tempfile.TemporaryDirectory() as directory:
        key_file = Path(directory) / "device.pem"
        key_file.write_bytes(
            device_key(kind).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        made = subprocess.run(
            ["openssl", "req", "-new", "-key", str(key_file), "-subj", f"/CN={SERIAL}", *options],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    return made.stdout


PSS = ("-sigopt", "rsa_padding_mode:pss")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rsa-2048", ["-sha256"]),
        ("rsa-2048", ["-sha384"]),
        ("rsa-2048", ["-sha512"]),
        ("rsa-2048", ["-sha256", *PSS]),
        ("ec-p256", ["-sha256"]),
        ("ec-p384", ["-sha512"]),
        ("ed25519", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_requests_of_openssl_are_accepted(kind: str, options: list[str]) -> None:
    """What devices make with OpenSSL proves possession, RSA-PSS too."""
    asked = openssl_request(kind, *options)
    assert csr.verify(asked, SERIAL) == device_key(kind).public_key()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rsa-2048", ["-md5"]),
        ("rsa-2048", ["-sha1"]),
        ("rsa-2048", ["-ripemd160"]),
        ("rsa-2048", ["-sha1", *PSS]),
        ("ec-p256", ["-sha1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_broken_hash_proves_nothing(kind: str, options: list[str]) -> None:
    """Threat 4: with MD5 or SHA-1 one signature may serve for two requests."""
    with pytest.raises(CsrRefusedError):
        csr.verify(openssl_request(kind, *options), SERIAL)


GARBAGE = {
    "empty": "",
    "word": "garbage",
    "NUL": "\0",
    "surrogate": "\ud800",
    "surrogate behind": pem_of(SOUND) + "\udc00",
    "NUL inside": pem_of(SOUND)[:80] + "\0" + pem_of(SOUND)[80:],
    "cut": pem_of(SOUND)[:120],
    "no bytes": armoured(b""),
    "zeros": armoured(bytes(200)),
    "deep": armoured(b"\x30\x80" * 2_000),
    "cut DER": armoured(der_of(SOUND)[:-1]),
    "trailing DER": armoured(der_of(SOUND) + b"\0"),
    "a certificate": sound_chain().leaf.public_bytes(serialization.Encoding.PEM).decode(),
    "a certificate inside": armoured(sound_chain().leaf.public_bytes(serialization.Encoding.DER)),
    "a public key inside": armoured(spki_of(P256)),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(name: str) -> None:
    """Threat 21: whatever the text, it is refused as a request."""
    with pytest.raises(CsrRefusedError):
        csr.verify(GARBAGE[name], SERIAL)


@pytest.mark.parametrize("length", [MAX_PEM_CHARACTERS + 1, 10**7])
def test_a_huge_text_is_refused_before_it_is_read(length: int) -> None:
    """Threat 16: the length is looked at first, even where a sound request stands at the front."""
    with pytest.raises(CsrRefusedError, match="at most 8192 characters"):
        csr.verify(pem_of(SOUND).ljust(length, "\n"), SERIAL)


def tlv(tag: int, content: bytes) -> bytes:
    """Encode one element of DER of less than 256 bytes (X.690, section 8.1)."""
    length = bytes([len(content)]) if len(content) < 128 else bytes([0x81, len(content)])
    return bytes([tag]) + length + content


def request_with_common_name(tag: int, content: bytes) -> str:
    """Make a request whose common name is any 8 bytes of any type, correctly signed."""
    assert isinstance(P256, ec.EllipticCurvePrivateKey)
    ecdsa_with_sha256 = tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
    unsigned = SOUND.tbs_certrequest_bytes.replace(tlv(0x0C, SERIAL.encode()), tlv(tag, content))
    signature = P256.sign(unsigned, ec.ECDSA(hashes.SHA256()))
    return armoured(tlv(0x30, unsigned + ecdsa_with_sha256 + tlv(0x03, b"\0" + signature)))


def test_the_hand_made_request_is_sound_in_itself() -> None:
    """The requests of the next test are refused for their names alone."""
    asked = request_with_common_name(0x0C, SERIAL.encode())
    assert csr.verify(asked, SERIAL) == P256.public_key()


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        (0x0C, b"\xff" * 8),
        (0x0C, b"\xed\xa0\x80\xed\xb0\x80xx"),
        (0x13, b"\xff" * 8),
        (0x14, b"\xe9" * 8),
        (0x1E, b"\xd8\x00" * 4),
        (0x1C, b"\xff" * 8),
        (0x02, b"\x01" * 8),
        (0x03, b"\x00" * 8),
        (0x04, b"\xff" * 8),
        (0x05, b"\x00" * 8),
        (0x30, b"\x00" * 8),
    ],
    ids=[
        "UTF8String, no UTF-8",
        "UTF8String, surrogates",
        "PrintableString",
        "TeletexString",
        "BMPString",
        "UniversalString",
        "INTEGER",
        "BIT STRING",
        "OCTET STRING",
        "NULL",
        "SEQUENCE",
    ],
)
def test_a_name_that_cannot_be_read_is_refused(tag: int, content: bytes) -> None:
    """Threats 15 and 21: a well-signed request with a malformed name is refused as a request."""
    with pytest.raises(CsrRefusedError):
        csr.verify(request_with_common_name(tag, content), SERIAL)


REQUESTS = [
    (der_of(request(device_key(kind), SERIAL)), device_key(kind).public_key())
    for kind in ("ec-p256", "rsa-2048", "ed25519")
]


@given(
    st.sampled_from(range(len(REQUESTS))),
    st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_any_altered_request_is_refused_or_still_the_same(
    number: int, alterations: list[tuple[int, int]]
) -> None:
    """Any few bytes changed give one of the two errors, and never another key."""
    der, public_key = REQUESTS[number]
    altered = bytearray(der)
    for place, byte in alterations:
        altered[place % len(altered)] = byte
    with suppress(CsrRefusedError, KeyRefusedError):
        assert csr.verify(armoured(bytes(altered)), SERIAL) == public_key
