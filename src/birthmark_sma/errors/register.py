"""Errors of the register: of devices, their certificates and their camera tokens."""

from birthmark_sma.errors.authority import AuthorityError, ConflictError


class DeviceAlreadyProvisionedError(ConflictError):
    """The device serial is registered already."""

    def __init__(self) -> None:
        super().__init__("Device already provisioned")


class PublicKeyInUseError(ConflictError):
    """Another device serial is registered with this public key."""

    def __init__(self) -> None:
        super().__init__("This public key belongs to another device; make a new key pair")


class NucHashInUseError(ConflictError):
    """Another device serial is registered with this NUC hash."""

    def __init__(self) -> None:
        super().__init__("This NUC hash belongs to another device")


class ReEnrolmentRefusedError(ConflictError):
    """The device may be re-enrolled, but not in its present status or under this spelling."""


class DeviceStatusError(ConflictError):
    """The device's status does not allow this change. A revocation is final."""


class TokenAlreadySubmittedError(ConflictError):
    """The same caller submitted this camera token before. This is not a verdict.

    Raised only with the replay policy `refuse-same-caller`.
    """

    def __init__(self) -> None:
        super().__init__(
            "You have validated this camera token before, and this authority allows that once. Use"
            " the answer that you got then. If it was lost, ask the operator to look it up in the"
            " audit log"
        )


class DeviceDescriptionRefusedError(AuthorityError):
    """A device's family or app version is empty, too long, or contains control characters."""


class UnknownValidationError(AuthorityError):
    """The audit log has no such validation, or none with this request id."""


class UnknownDeviceError(AuthorityError):
    """No device with this serial is registered."""


class UnknownCertificateError(AuthorityError):
    """No device certificate with this id was issued here."""

    def __init__(self) -> None:
        super().__init__("This authority has issued no device certificate with this id")


class UnknownKeyTableError(AuthorityError):
    """The authority has no key table with this id."""


class UnknownFlagError(AuthorityError):
    """The device has no flag that waits for review."""


class UnknownActError(AuthorityError):
    """No administrative act with this id is recorded."""


class IdempotencyKeyReusedError(AuthorityError):
    """The Idempotency-Key was used for a different request within the last 24 hours."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for a different request: a new request needs a new key"
        )


class RenewalOutdatedError(AuthorityError):
    """The device was renewed in another way meanwhile. Nothing was done: check and sign again."""

    def __init__(self) -> None:
        super().__init__("Another renewal of this device is under way: try again")


class RenewalOrderError(AuthorityError):
    """A renewal order cannot be given, or there is none with this number."""
