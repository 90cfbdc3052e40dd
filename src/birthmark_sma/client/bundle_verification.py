"""Verify a bundle: what an aggregation server does before it asks the authority.

The steps, in this order, each of which may refuse:

1. the form (`protocol.bundle`);
2. the time: captured not in the future, and not longer ago than the caller wants;
3. the certification path to the pinned root, at the time of capture and now (`pki.path`);
4. revocation, where a list is given (`revocation`);
5. the device's signature over the bundle, by the key that its certificate names.

A bundle that passes was signed by the device that its certificate names. Whether its camera token
is genuine only the authority knows, and which family the device is of: no certificate says that.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.client.outcome import Fail, Outcome, Pass
from birthmark_sma.client.revocation import RevocationList, check_aware, check_revocation
from birthmark_sma.errors import (
    BundleCertificateError,
    BundleTimeError,
    PathRefusedError,
)
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.pki.profiles import CLOCK_SKEW
from birthmark_sma.protocol.bundle import Bundle, parse_bundle
from birthmark_sma.protocol.bundle_signature import verify_signature
from birthmark_sma.protocol.camera_token import CameraToken

_NO_GRACE = timedelta(0)


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """What a bundle says, and which device signed it.

    `bundle_id` is the same whenever the bundle comes again. `captured_at` is that device's own
    word. The device's family comes with the authority's PASS.
    """

    bundle_id: bytes
    device_serial: str
    certificate_serial: int
    image_hash: bytes
    camera_token: CameraToken = field(repr=False)
    captured_at: datetime


def verify_bundle(
    bundle: Bundle | bytes,
    *,
    root: x509.Certificate,
    now: datetime,
    crl: RevocationList | None = None,
    grace: timedelta = _NO_GRACE,
    max_age: timedelta | None = None,
) -> VerifiedBundle:
    """Return what a bundle proves. `root` is the pinned root, `now` the time in UTC.

    A certificate must be valid when the picture was captured, by the device's clock, and now; for
    cameras that were offline, one that has ended within `grace` is taken as well. A device's clock
    may be fast by up to an hour. `max_age` bounds how long ago a picture was captured.

    Raises MalformedBundleError, BundleTimeError, BundleCertificateError, DeviceRevokedError or
    BundleSignatureError, all of them BundleError: reject the bundle. Raises RevocationUnknownError
    where `crl` is of no use, which says nothing of the bundle: fetch a newer one. Raises
    ClientMisuseError where `now` has no time zone.
    """
    check_aware(now)
    # 1
    if not isinstance(bundle, Bundle):
        bundle = parse_bundle(bundle)
    content = bundle.content
    # 2
    if content.captured_at > now + CLOCK_SKEW:
        raise BundleTimeError("The bundle was captured in the future, or the device's clock is.")
    if max_age is not None and content.captured_at < now - max_age:
        raise BundleTimeError("The bundle was captured too long ago.")
    # 3
    device, intermediate = (_certificate(der) for der in content.device_certificate_chain)
    ends = min(device.not_valid_after_utc, intermediate.not_valid_after_utc)
    judged_at = ends if ends < now <= ends + grace else now
    try:
        device_serial = verify_path(device, [intermediate], root=root, now=judged_at)
    except PathRefusedError as error:
        raise BundleCertificateError(str(error)) from None
    # Of a path, only the validity of its certificates depends on the time (RFC 5280, 6.1.3).
    captured_at = min(content.captured_at, now)
    if not all(_is_valid_at(captured_at, each) for each in (device, intermediate, root)):
        raise BundleCertificateError("A certificate was not valid when the picture was captured.")
    # 4
    if crl is not None:
        check_revocation(device, issuer=intermediate, crl=crl, now=now)
    # 5
    verify_signature(bundle, device.public_key())
    return VerifiedBundle(
        bundle_id=bytes.fromhex(bundle.bundle_id),
        device_serial=device_serial,
        certificate_serial=device.serial_number,
        image_hash=content.image_hash,
        camera_token=content.camera_token,
        captured_at=content.captured_at,
    )


def of_the_same_device(bundle: VerifiedBundle, outcome: Outcome) -> Outcome:
    """Return the outcome, or Fail where the camera token passed as another device's.

    The device that signed the bundle then holds a token that it did not make.
    """
    if isinstance(outcome, Pass) and outcome.device_serial not in {None, bundle.device_serial}:
        return Fail(
            outcome.manufacturer_id,
            outcome.validated_at,
            error="The camera token is another device's than the bundle",
        )
    return outcome


def _is_valid_at(time: datetime, certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc


def _certificate(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # These are read late, and a year 0, which X.509 has, is none that Python can tell.
        for name in ("not_valid_before_utc", "not_valid_after_utc"):
            getattr(certificate, name)
    except (ValueError, x509.InvalidVersion):
        raise BundleCertificateError("A certificate of the bundle cannot be read.") from None
    return certificate
