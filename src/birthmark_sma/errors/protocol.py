"""Errors of protocol v1: camera tokens and bundles."""

from birthmark_sma.errors.base import BirthmarkError


class ProtocolError(BirthmarkError):
    """A value violates protocol v1."""


class MalformedCameraTokenError(ProtocolError):
    """A field of a camera token has the wrong length or range. Nothing was decrypted."""


class UnopenedCameraTokenError(ProtocolError):
    """A well-formed camera token cannot be decrypted: wrong key, or altered nonce, text or tag."""


class BundleError(ProtocolError):
    """A bundle must not be trusted."""


class MalformedBundleError(BundleError):
    """A bundle does not have the required format. Nothing was verified."""


class BundleSignatureError(BundleError):
    """The signature of a well-formed bundle does not match the device certificate in it."""


class BundleCertificateError(BundleError):
    """The certificates of a bundle do not chain from the device to the pinned root."""


class BundleTimeError(BundleError):
    """The capture time of a bundle is in the future or too long ago."""


class DeviceRevokedError(BundleError):
    """The certificate of the device that signed a bundle is on the revocation list (CRL)."""
