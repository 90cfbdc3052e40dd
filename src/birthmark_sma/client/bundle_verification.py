"""Verify a bundle, before an aggregation server validates its camera token.

The steps, in this order, each of which can reject the bundle:

1. the form (`protocol.bundle`);
2. the time: captured not in the future, and not longer ago than the caller allows;
3. the certification path to a pinned root, at the time of capture and now
   (`pki.path_validation`);
4. revocation of the device and of its issuer, if lists are given (`revocation`);
5. the device's signature over the bundle, with the key in its certificate.

A verified bundle was signed by the device that its certificate names. Only the authority knows
whether the camera token is genuine and which family the device belongs to: no certificate contains
that.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509

from birthmark_sma.client.outcome import Fail, Outcome, Pass
from birthmark_sma.client.revocation import RevocationList, check_aware, check_revocation
from birthmark_sma.errors import (
    BundleCertificateError,
    BundleTimeError,
    DeviceRevokedError,
    PathRefusedError,
    RevocationUnknownError,
)
from birthmark_sma.pki.names import same_name
from birthmark_sma.pki.path_validation import find_issuing_root, verify_path
from birthmark_sma.pki.profiles import CLOCK_SKEW
from birthmark_sma.protocol.bundle import Bundle, parse_bundle
from birthmark_sma.protocol.bundle_signature import verify_signature
from birthmark_sma.protocol.camera_token import CameraToken

_NO_GRACE = timedelta(0)

ListFinder: TypeAlias = Callable[[x509.Certificate, x509.Certificate], Collection[RevocationList]]
"""Returns the lists for a device and its intermediate, whose path is verified."""


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """The content of a verified bundle, and the device that signed it.

    `bundle_id` is the same each time the bundle is received. `captured_at` is the time of the
    device's own clock. The device's family is not in a bundle: the authority returns it with PASS.
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
    root: x509.Certificate | Collection[x509.Certificate],
    now: datetime,
    crl: RevocationList | Collection[RevocationList] | ListFinder | None = None,
    grace: timedelta = _NO_GRACE,
    max_age: timedelta | None = None,
    received_at: datetime | None = None,
) -> VerifiedBundle:
    """Verify a bundle, and return its content.

    `root` is the pinned root, or several: around the change to a new root an authority has two.
    `crl` is the list of the device's issuer, or several lists, of which that must be one, or what
    returns them (`IssuerCrls`). If the list of the root is among them, the issuer must not be on
    it. `now` is the time in UTC.

    The certificates must be valid at the time of capture, by the device's clock, and now. For
    cameras that were offline, `grace` also accepts a certificate that expired less than `grace`
    ago. A device's clock may be up to one hour fast. `max_age` bounds the time since the capture.
    `received_at` is the time at which this server received the bundle, by its own clock (default:
    `now`). A bundle that was received before a key was compromised stays valid
    (`revocation.check_revocation`).

    Raises MalformedBundleError, BundleTimeError, BundleCertificateError, DeviceRevokedError or
    BundleSignatureError, all subclasses of BundleError: reject the bundle. Raises
    RevocationUnknownError if `crl` is unusable, which does not concern the bundle: fetch a newer
    list. Raises its subclass DeviceSuspendedError for a suspended device: keep the bundle, and
    verify it again later. Raises ClientMisuseError if a time has no time zone.
    """
    check_aware(now)
    # 1. the form
    if not isinstance(bundle, Bundle):
        bundle = parse_bundle(bundle)
    content = bundle.content
    # 2. the time
    if content.captured_at > now + CLOCK_SKEW:
        raise BundleTimeError(
            "The bundle claims a time in the future. The device's clock may be wrong."
        )
    if max_age is not None and content.captured_at < now - max_age:
        raise BundleTimeError("The bundle was captured too long ago.")
    # 3. the certification path
    device, intermediate = (_certificate(der) for der in content.device_certificate_chain)
    ends = min(device.not_valid_after_utc, intermediate.not_valid_after_utc)
    roots = (root,) if isinstance(root, x509.Certificate) else root
    # Within the grace period, check the path at its last valid moment.
    judged_at = ends if ends < now <= ends + grace else now
    try:
        trusted = find_issuing_root(intermediate, roots)
        device_serial = verify_path(device, [intermediate], root=trusted, now=judged_at)
    except PathRefusedError as error:
        raise BundleCertificateError(str(error)) from None
    # Of the path checks, only the validity of the certificates depends on the time (RFC 5280,
    # section 6.1.3). So `verify_path` need not run again for the time of capture.
    captured_at = min(content.captured_at, now)
    if not all(_is_valid_at(captured_at, each) for each in (device, intermediate, trusted)):
        raise BundleCertificateError("A certificate was not valid when the picture was captured.")
    # 4. revocation
    if crl is not None:
        if isinstance(crl, RevocationList):
            lists: Sequence[RevocationList] = (crl,)
        else:
            lists = tuple(crl(device, intermediate) if callable(crl) else crl)
        _check_issuer_revocation(
            intermediate, root=trusted, lists=lists, now=now, received_at=received_at
        )
        check_revocation(
            device,
            issuer=intermediate,
            crl=_list_of(intermediate, lists),
            now=now,
            received_at=received_at,
            captured_at=content.captured_at,
        )
    # 5. the signature
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
    """Return the outcome, or Fail if the camera token passed as that of another device.

    The device that signed the bundle then used a token that it did not make.
    """
    if isinstance(outcome, Pass) and outcome.device_serial not in {None, bundle.device_serial}:
        return Fail(
            outcome.manufacturer_id,
            outcome.validated_at,
            error="The camera token and the bundle come from different devices",
        )
    return outcome


def _check_issuer_revocation(
    intermediate: x509.Certificate,
    *,
    root: x509.Certificate,
    lists: Sequence[RevocationList],
    now: datetime,
    received_at: datetime | None,
) -> None:
    """Raise DeviceRevokedError if the root's list is given and has the intermediate.

    What was received before the intermediate's key was compromised stays valid.
    """
    for each in lists:
        if _is_of(root, each):
            try:
                check_revocation(
                    intermediate, issuer=root, crl=each, now=now, received_at=received_at
                )
            except DeviceRevokedError:
                raise DeviceRevokedError(
                    "The certificate of the device's issuer is revoked."
                ) from None


def _list_of(issuer: x509.Certificate, lists: Sequence[RevocationList]) -> RevocationList:
    """Return the list of an issuer, else the only one, which `check_revocation` refuses."""
    for each in lists:
        if _is_of(issuer, each):
            return each
    if len(lists) == 1:
        return lists[0]
    raise RevocationUnknownError(
        "None of the revocation lists is that of the device's issuer. Fetch that one, too."
    )


def _is_of(issuer: x509.Certificate, crl: RevocationList) -> bool:
    """Return True if a list is one of this CA: of the same key and the same name."""
    return issuer == crl.issuer or (
        issuer.public_key() == crl.issuer.public_key()
        and same_name(issuer.subject, crl.issuer.subject)
    )


def _is_valid_at(time: datetime, certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc


def _certificate(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library parses these dates only when they are read. X.509 allows a year 0, and Python
        # does not: that raises ValueError here, and not later.
        for name in ("not_valid_before_utc", "not_valid_after_utc"):
            getattr(certificate, name)
    except (ValueError, x509.InvalidVersion):
        raise BundleCertificateError("A certificate of the bundle cannot be read.") from None
    return certificate
