"""Define what each kind of certificate contains, as data (RFC 5280, section 4.2).

`certificates` builds from these profiles, and `profile_check` checks against them before signing.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from birthmark_sma.pki.names import (
    INTERMEDIATE_COMMON_NAME,
    OCSP_RESPONDER_COMMON_NAME,
    ORGANIZATION,
    ROOT_COMMON_NAME,
    SANDBOX_INTERMEDIATE_COMMON_NAME,
    SANDBOX_OCSP_RESPONDER_COMMON_NAME,
    SANDBOX_ORGANIZATION,
    SANDBOX_ROOT_COMMON_NAME,
)

CLOCK_SKEW = timedelta(hours=1)
"""notBefore is this far in the past, for devices whose clock is slow."""

MIN_SERIAL_NUMBER_BITS = 64
MAX_SERIAL_NUMBER_BITS = 159


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return the key usage of a CA, or of a key that signs data (RFC 5280, section 4.2.1.3)."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of certificate.

    `common_name` is that of the subject, or None if each certificate has its own. `required` and
    `allowed` are extension OIDs: a certificate has all required ones, and no others except the
    allowed ones. The extensions in CRITICAL are critical, and no others.
    """

    name: str
    common_name: str | None
    validity: timedelta
    basic_constraints: x509.BasicConstraints
    key_usage: x509.KeyUsage
    extended_key_usage: x509.ExtendedKeyUsage | None
    required: frozenset[x509.ObjectIdentifier]
    allowed: frozenset[x509.ObjectIdentifier] = frozenset()
    organization: str = ORGANIZATION


CRITICAL = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})

_EVERY_CERTIFICATE = CRITICAL | {ExtensionOID.SUBJECT_KEY_IDENTIFIER}

ROOT = Profile(
    name="root",
    common_name=ROOT_COMMON_NAME,
    validity=timedelta(days=3_650),
    basic_constraints=x509.BasicConstraints(ca=True, path_length=None),
    key_usage=key_usage(ca=True),
    extended_key_usage=None,
    required=_EVERY_CERTIFICATE,
)

INTERMEDIATE = Profile(
    name="intermediate",
    common_name=INTERMEDIATE_COMMON_NAME,
    validity=timedelta(days=1_825),
    basic_constraints=x509.BasicConstraints(ca=True, path_length=0),
    key_usage=key_usage(ca=True),
    extended_key_usage=None,
    required=_EVERY_CERTIFICATE | {ExtensionOID.AUTHORITY_KEY_IDENTIFIER},
)

_CROSS = replace(ROOT, name="cross", required=INTERMEDIATE.required)

DEVICE = Profile(
    name="device",
    common_name=None,
    validity=timedelta(days=730),
    basic_constraints=x509.BasicConstraints(ca=False, path_length=None),
    key_usage=key_usage(ca=False),
    extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    required=_EVERY_CERTIFICATE
    | {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    },
    allowed=frozenset(
        {ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS}
    ),
)

OCSP_RESPONDER = Profile(
    name="OCSP responder",
    common_name=OCSP_RESPONDER_COMMON_NAME,
    validity=timedelta(days=7),
    basic_constraints=x509.BasicConstraints(ca=False, path_length=None),
    key_usage=key_usage(ca=False),
    extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]),
    required=_EVERY_CERTIFICATE
    | {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.OCSP_NO_CHECK,
    },
)
"""The delegated OCSP responder of an issuer (RFC 6960, section 4.2.2.2). Its status cannot be asked
for, so it is valid for a week only."""

SANDBOX_ROOT = replace(
    ROOT, common_name=SANDBOX_ROOT_COMMON_NAME, organization=SANDBOX_ORGANIZATION
)
SANDBOX_INTERMEDIATE = replace(
    INTERMEDIATE, common_name=SANDBOX_INTERMEDIATE_COMMON_NAME, organization=SANDBOX_ORGANIZATION
)
SANDBOX_DEVICE = replace(DEVICE, organization=SANDBOX_ORGANIZATION)
SANDBOX_OCSP_RESPONDER = replace(
    OCSP_RESPONDER,
    common_name=SANDBOX_OCSP_RESPONDER_COMMON_NAME,
    organization=SANDBOX_ORGANIZATION,
)


def numbered(profile: Profile, number: int) -> Profile:
    """Return the profile of a CA that succeeds others: its common name ends in the number.

    Each CA has its own name, because a verifier accepts a CRL for every certificate whose issuer
    has the CRL's name (RFC 5280, section 6.3.3).
    """
    name = profile.common_name if number == 1 else f"{profile.common_name} {number}"
    return replace(profile, common_name=name)


def cross(common_name: str, organization: str) -> Profile:
    """Return the profile of a cross-certificate for the root of these names (RFC 4210, 4.4)."""
    return replace(_CROSS, common_name=common_name, organization=organization)
