"""PKCS#10 requests: what proves possession, and that nothing else is believed."""

import base64
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import CsrRefusedError, KeyRefusedError
from birthmark_sma.pki import csr
from birthmark_sma.pki.keys.key_policy import MAX_PEM_CHARACTERS
from birthmark_sma.pki.parsing import elements
from tests.support.pki.chains import (
    DEVICE_KEY_KINDS,
    DevicePrivateKey,
    device_key,
    sound_chain,
)

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


def tlv(tag: int, content: bytes) -> bytes:
    """Encode one element of DER (X.690, section 8.1)."""
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def with_signature(unsigned: bytes, signature: bytes) -> str:
    """Put what is signed and its signature together, as ecdsa-with-SHA256."""
    ecdsa_with_sha256 = tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
    return armoured(tlv(0x30, unsigned + ecdsa_with_sha256 + tlv(0x03, b"\0" + signature)))


def signed(unsigned: bytes) -> str:
    """Sign any bytes as a request."""
    assert isinstance(P256, ec.EllipticCurvePrivateKey)
    return with_signature(unsigned, P256.sign(unsigned, ec.ECDSA(hashes.SHA256())))


def request_with_common_name(tag: int, content: bytes) -> str:
    """Make a request whose common name is any 8 bytes of any type, correctly signed."""
    return signed(
        SOUND.tbs_certrequest_bytes.replace(tlv(0x0C, SERIAL.encode()), tlv(tag, content))
    )


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
@pytest.mark.parametrize("common_names", [(), (SERIAL,)], ids=["no name", "its name"])
def test_possession_is_proven(kind: str, common_names: tuple[str, ...]) -> None:
    """Every accepted kind of key can prove itself, with or without a common name."""
    key = device_key(kind)
    assert csr.verify(csr.load(pem_of(request(key, *common_names))), SERIAL) == key.public_key()


def test_nothing_but_the_key_is_taken() -> None:
    """A request for CA rights yields a key, no more."""
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Another")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    assert csr.verify(csr.load(pem_of(asked)), SERIAL) == asked.public_key()


def test_an_altered_signature_is_refused() -> None:
    """Threat 4: without the private key nobody makes the signature."""
    altered = bytearray(der_of(SOUND))
    altered[-1] ^= 1
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(csr.load(armoured(bytes(altered))), SERIAL)


def test_a_swapped_key_is_refused() -> None:
    """Threat 4: another device's public key cannot be put into one's own request."""
    theirs = ec.generate_private_key(ec.SECP256R1())
    swapped = der_of(SOUND).replace(spki_of(P256), spki_of(theirs))
    assert swapped != der_of(SOUND)
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(csr.load(armoured(swapped)), SERIAL)


def test_a_swapped_name_is_refused() -> None:
    """Threat 4: a request that was seen elsewhere cannot be renamed."""
    renamed = der_of(SOUND).replace(b"camera-7", b"camera-8")
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(csr.load(armoured(renamed)), "camera-8")


@pytest.mark.parametrize(
    "common_names", [("camera-8",), ("camera7",), (SERIAL, "camera-8"), ("camera-8", SERIAL)]
)
def test_the_name_of_another_device_is_refused(common_names: tuple[str, ...]) -> None:
    """Threats 4 and 41: a request made for another serial is not taken for this one."""
    with pytest.raises(CsrRefusedError, match="common name is not the device_serial"):
        csr.verify(csr.load(pem_of(request(P256, *common_names))), SERIAL)


@pytest.mark.parametrize("common_name", ["Camera-7", "CAMERA-7", " camera-7 ", "camera\uff0d7"])
def test_another_spelling_of_the_name_is_accepted(common_name: str) -> None:
    """Threat 40: it is the same name under folding, and the certificate bears the serial."""
    assert csr.verify(csr.load(pem_of(request(P256, common_name))), SERIAL) == P256.public_key()


def test_a_decomposed_name_is_the_composed_serial() -> None:
    """An input that got a wrong answer: macOS decomposes what is typed."""
    pem = (Path(__file__).parent / "csr_cn_decomposed.pem").read_text()
    csr.verify(csr.load(pem), "\u00e9-cam")


