"""Check a prepared certificate against its profile, just before it is signed.

`certificates.sign` calls `check`, which returns nothing, or raises ProfileViolationError with the
first violated rule. It must never rely on the code that prepared the certificate: it checks every
field again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import DeviceSerialRefusedError, KeyRefusedError, ProfileViolationError
from birthmark_sma.pki import names, profiles
from birthmark_sma.pki.keys.key_policy import check_key
from birthmark_sma.pki.profiles import Profile


@dataclass(frozen=True, slots=True)
class Prepared:
    """A certificate with every field decided, not yet signed."""

    profile: Profile
    subject: x509.Name
    issuer: x509.Name
    public_key: CertificatePublicKeyTypes
    serial_number: int
    not_before: datetime
    not_after: datetime
    extensions: tuple[x509.ExtensionType, ...]


def check(prepared: Prepared, issuer: x509.Certificate | None) -> None:
    """Raise ProfileViolationError if a prepared certificate departs from its profile.

    `issuer` is None for the self-signed root.
    """
    _check_serial_number(prepared)
    _check_validity(prepared)
    _check_key(prepared)
    _check_extensions(prepared)
    _check_names(prepared)
    if issuer is None:
        _check_self_issued(prepared)
    else:
        _check_issuer(prepared, issuer)


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the extension that identifies the issuer's key (RFC 5280, section 4.2.1.1)."""
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )


def _check_serial_number(prepared: Prepared) -> None:
    number = prepared.serial_number
    bits = number.bit_length()
    if (
        number <= 0
        or not profiles.MIN_SERIAL_NUMBER_BITS <= bits <= profiles.MAX_SERIAL_NUMBER_BITS
    ):
        raise ProfileViolationError("A serial number must be positive and have 64 to 159 bits.")


def _check_validity(prepared: Prepared) -> None:
    if prepared.not_after - prepared.not_before > prepared.profile.validity:
        raise ProfileViolationError(
            f"The {prepared.profile.name} certificate would be valid longer than its profile"
            " allows."
        )
    if prepared.not_after <= prepared.not_before:
        raise ProfileViolationError("The certificate would end before it begins.")


def _check_key(prepared: Prepared) -> None:
    try:
        check_key(prepared.public_key)
    except KeyRefusedError as error:
        raise ProfileViolationError(str(error)) from None


def _check_extensions(prepared: Prepared) -> None:
    profile = prepared.profile
    present = [extension.oid for extension in prepared.extensions]
    if len(set(present)) != len(present):
        raise ProfileViolationError("The certificate has an extension twice.")
    if missing := profile.required - set(present):
        raise ProfileViolationError(f"A {profile.name} certificate lacks {_dotted(missing)}.")
    if surplus := set(present) - profile.required - profile.allowed:
        raise ProfileViolationError(
            f"A {profile.name} certificate must not have {_dotted(surplus)}."
        )
    expected: list[x509.ExtensionType] = [
        profile.basic_constraints,
        profile.key_usage,
        x509.SubjectKeyIdentifier.from_public_key(prepared.public_key),
    ]
    if profile.extended_key_usage is not None:
        expected.append(profile.extended_key_usage)
    _demand(prepared, expected)


def _check_names(prepared: Prepared) -> None:
    """Check for the profile's fixed name, or one device serial in subject and subjectAltName."""
    profile = prepared.profile
    if profile.common_name is not None:
        if prepared.subject != names.distinguished_name(profile.common_name, profile.organization):
            raise ProfileViolationError(
                f"A {profile.name} certificate must have the common name {profile.common_name}."
            )
        return
    common_names = prepared.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    device_serial = str(common_names[0].value) if common_names else ""
    try:
        names.check_device_serial(device_serial)
    except DeviceSerialRefusedError as error:
        raise ProfileViolationError(str(error)) from None
    if prepared.subject != names.distinguished_name(device_serial, profile.organization):
        raise ProfileViolationError("The subject is not that of a device of this authority.")
    _demand(prepared, [names.device_alternative_names(device_serial)])


def _check_self_issued(prepared: Prepared) -> None:
    if prepared.profile.name != profiles.ROOT.name:
        raise ProfileViolationError("Only the root signs itself.")
    if prepared.issuer != prepared.subject:
        raise ProfileViolationError("The root names another issuer than itself.")


def _check_issuer(prepared: Prepared, issuer: x509.Certificate) -> None:
    if prepared.issuer != issuer.subject:
        raise ProfileViolationError("The issuer's name is not that of the issuing certificate.")
    if names.is_of_sandbox(issuer.subject) is not names.is_of_sandbox(prepared.subject):
        raise ProfileViolationError(
            "A sandbox must not sign for a real authority, and a real authority not for a sandbox."
        )
    if prepared.not_after > issuer.not_valid_after_utc:
        raise ProfileViolationError("The certificate would outlive its issuer.")
    if prepared.not_before < issuer.not_valid_before_utc:
        raise ProfileViolationError("The certificate would begin before its issuer.")
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca:
        raise ProfileViolationError("The issuer is not a CA.")
    if prepared.profile.basic_constraints.ca and constraints.path_length == 0:
        raise ProfileViolationError("The issuer may sign device certificates only, and no CA.")
    _demand(prepared, [authority_key_identifier(issuer)])


def _demand(prepared: Prepared, expected: Iterable[x509.ExtensionType]) -> None:
    for extension in expected:
        if extension not in prepared.extensions:
            raise ProfileViolationError(
                f"The {prepared.profile.name} profile requires another value of"
                f" {_dotted([extension.oid])}."
            )


def _dotted(oids: Iterable[x509.ObjectIdentifier]) -> str:
    return ", ".join(sorted(oid.dotted_string for oid in oids))
