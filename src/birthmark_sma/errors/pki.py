"""Errors of keys, certificates, certification paths and revocation lists."""

from birthmark_sma.errors.base import BirthmarkError


class PkiError(BirthmarkError):
    """A key, a certificate request or a certificate does not conform to its profile."""


class KeyRefusedError(PkiError):
    """A public key is malformed, too weak, or of a type that the key policy does not allow."""


class KeyEncryptionKeyRefusedError(KeyRefusedError):
    """The public key to which table keys would be encrypted is refused."""


class CsrRefusedError(PkiError):
    """A PKCS#10 request is malformed, or its signature does not prove possession of its key."""


class DeviceCertificateRefusedError(PkiError):
    """A device certificate cannot be read."""


class DeviceSerialRefusedError(PkiError):
    """A device serial cannot be used as the common name of a certificate."""


class ProfileViolationError(PkiError):
    """A certificate does not conform to its profile. It was checked before, and not signed."""


class IssuerExpiredError(PkiError):
    """The issuing certificate is not valid at this time. Nothing was issued."""


class OcspRequestRefusedError(PkiError):
    """An OCSP request is malformed, or demands an extension that this responder does not have."""


class PathRefusedError(PkiError):
    """There is no valid certification path from this certificate to the trusted root."""


class RevocationUnknownError(PkiError):
    """A revocation list (CRL) is out of date, of another issuer, or otherwise unusable.

    Whether the device is revoked is unknown, so the bundle is neither valid nor invalid. Fetch a
    newer list and check again.
    """


class DeviceSuspendedError(RevocationUnknownError):
    """The device is suspended: its certificate is on hold, and either comes back or is revoked.

    Accept nothing from it meanwhile. Keep the bundle and check again with a newer list.
    """
