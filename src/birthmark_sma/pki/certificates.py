"""Issue certificates in three steps: prepare, check against the profile, sign.

`prepare_*` returns a Prepared certificate: every field is decided and nothing is signed. `sign`
checks it again, and raises ProfileViolationError instead of signing a certificate that departs from
its profile. A mistake in a `prepare_*` function is therefore an error here, and never a certificate
in the field.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from birthmark_sma.errors import IssuerExpiredError, ProfileViolationError
from birthmark_sma.pki import der, names, profiles
from birthmark_sma.pki.keys.ca_keys import Signer, VerifyingKey
from birthmark_sma.pki.keys.key_policy import DeviceKey
from birthmark_sma.pki.profile_check import Prepared, authority_key_identifier, check
from birthmark_sma.pki.profiles import Profile


@dataclass(frozen=True, slots=True)
class Publication:
    """The URLs at which verifiers find the issuer's CRL, its certificate and its OCSP responder."""

    crl_url: str
    issuer_url: str
    ocsp_url: str


def prepare_root(
    public_key: VerifyingKey, *, now: datetime, serial_number: int, profile: Profile = profiles.ROOT
) -> Prepared:
    """Prepare the self-signed root certificate."""
    return _prepare(
        profile, public_key, _fixed_name(profile), issuer=None, now=now, serial_number=serial_number
    )


def prepare_intermediate(
    public_key: VerifyingKey,
    *,
    issuer: x509.Certificate,
    now: datetime,
    serial_number: int,
    profile: Profile = profiles.INTERMEDIATE,
) -> Prepared:
    """Prepare the intermediate certificate, which the root signs.

    Raises IssuerExpiredError if the root certificate is not valid at `now`.
    """
    return _prepare(
        profile,
        public_key,
        _fixed_name(profile),
        issuer=issuer,
        now=now,
        serial_number=serial_number,
    )


def prepare_cross(
    certified: x509.Certificate, *, issuer: x509.Certificate, now: datetime, serial_number: int
) -> Prepared:
    """Prepare a cross-certificate: the root `issuer` certifies the name and key of another root.

    It ends with the first of both. Raises IssuerExpiredError if the issuing root is not valid at
    `now`.
    """
    [common_name] = certified.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    [organization] = certified.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    prepared = _prepare(
        profiles.cross(str(common_name.value), str(organization.value)),
        certified.public_key(),
        certified.subject,
        issuer=issuer,
        now=now,
        serial_number=serial_number,
    )
    return replace(prepared, not_after=min(prepared.not_after, certified.not_valid_after_utc))


def prepare_device(
    public_key: DeviceKey,
    device_serial: str,
    *,
    issuer: x509.Certificate,
    now: datetime,
    serial_number: int,
    publication: Publication | None = None,
    profile: Profile = profiles.DEVICE,
) -> Prepared:
    """Prepare a device certificate, which the intermediate signs.

    Raises DeviceSerialRefusedError if the serial cannot be a common name, and IssuerExpiredError if
    the issuer's certificate is not valid at `now`.
    """
    names.check_device_serial(device_serial)
    subject = names.distinguished_name(device_serial, profile.organization)
    prepared = _prepare(
        profile, public_key, subject, issuer=issuer, now=now, serial_number=serial_number
    )
    extensions = [*prepared.extensions, names.device_alternative_names(device_serial)]
    if publication is not None:
        extensions += _publication_extensions(publication)
    return replace(prepared, extensions=tuple(extensions))


def prepare_ocsp_responder(
    public_key: VerifyingKey, *, issuer: x509.Certificate, now: datetime, serial_number: int
) -> Prepared:
    """Prepare the certificate of an issuer's OCSP responder (RFC 6960, section 4.2.2.2).

    Raises IssuerExpiredError if the issuer's certificate is not valid at `now`.
    """
    of_sandbox = names.is_of_sandbox(issuer.subject)
    profile = profiles.SANDBOX_OCSP_RESPONDER if of_sandbox else profiles.OCSP_RESPONDER
    prepared = _prepare(
        profile,
        public_key,
        _fixed_name(profile),
        issuer=issuer,
        now=now,
        serial_number=serial_number,
    )
    return replace(prepared, extensions=(*prepared.extensions, x509.OCSPNoCheck()))


def sign(
    prepared: Prepared, signer: Signer, *, issuer: x509.Certificate | None = None
) -> x509.Certificate:
    """Check a prepared certificate against its profile, and sign it.

    `issuer` is None for the self-signed root. Signing with RSA-4096 takes milliseconds: do not call
    this function on an event loop.

    Raises ProfileViolationError, with nothing signed.
    """
    check(prepared, issuer)
    # A certificate signed with another key than the issuer's would never verify.
    issuing_key = prepared.public_key if issuer is None else issuer.public_key()
    if issuing_key != signer.public_key:
        raise ProfileViolationError("The signing key does not belong to the issuer's certificate.")
    tbs = der.tbs_certificate(prepared, signer.signature_algorithm)
    signature = signer.sign(tbs)
    return x509.load_der_x509_certificate(der.signed(tbs, signer.signature_algorithm, signature))


def _fixed_name(profile: Profile) -> x509.Name:
    assert profile.common_name is not None  # noqa: S101  only the device profile has none
    return names.distinguished_name(profile.common_name, profile.organization)


def _prepare(
    profile: Profile,
    public_key: CertificatePublicKeyTypes,
    subject: x509.Name,
    *,
    issuer: x509.Certificate | None,
    now: datetime,
    serial_number: int,
) -> Prepared:
    """Prepare a certificate with the extensions that its profile always has.

    Raises IssuerExpiredError if the issuer's certificate is not valid at `now`.
    """
    # X.509 times have whole seconds (RFC 5280, section 4.1.2.5).
    not_before = now.replace(microsecond=0) - profiles.CLOCK_SKEW
    not_after = not_before + profile.validity
    extensions: list[x509.ExtensionType] = [
        profile.basic_constraints,
        profile.key_usage,
        x509.SubjectKeyIdentifier.from_public_key(public_key),
    ]
    if profile.extended_key_usage is not None:
        extensions.append(profile.extended_key_usage)
    if issuer is not None:
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            raise IssuerExpiredError(
                "The issuing certificate is not valid at this time, so it can issue none. Check the"
                " clock, and whether the certificate has expired."
            )
        # A certificate that outlives its issuer would not verify at its end.
        not_before = max(not_before, issuer.not_valid_before_utc)
        not_after = min(not_after, issuer.not_valid_after_utc)
        extensions.append(authority_key_identifier(issuer))
    return Prepared(
        profile=profile,
        subject=subject,
        issuer=subject if issuer is None else issuer.subject,
        public_key=public_key,
        serial_number=serial_number,
        not_before=not_before,
        not_after=not_after,
        extensions=tuple(extensions),
    )


def _publication_extensions(publication: Publication) -> list[x509.ExtensionType]:
    return [
        x509.CRLDistributionPoints(
            [
                x509.DistributionPoint(
                    full_name=[x509.UniformResourceIdentifier(publication.crl_url)],
                    relative_name=None,
                    reasons=None,
                    crl_issuer=None,
                )
            ]
        ),
        x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(
                    AuthorityInformationAccessOID.OCSP,
                    x509.UniformResourceIdentifier(publication.ocsp_url),
                ),
                x509.AccessDescription(
                    AuthorityInformationAccessOID.CA_ISSUERS,
                    x509.UniformResourceIdentifier(publication.issuer_url),
                ),
            ]
        ),
    ]
