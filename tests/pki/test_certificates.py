"""What is issued follows the profile to the bit, and what departs from it is never signed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    ExtensionOID,
    NameOID,
    SignatureAlgorithmOID,
)
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark_sma.errors import (
    DeviceSerialRefusedError,
    IssuerExpiredError,
    ProfileViolationError,
)
from birthmark_sma.pki import certificates, names, profiles
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from birthmark_sma.pki.profile_check import Prepared
from tests.support.pki.certificate_verifiers import lint_certificate, openssl_text
from tests.support.pki.chains import (
    DEVICE_KEY_KINDS,
    DEVICE_SERIALS,
    NOW,
    PUBLICATIONS,
    Ca,
    ca,
    certificate_serial,
    device_key,
    issue_device,
    key_usage,
    make_ca,
)

SKI = ExtensionOID.SUBJECT_KEY_IDENTIFIER
AKI = ExtensionOID.AUTHORITY_KEY_IDENTIFIER
BASIC_CONSTRAINTS = ExtensionOID.BASIC_CONSTRAINTS
KEY_USAGE = ExtensionOID.KEY_USAGE
EKU = ExtensionOID.EXTENDED_KEY_USAGE
SAN = ExtensionOID.SUBJECT_ALTERNATIVE_NAME
CRL_DP = ExtensionOID.CRL_DISTRIBUTION_POINTS
AIA = ExtensionOID.AUTHORITY_INFORMATION_ACCESS

P256 = device_key("ec-p256").public_key()


def criticality(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, bool]:
    """Return which extensions a certificate has, and whether each is critical."""
    return {extension.oid: extension.critical for extension in certificate.extensions}


def value_of(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> Any:
    """Return the value of one extension."""
    return certificate.extensions.get_extension_for_oid(oid).value


def lifetime(certificate: x509.Certificate) -> timedelta:
    """Return how long a certificate is valid."""
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


# --- the profiles


@pytest.mark.parametrize("key_type", CaKeyType)
def test_the_root(key_type: CaKeyType) -> None:
    """The contract's column "root"."""
    root = ca(key_type).root
    assert root.version is x509.Version.v3
    assert root.subject == root.issuer == names.distinguished_name("Simulated Mfg Root CA")
    assert lifetime(root) == timedelta(days=3_650)
    assert criticality(root) == {BASIC_CONSTRAINTS: True, KEY_USAGE: True, SKI: False}
    assert value_of(root, BASIC_CONSTRAINTS) == x509.BasicConstraints(ca=True, path_length=None)
    assert value_of(root, KEY_USAGE) == key_usage(ca=True)
    assert value_of(root, SKI) == x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    root.verify_directly_issued_by(root)


@pytest.mark.parametrize("key_type", CaKeyType)
def test_the_intermediate(key_type: CaKeyType) -> None:
    """Threat 1: the contract's column "intermediate": version 3, CA:TRUE, path length 0."""
    authority = ca(key_type)
    intermediate = authority.intermediate
    assert intermediate.version is x509.Version.v3
    assert intermediate.subject == names.distinguished_name("Simulated Mfg Intermediate CA")
    assert intermediate.issuer == authority.root.subject
    assert lifetime(intermediate) == timedelta(days=1_825)
    assert criticality(intermediate) == {
        BASIC_CONSTRAINTS: True,
        KEY_USAGE: True,
        SKI: False,
        AKI: False,
    }
    assert value_of(intermediate, BASIC_CONSTRAINTS) == x509.BasicConstraints(True, 0)
    assert value_of(intermediate, KEY_USAGE) == key_usage(ca=True)
    assert value_of(intermediate, AKI).key_identifier == value_of(authority.root, SKI).digest
    intermediate.verify_directly_issued_by(authority.root)


def cross_of(now: datetime, serial_number: int = 1 << 100) -> Prepared:
    """Prepare a certificate of another root under that of these tests."""
    other = Signer(ec.generate_private_key(ec.SECP256R1()))
    profile = profiles.numbered(profiles.ROOT, 2)
    root = certificates.sign(
        certificates.prepare_root(
            other.public_key, now=now, serial_number=1 << 90, profile=profile
        ),
        other,
    )
    return certificates.prepare_cross(root, issuer=ca().root, now=now, serial_number=serial_number)