def asking(
    *alternatives: x509.GeneralName, subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ()
) -> str:
    """Make a request with a subject and alternative names."""
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return pem_of(builder.sign(P256, hashes.SHA256()))


def directory_name(oid: x509.ObjectIdentifier, value: str) -> x509.DirectoryName:
    """A directoryName of one attribute."""
    return x509.DirectoryName(x509.Name([x509.NameAttribute(oid, value)]))


OTHERS = {
    "serialNumber": asking(subject=[(NameOID.SERIAL_NUMBER, "camera-8")]),
    "serialNumber beside the right name": asking(
        subject=[(NameOID.COMMON_NAME, SERIAL), (NameOID.SERIAL_NUMBER, "camera-8")]
    ),
    "dNSName": asking(x509.DNSName("camera-8.example.org")),
    "URN": asking(x509.UniformResourceIdentifier("urn:birthmark:device:camera-8")),
    "URN in another spelling": asking(
        x509.UniformResourceIdentifier("urn:birthmark:device:camera%2D7")
    ),
    "URN beside the right one": asking(
        x509.UniformResourceIdentifier(f"urn:birthmark:device:{SERIAL}"),
        x509.UniformResourceIdentifier("urn:birthmark:device:camera-8"),
    ),
    "URI": asking(x509.UniformResourceIdentifier("https://example.org/camera-8")),
    "directoryName, common name": asking(directory_name(NameOID.COMMON_NAME, "camera-8")),
    "directoryName, serialNumber": asking(directory_name(NameOID.SERIAL_NUMBER, "camera-8")),
    "e-mail": asking(x509.RFC822Name("camera-8@example.org")),
    "IP address": asking(x509.IPAddress(ip_address("192.0.2.8"))),
    "registered id": asking(x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))),
    "other name": asking(x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x01x")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_device_is_named_nowhere(name: str) -> None:
    """Threat 41: neither in serialNumber nor in any alternative name."""
    with pytest.raises(CsrRefusedError, match=r"serialNumber|subjectAltName"):
        csr.verify(csr.load(OTHERS[name]), SERIAL)


@pytest.mark.parametrize(
    "asked",
    [
        asking(subject=[(NameOID.SERIAL_NUMBER, "CAMERA-7")]),
        asking(x509.DNSName("Camera-7")),
        asking(x509.UniformResourceIdentifier(f"urn:birthmark:device:{SERIAL}")),
        asking(directory_name(NameOID.COMMON_NAME, SERIAL)),
        asking(x509.UniformResourceIdentifier(f"urn:birthmark:recipient-key:sha-256:{'0' * 64}")),
    ],
    ids=["serialNumber", "dNSName", "URN", "directoryName", "recipient key"],
)
def test_its_own_names_are_accepted(asked: str) -> None:
    """A request may name the device itself, and its recipient key."""
    csr.verify(csr.load(asked), SERIAL)


def test_a_second_list_of_extensions_is_refused() -> None:
    """Threat 41: the library reads the first one alone; another reader may read the other."""
    der = der_of(x509.load_pem_x509_csr(OTHERS["dNSName"].encode()))
    unsigned = elements(elements(der)[0].content)[0]
    version, subject, key, attributes = elements(unsigned.content)
    doubled = tlv(0xA0, attributes.content * 2)
    parts = version.whole + subject.whole + key.whole + doubled
    with pytest.raises(CsrRefusedError, match="two lists of requested extensions"):
        csr.verify(csr.load(signed(tlv(0x30, parts))), SERIAL)


def test_two_requests_in_one_field_are_refused() -> None:
    """Threat 41: the first was taken silently."""
    pem = (Path(__file__).parent / "keys" / "refused_keys" / "csr_two_in_one_field.pem").read_text()
    with pytest.raises(CsrRefusedError, match="more than one PEM block"):
        csr.verify(csr.load(pem), "csr-7")


def test_a_misread_key_is_refused_in_a_request() -> None:
    """Threat 39: a PSS key signs its request, and could never sign a bundle."""
    with tempfile.TemporaryDirectory() as directory:
        key_file = Path(directory) / "device.pem"
        made = ["openssl", "genpkey", "-algorithm", "RSA-PSS", "-out", str(key_file)]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        asked = subprocess.run(
            ["openssl", "req", "-new", "-key", str(key_file), "-subj", f"/CN={SERIAL}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    with pytest.raises(KeyRefusedError, match="RSASSA-PSS"):
        csr.verify(csr.load(asked.stdout), SERIAL)


def test_a_signature_of_webcrypto_is_named() -> None:
    """IEEE P1363 puts r and s side by side; X.509 wants a SEQUENCE."""
    assert isinstance(P256, ec.EllipticCurvePrivateKey)
    unsigned = SOUND.tbs_certrequest_bytes
    r, s = decode_dss_signature(P256.sign(unsigned, ec.ECDSA(hashes.SHA256())))
    bare = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    with pytest.raises(CsrRefusedError, match="P1363"):
        csr.verify(csr.load(with_signature(unsigned, bare)), SERIAL)
    with pytest.raises(CsrRefusedError, match="does not verify under its own key"):
        csr.verify(csr.load(with_signature(unsigned, bare[::-1])), SERIAL)


def test_a_version_that_there_is_not_is_named() -> None:
    """PKCS#10 numbers its only version 0; some write 1."""
    unsigned = SOUND.tbs_certrequest_bytes.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)
    with pytest.raises(CsrRefusedError, match=r"version number 1\. PKCS#10 has version 1 only"):
        csr.verify(csr.load(signed(unsigned)), SERIAL)


def test_a_teletex_string_is_named() -> None:
    """Old tools write them; its letters beyond ASCII cannot be read."""
    with pytest.raises(CsrRefusedError, match=r"TeletexString.*use UTF8String"):
        csr.verify(csr.load(request_with_common_name(0x14, b"\xe9" * 8)), SERIAL)


def test_other_parts_of_the_subject_do_not_matter() -> None:
    """The authority chooses the subject; the request's organisation is not looked at."""
    asked = request(P256, SERIAL, organization="Somebody else")
    assert csr.verify(csr.load(pem_of(asked)), SERIAL) == P256.public_key()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "1024 bits"),
        (lambda: rsa.generate_private_key(3, 2048), "e = 3"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "secp521r1"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (ed448.Ed448PrivateKey.generate, "Ed448"),
    ],
    ids=["RSA-1024", "e-3", "P-521", "secp256k1", "Ed448"],
)
def test_a_refused_key_is_refused_in_a_request(
    make: Callable[[], DevicePrivateKey | ed448.Ed448PrivateKey], reason: str
) -> None:
    """Threat 4: the policy holds for requests too, however well they are signed."""
    asked = request(make(), SERIAL)
    with pytest.raises(KeyRefusedError, match=reason):
        csr.verify(csr.load(pem_of(asked)), SERIAL)


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
    assert csr.verify(csr.load(asked), SERIAL) == device_key(kind).public_key()


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
        csr.verify(csr.load(openssl_request(kind, *options)), SERIAL)


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
        csr.verify(csr.load(GARBAGE[name]), SERIAL)


@pytest.mark.parametrize("length", [MAX_PEM_CHARACTERS + 1, 10**7])
def test_a_huge_text_is_refused_before_it_is_read(length: int) -> None:
    """Threat 16: the length is looked at first, even where a sound request stands at the front."""
    with pytest.raises(CsrRefusedError, match="at most 8192 characters"):
        csr.verify(csr.load(pem_of(SOUND).ljust(length, "\n")), SERIAL)


def test_the_hand_made_request_is_sound_in_itself() -> None:
    """The requests of the next test are refused for their names alone."""
    asked = request_with_common_name(0x0C, SERIAL.encode())
    assert csr.verify(csr.load(asked), SERIAL) == P256.public_key()


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
        csr.verify(csr.load(request_with_common_name(tag, content)), SERIAL)


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
        assert csr.verify(csr.load(armoured(bytes(altered))), SERIAL) == public_key
