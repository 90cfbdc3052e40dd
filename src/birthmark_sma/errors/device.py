"""Errors of the camera library, raised to the camera's app."""

from birthmark_sma.errors.base import BirthmarkError


class DeviceError(BirthmarkError):
    """A camera cannot do what its app requested. Its state on disk is still consistent."""


class DeviceStorageError(DeviceError):
    """A camera's directory or a file in it cannot be used: file modes, a full or read-only disk."""


class DeviceBusyError(DeviceStorageError):
    """Another process has locked this camera's directory. Two processes would reuse nonces."""


class DamagedDeviceStateError(DeviceStorageError):
    """A file of a camera's state is missing, incomplete or altered. It was not changed."""


class DeviceSecretError(DeviceError):
    """A camera's state cannot be decrypted with the secret that its app gave."""


class OtherDeviceError(DeviceError):
    """The directory belongs to another device serial: a copied disk or the wrong directory."""


class ProvisioningError(DeviceError):
    """The camera is not provisioned yet."""


class AuthorityAwayError(ProvisioningError):
    """The authority gave no usable response. Nothing is lost: retry later.

    `retry_after` is in seconds, or None if the authority did not send it.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProvisioningRefusedError(ProvisioningError):
    """The authority refuses to provision this camera. A retry does not help.

    `status` is the HTTP status, `kind` the last part of the problem type in the response.
    """

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class EmptyPictureError(DeviceError):
    """The file of a picture is empty: it is not written yet, or writing it failed."""

    def __init__(self) -> None:
        super().__init__("The picture's file is empty: there is nothing to authenticate")


class WrongClockError(DeviceError):
    """A camera's clock must be wrong. The picture was not signed. Set the clock first."""


class QueueFullError(DeviceError):
    """A camera's queue holds its maximum number of bundles. The bundle was not queued."""

    def __init__(self) -> None:
        super().__init__("The queue is full: have its bundles sent, or make it larger")


class NoncesUsedUpError(DeviceError):
    """A camera has made 2**32 camera tokens, the maximum of its nonce counter."""

    def __init__(self) -> None:
        super().__init__(
            "This camera has used all its nonces. Provision it again under a new serial"
        )