def test_a_cross_certificate() -> None:
    """The name and key of one root under another, until the first of both ends."""
    authority = ca()
    cross = certificates.sign(cross_of(NOW), authority.root_signer, issuer=authority.root)
    assert cross.subject == names.distinguished_name("Simulated Mfg Root CA 2")
    assert cross.issuer == authority.root.subject
    assert cross.not_valid_after_utc == authority.root.not_valid_after_utc
    assert value_of(cross, BASIC_CONSTRAINTS) == x509.BasicConstraints(True, None)
    assert value_of(cross, KEY_USAGE) == key_usage(ca=True)
    assert value_of(cross, AKI).key_identifier == value_of(authority.root, SKI).digest
    assert lint_certificate(cross) == []


def test_a_cross_certificate_is_checked() -> None:
    """Before it is signed, as every other: its name, its end, and that it does not sign itself."""
    authority = ca()
    prepared = cross_of(NOW)
    for wrong in (
        replace(prepared, subject=authority.root.subject),
        replace(prepared, not_after=authority.root.not_valid_after_utc + timedelta(seconds=1)),
        replace(prepared, extensions=prepared.extensions[:-1]),
    ):
        with pytest.raises(ProfileViolationError):
            certificates.sign(wrong, authority.root_signer, issuer=authority.root)
    with pytest.raises(ProfileViolationError):
        certificates.sign(prepared, authority.root_signer)


@pytest.mark.parametrize("published", PUBLICATIONS)
@pytest.mark.parametrize("label", DEVICE_SERIALS)
@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
def test_the_device(kind: str, label: str, published: str) -> None:
    """Threat 2: the contract's column "device": every extension, its value and criticality."""
    authority = ca()
    device_serial = DEVICE_SERIALS[label]
    public_key = device_key(kind).public_key()
    publication = PUBLICATIONS[published]
    device = issue_device(authority, public_key, device_serial, publication=publication)
    assert device.version is x509.Version.v3
    assert device.public_key() == public_key
    assert device.subject == names.distinguished_name(device_serial)
    assert device.issuer == authority.intermediate.subject
    assert lifetime(device) == timedelta(days=730)
    expected = {BASIC_CONSTRAINTS: True, KEY_USAGE: True}
    expected |= dict.fromkeys([SKI, AKI, EKU, SAN], False)
    if publication is not None:
        expected |= {CRL_DP: False, AIA: False}
    assert criticality(device) == expected
    assert value_of(device, BASIC_CONSTRAINTS) == x509.BasicConstraints(False, None)
    assert value_of(device, KEY_USAGE) == key_usage(ca=False)
    assert list(value_of(device, EKU)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert value_of(device, SKI) == x509.SubjectKeyIdentifier.from_public_key(public_key)
    assert value_of(device, AKI).key_identifier == value_of(authority.intermediate, SKI).digest
    device.verify_directly_issued_by(authority.intermediate)


@pytest.mark.parametrize(
    ("device_serial", "alternative_names"),
    [
        (
            "camera-7.example.org",
            [
                x509.UniformResourceIdentifier("urn:birthmark:device:camera-7.example.org"),
                x509.DNSName("camera-7.example.org"),
            ],
        ),
        ("a camera", [x509.UniformResourceIdentifier("urn:birthmark:device:a%20camera")]),
        ("100%", [x509.UniformResourceIdentifier("urn:birthmark:device:100%25")]),
        ("Zoë", [x509.UniformResourceIdentifier("urn:birthmark:device:Zo%C3%AB")]),
        ("10.0.0.1", [x509.UniformResourceIdentifier("urn:birthmark:device:10.0.0.1")]),
        ("a_b.example", [x509.UniformResourceIdentifier("urn:birthmark:device:a_b.example")]),
    ],
)
def test_alternative_names(device_serial: str, alternative_names: list[x509.GeneralName]) -> None:
    """Threat 2: the URN always, and a dNSName only where the serial is a host name."""
    device = issue_device(ca(), P256, device_serial)
    assert list(value_of(device, SAN)) == alternative_names


@pytest.mark.parametrize(
    "device_serial", ["RaspberryPi-Prototype-001", "camera", "camera.lab1", "a.b", "7"]
)
def test_no_serial_makes_a_malformed_host_name(device_serial: str) -> None:
    """Threat 2: pkilint finds no error, also where a serial only looks like a host name."""
    assert lint_certificate(issue_device(ca(), P256, device_serial)) == []


def test_publication() -> None:
    """Verifiers find CRL, OCSP and the issuer's certificate where a public URL is configured."""
    publication = PUBLICATIONS["published"]
    assert publication is not None
    device = issue_device(ca(), P256, "a camera", publication=publication)
    (point,) = value_of(device, CRL_DP)
    assert point.full_name == [x509.UniformResourceIdentifier(publication.crl_url)]
    assert point.reasons is point.crl_issuer is point.relative_name is None
    assert {each.access_method: each.access_location.value for each in value_of(device, AIA)} == {
        AuthorityInformationAccessOID.OCSP: publication.ocsp_url,
        AuthorityInformationAccessOID.CA_ISSUERS: publication.issuer_url,
    }


@pytest.mark.parametrize(
    ("key_type", "algorithm"),
    [
        (CaKeyType.RSA_4096, SignatureAlgorithmOID.RSA_WITH_SHA256),
        (CaKeyType.EC_P384, SignatureAlgorithmOID.ECDSA_WITH_SHA384),
        (CaKeyType.EC_P256, SignatureAlgorithmOID.ECDSA_WITH_SHA256),
    ],
)
def test_signature_algorithms(key_type: CaKeyType, algorithm: x509.ObjectIdentifier) -> None:
    """SHA-256, or SHA-384 with P-384, on all three certificates of a chain."""
    authority = ca(key_type)
    device = issue_device(authority, P256, "a camera")
    for certificate in (authority.root, authority.intermediate, device):
        assert certificate.signature_algorithm_oid == algorithm
    if key_type is CaKeyType.RSA_4096:
        assert isinstance(device.signature_algorithm_parameters, padding.PKCS1v15)
        assert isinstance(authority.root.public_key(), rsa.RSAPublicKey)


# --- time


@pytest.mark.parametrize("which", ["root", "intermediate", "device"])
def test_backdated_by_up_to_an_hour(which: str) -> None:
    """Threat 3: a device whose clock is slow by most of an hour can use its certificate at once."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW, root_now=NOW - timedelta(days=2))
    now = {"root": NOW - timedelta(days=2), "intermediate": NOW, "device": NOW}[which]
    certificate = {
        "root": authority.root,
        "intermediate": authority.intermediate,
        "device": issue_device(authority, P256, "a camera"),
    }[which]
    backdated = now - certificate.not_valid_before_utc
    assert timedelta(minutes=55) < backdated <= timedelta(hours=1, seconds=1)


def test_nothing_begins_before_its_issuer() -> None:
    """Threat 3: a device provisioned minutes after the ceremony is not backdated beyond it."""
    root_now = NOW - timedelta(minutes=20)
    authority = make_ca(CaKeyType.EC_P256, now=NOW - timedelta(minutes=10), root_now=root_now)
    device = issue_device(authority, P256, "a camera")
    begins = [
        certificate.not_valid_before_utc
        for certificate in (authority.root, authority.intermediate, device)
    ]
    assert begins == sorted(begins)


@pytest.mark.parametrize("days_left", [1, 100, 729])
def test_nothing_outlives_its_issuer(days_left: int) -> None:
    """Threat 3: a device of the intermediate's last days ends with the intermediate."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW - timedelta(days=1_825 - days_left))
    device = issue_device(authority, P256, "a camera")
    assert device.not_valid_after_utc == authority.intermediate.not_valid_after_utc


def test_an_intermediate_does_not_outlive_the_root() -> None:
    """Threat 3: an intermediate of the root's last years ends with the root."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW, root_now=NOW - timedelta(days=3_000))
    assert authority.intermediate.not_valid_after_utc == authority.root.not_valid_after_utc


@pytest.mark.parametrize(
    "now",
    [
        lambda issuer: issuer.not_valid_after_utc,
        lambda issuer: issuer.not_valid_after_utc + timedelta(days=1),
        lambda issuer: issuer.not_valid_before_utc - timedelta(seconds=1),
    ],
    ids=["at the end", "after the end", "before the beginning"],
)
def test_an_issuer_that_is_not_valid_issues_nothing(
    now: Callable[[x509.Certificate], datetime],
) -> None:
    """Threat 3: the error asks about clock and expiry."""
    authority = ca()
    with pytest.raises(IssuerExpiredError, match="Check the clock"):
        issue_device(authority, P256, "a camera", now=now(authority.intermediate))
    with pytest.raises(IssuerExpiredError, match="Check the clock"):
        certificates.prepare_intermediate(
            authority.signer.public_key,
            issuer=authority.root,
            now=now(authority.root),
            serial_number=certificate_serial("late"),
        )


def test_times_after_2050_are_encoded_as_they_must_be() -> None:
    """A root made in 2045 ends as GeneralizedTime, and pkilint finds nothing to complain of."""
    authority = make_ca(CaKeyType.EC_P256, now=datetime(2045, 6, 1, tzinfo=UTC))
    assert authority.root.not_valid_after_utc.year == 2055
    assert lint_certificate(authority.root) == []
    assert lint_certificate(authority.intermediate) == []


# --- the serial of the device


serials = st.text(
    st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=64
)


def is_serial(text: str) -> bool:
    """Say whether a device may have this serial."""
    try:
        names.check_device_serial(text)
    except DeviceSerialRefusedError:
        return False
    return True


awkward_serials = st.text("aZ0 .-_~%/:@#?&=+\"'\\,;<>éß東📷", min_size=1, max_size=64)


@given(st.one_of(serials, awkward_serials).filter(is_serial))
@example("a  camera")
@example("%41%")
@example('CN=camera,O=\\"x"')
@example("#0c0161")
@example("a" * 64)
def test_any_serial_can_be_issued_and_read_back(device_serial: str) -> None:
    """Threat 2: a printable serial of any script survives the certificate, and lints clean."""
    issued = issue_device(ca(), P256, device_serial)
    read = x509.load_der_x509_certificate(issued.public_bytes(serialization.Encoding.DER))
    assert names.device_serial_of(read) == device_serial
    (common_name,) = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == device_serial
    assert f"URI:{names.device_urn(device_serial)}" in openssl_text(read)
    assert lint_certificate(read) == []


@pytest.mark.parametrize("device_serial", ["", "a" * 65, "a\nb", "a\0b", "\ud800", "é" * 65])
def test_a_refused_serial_is_not_prepared(device_serial: str) -> None:
    """Threat 21: what is no serial becomes no name."""
    with pytest.raises(DeviceSerialRefusedError):
        issue_device(ca(), P256, device_serial)


# --- nothing that departs from its profile is signed

Alteration = Callable[[Prepared], Prepared]


def without(oid: x509.ObjectIdentifier) -> Alteration:
    """Leave an extension out."""
    return lambda prepared: replace(
        prepared, extensions=tuple(e for e in prepared.extensions if e.oid != oid)
    )


def with_also(extension: x509.ExtensionType) -> Alteration:
    """Add an extension."""
    return lambda prepared: replace(prepared, extensions=(*prepared.extensions, extension))


def with_other(extension: x509.ExtensionType) -> Alteration:
    """Put an extension in place of that of the same kind."""
    return lambda prepared: with_also(extension)(without(extension.oid)(prepared))


def fields(**changes: Any) -> Alteration:
    """Change fields."""
    return lambda prepared: replace(prepared, **changes)


def serial_number_of(bits: int) -> Alteration:
    """Set a serial number of so many bits."""
    return fields(serial_number=1 << bits - 1)


def longer(prepared: Prepared) -> Prepared:
    """Let the certificate live one second longer."""
    return replace(prepared, not_after=prepared.not_after + timedelta(seconds=1))


def ended_at_once(prepared: Prepared) -> Prepared:
    """Let the certificate end when it begins."""
    return replace(prepared, not_after=prepared.not_before)


ANOTHER_KEY = device_key("ec-p384").public_key()
SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
BOTH_AUTHS = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
)
ANOTHER_SKI = x509.SubjectKeyIdentifier.from_public_key(ANOTHER_KEY)
ANOTHER_AKI = x509.AuthorityKeyIdentifier.from_issuer_public_key(ANOTHER_KEY)
URN = x509.UniformResourceIdentifier("urn:birthmark:device:a%20camera")

OF_EVERY_KIND: dict[str, Alteration] = {
    "no SKI": without(SKI),
    "no basic constraints": without(BASIC_CONSTRAINTS),
    "no key usage": without(KEY_USAGE),
    "path length 1": with_other(x509.BasicConstraints(ca=True, path_length=1)),
    "SKI of another key": with_other(ANOTHER_SKI),
    "an extension twice": with_also(x509.SubjectKeyIdentifier(bytes(20))),
    "OCSP no check": with_also(x509.OCSPNoCheck()),
    "name constraints": with_also(x509.NameConstraints([x509.DNSName("example.org")], None)),
    "an unknown extension": with_also(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    ),
    "one second too long": longer,
    "ended at once": ended_at_once,
    "serial number 0": fields(serial_number=0),
    "serial number of 63 bits": serial_number_of(63),
    "serial number of 160 bits": serial_number_of(160),
    "negative serial number": fields(serial_number=-certificate_serial("negative")),
}
OF_THE_ROOT = OF_EVERY_KIND | {
    "issuer of another name": fields(issuer=names.distinguished_name("Another")),
    "not a CA": with_other(x509.BasicConstraints(ca=False, path_length=None)),
    "key usage of a device": with_other(key_usage(ca=False)),
}
OF_THE_INTERMEDIATE = OF_EVERY_KIND | {
    "no AKI": without(AKI),
    "AKI of another key": with_other(ANOTHER_AKI),
    "issuer of another name": fields(issuer=names.distinguished_name("Another")),
    "no path length": with_other(x509.BasicConstraints(ca=True, path_length=None)),
    "not a CA": with_other(x509.BasicConstraints(ca=False, path_length=None)),
    "key usage of a device": with_other(key_usage(ca=False)),
    "for clients": with_also(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
    "begins before its issuer": fields(not_before=ca().root.not_valid_before_utc - timedelta(1)),
}
OF_A_DEVICE = OF_EVERY_KIND | {
    "no AKI": without(AKI),
    "AKI of another key": with_other(ANOTHER_AKI),
    "issuer of another name": fields(issuer=ca().root.subject),
    "no EKU": without(EKU),
    "for servers": with_other(SERVER_AUTH),
    "for clients and servers": with_other(BOTH_AUTHS),
    "no alternative name": without(SAN),
    "no URN": with_other(x509.SubjectAlternativeName([x509.DNSName("camera.example.org")])),
    "URN of another device": with_other(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(names.device_urn("b"))])
    ),
    "dNSName of no host": with_other(x509.SubjectAlternativeName([URN, x509.DNSName("a camera")])),
    "subject of another device": fields(subject=names.distinguished_name("b")),
    "subject of the intermediate": fields(subject=ca().intermediate.subject),
    "a CA": with_other(x509.BasicConstraints(ca=True, path_length=None)),
    "key usage of a CA": with_other(key_usage(ca=True)),
    "outlives its issuer": fields(
        not_before=ca().intermediate.not_valid_after_utc - timedelta(days=1),
        not_after=ca().intermediate.not_valid_after_utc + timedelta(seconds=1),
    ),
    "begins before its issuer": fields(
        not_before=ca().intermediate.not_valid_before_utc - timedelta(seconds=1),
        not_after=ca().intermediate.not_valid_before_utc + timedelta(days=1),
    ),
}


def prepared_root() -> Prepared:
    """Prepare a root."""
    return certificates.prepare_root(
        ca().root_signer.public_key, now=NOW, serial_number=certificate_serial("root")
    )


def prepared_intermediate(issuer: x509.Certificate | None = None) -> Prepared:
    """Prepare an intermediate."""
    return certificates.prepare_intermediate(
        ca().signer.public_key,
        issuer=issuer or ca().root,
        now=NOW,
        serial_number=certificate_serial("intermediate"),
    )


def prepared_device(issuer: x509.Certificate | None = None) -> Prepared:
    """Prepare a device certificate."""
    return certificates.prepare_device(
        P256,
        "a camera",
        issuer=issuer or ca().intermediate,
        now=NOW,
        serial_number=certificate_serial("device"),
    )


@pytest.fixture
def nothing_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a certificate reaches the signature."""

    def sign(*_: object) -> None:
        raise AssertionError("a certificate that departs from its profile was about to be signed")

    monkeypatch.setattr(x509.CertificateBuilder, "sign", sign)


@pytest.mark.parametrize("alteration", OF_THE_ROOT)
def test_an_altered_root_is_not_signed(alteration: str, nothing_is_signed: None) -> None:
    """Whatever departs from the root's profile is refused before the signature."""
    with pytest.raises(ProfileViolationError):
        certificates.sign(OF_THE_ROOT[alteration](prepared_root()), ca().root_signer)


@pytest.mark.parametrize("alteration", OF_THE_INTERMEDIATE)
def test_an_altered_intermediate_is_not_signed(alteration: str, nothing_is_signed: None) -> None:
    """Threat 1: whatever departs from the intermediate's profile is refused."""
    altered = OF_THE_INTERMEDIATE[alteration](prepared_intermediate())
    with pytest.raises(ProfileViolationError):
        certificates.sign(altered, ca().root_signer, issuer=ca().root)


@pytest.mark.parametrize("alteration", OF_A_DEVICE)
def test_an_altered_device_is_not_signed(alteration: str, nothing_is_signed: None) -> None:
    """Threats 2 and 3: whatever departs from the device's profile is refused."""
    altered = OF_A_DEVICE[alteration](prepared_device())
    with pytest.raises(ProfileViolationError):
        certificates.sign(altered, ca().signer, issuer=ca().intermediate)


@pytest.mark.parametrize("bits", [64, 65, 128, 159])
def test_serial_numbers_of_64_to_159_bits_are_signed(bits: int) -> None:
    """Both ends of the range belong to it, and the number comes out as it went in."""
    prepared = serial_number_of(bits)(prepared_device())
    signed = certificates.sign(prepared, ca().signer, issuer=ca().intermediate)
    assert signed.serial_number.bit_length() == bits


def test_a_signing_key_that_is_not_the_issuers_is_refused(nothing_is_signed: None) -> None:
    """A certificate that would not verify is not made."""
    with pytest.raises(ProfileViolationError, match="signing key"):
        certificates.sign(prepared_device(), ca().root_signer, issuer=ca().intermediate)
    with pytest.raises(ProfileViolationError, match="signing key"):
        certificates.sign(prepared_intermediate(), ca().signer, issuer=ca().root)
    with pytest.raises(ProfileViolationError, match="signing key"):
        certificates.sign(prepared_root(), ca().signer)


@pytest.fixture
def other_ca() -> Ca:
    """A CA of the same names, with its own keys."""
    return ca(CaKeyType.EC_P384)


def test_an_issuer_that_is_not_the_prepared_one_is_refused(
    other_ca: Ca, nothing_is_signed: None
) -> None:
    """What was prepared for one issuer is not signed by another, though it has the same name."""
    other = other_ca
    with pytest.raises(ProfileViolationError, match=r"2\.5\.29\.35"):
        certificates.sign(prepared_device(), other.signer, issuer=other.intermediate)


def test_a_device_issues_nothing() -> None:
    """A certificate that is no CA's is no issuer, whatever its key."""
    issuing = Signer(ec.generate_private_key(ec.SECP256R1()))
    device = issue_device(ca(), issuing.public_key, "an issuing camera")
    with pytest.raises(ProfileViolationError):
        certificates.sign(prepared_device(device), issuing, issuer=device)


def test_no_ca_below_the_path_length(nothing_is_signed: None) -> None:
    """An intermediate of path length 0 certifies devices, and no further intermediate."""
    with pytest.raises(ProfileViolationError):
        certificates.sign(
            prepared_intermediate(ca().intermediate), ca().signer, issuer=ca().intermediate
        )


def test_a_weak_key_is_not_signed(nothing_is_signed: None) -> None:
    """Threat 4: a key that the policy refuses is refused once more before the signature."""
    weak = rsa.generate_private_key(65537, 1024).public_key()
    altered = replace(
        with_other(x509.SubjectKeyIdentifier.from_public_key(weak))(prepared_device()),
        public_key=weak,
    )
    with pytest.raises(ProfileViolationError):
        certificates.sign(altered, ca().signer, issuer=ca().intermediate)
