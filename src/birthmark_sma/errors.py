"""All exceptions of this package, in one class hierarchy.

Every module raises these. They contain nothing about HTTP or exit codes: `web.problems` maps them
to HTTP statuses, `cli.exit_codes` to exit codes. Each message is a sentence that a person can act
on, and may be shown to the caller. So it never contains a secret, SQL, or a path that the caller
did not give.
"""

from enum import StrEnum


class BirthmarkError(Exception):
    """The base class of all errors that this package raises deliberately."""


class ConfigurationError(BirthmarkError):
    """A setting is missing, unknown or invalid."""


class RateRefusedError(ConfigurationError, ValueError):
    """A text is not a valid rate limit."""


# --- protocol


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


# --- pki


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


# --- client


class ClientMisuseError(BirthmarkError):
    """A client was used after it was closed or from another event loop, or got a time without zone.

    This is a bug of the calling program, and not a result for a bundle or a camera token.
    """


class TooManyPendingError(BirthmarkError):
    """The maximum number of bundles without a verdict is stored. This one was not added."""

    def __init__(self) -> None:
        super().__init__(
            "Too many bundles wait for a verdict: ask about those that are due, or allow more"
        )


# --- device


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


# --- storage


class StorageError(BirthmarkError):
    """The database or a file could not do what was requested."""


class DatabaseFault(StrEnum):
    """Kinds of database faults. The values are labels in metrics."""

    AWAY = "away"
    BUSY = "busy"
    """Serialization failures, deadlocks, cancelled statements, too little memory."""
    CONNECTIONS = "connections"
    DAMAGED = "damaged"
    FAILED = "failed"
    """Any other fault, such as a disk that fails."""
    FULL = "full"
    LOCKED = "locked"
    MOVED = "moved"
    """SQLite's file was removed or replaced."""
    READ_ONLY = "read_only"
    REFUSED = "refused"
    """Permissions are missing."""
    SCHEMA = "schema"
    """Tables, columns or functions are missing."""
    SEQUENCE = "sequence"


class DatabaseUnavailableError(StorageError):
    """The database cannot be reached or failed. The last commit may or may not have happened.

    `advice` is for the operator only: the cause, and what to check. `fault` is the kind of fault.
    `try_again` is True if the database rolled the transaction back and asks for it again.
    `may_have_committed` is True if the commit was under way, so that it may have happened.
    """

    def __init__(
        self,
        message: str = "The database does not answer",
        advice: str = "",
        fault: DatabaseFault = DatabaseFault.AWAY,
    ) -> None:
        super().__init__(message)
        self.advice = advice
        self.fault = fault
        self.try_again = False
        self.may_have_committed = False

    def again(self) -> "DatabaseUnavailableError":
        """Return a copy. Each caller needs its own, because raising changes its traceback."""
        copy = DatabaseUnavailableError(str(self), self.advice, self.fault)
        copy.try_again, copy.may_have_committed = self.try_again, self.may_have_committed
        return copy


class AbandonedWorkError(StorageError):
    """The work was cancelled because its caller no longer waits. Nothing more was committed."""

    def __init__(self) -> None:
        super().__init__("The caller has left or waited too long")


class SchemaMismatchError(StorageError):
    """The database has a different schema revision from this program's, or none."""


class PrivateFileError(StorageError):
    """A file for secrets cannot be read or written, is missing, or is readable by other users."""


# --- authority


class AuthorityError(BirthmarkError):
    """The authority refuses a request or cannot fulfil it."""


class NotInitialisedError(AuthorityError):
    """The database holds no authority yet."""

    def __init__(
        self, message: str = "There is no authority in this database yet. Type: sma init"
    ) -> None:
        super().__init__(message)


class AlreadyInitialisedError(AuthorityError):
    """The database holds an authority already. It is never overwritten."""


class WrongSecretError(AuthorityError):
    """The passphrase or key-encryption key given is not the one that this authority uses."""


class KeyEncryptionKeyChangedError(AuthorityError):
    """The key-encryption key was rotated and this process could not follow. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The authority's keys were changed; try again shortly")


class IssuerChangedError(AuthorityError):
    """Another intermediate signs now. Nothing was registered; the certificate is made again."""

    def __init__(self) -> None:
        super().__init__("The authority's intermediate was just replaced; try again shortly")


class UnknownCaError(AuthorityError):
    """No CA of the authority has this name."""


class RotationError(AuthorityError):
    """The key-encryption key cannot be rotated now, or not to this secret. Nothing changed."""


class KeyTablesError(AuthorityError):
    """The key tables are incomplete, or populating them would endanger devices in the field."""


class TableRotationError(AuthorityError):
    """The key tables cannot be rotated as asked. Nothing was changed."""


class KeyTablesRotatedError(AuthorityError):
    """A key table of a new device was rotated before the device was registered. Try again."""

    def __init__(self) -> None:
        super().__init__("The key tables were rotated meanwhile; try again shortly")


class ConflictError(AuthorityError):
    """The request conflicts with stored data."""


class CaStateError(ConflictError):
    """The state of a CA does not allow this. Nothing was changed."""


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


class UnknownDeviceError(AuthorityError):
    """No device with this serial is registered."""


class UnknownCertificateError(AuthorityError):
    """No device certificate with this id was issued here."""

    def __init__(self) -> None:
        super().__init__("This authority has issued no device certificate with this id")


class CrlNotPublishedError(AuthorityError):
    """No revocation list is stored yet. A server makes the first within seconds of its start."""

    def __init__(
        self, message: str = "The revocation list is not published yet; try again shortly"
    ) -> None:
        super().__init__(message)


class RootCrlNotPublishedError(CrlNotPublishedError):
    """The database holds no revocation list signed by the root's key."""

    def __init__(self) -> None:
        super().__init__(
            "The root has signed no revocation list yet. The operator makes one where the root's"
            " key is: sma ca publish-crl"
        )


class UnknownFlagError(AuthorityError):
    """The device has no flag that waits for review."""


class IdempotencyKeyReusedError(AuthorityError):
    """The Idempotency-Key was used for a different request within the last 24 hours."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for a different request: a new request needs a new key"
        )


class AccessError(AuthorityError):
    """The caller is not authorised. Nothing was done."""


class UnauthenticatedError(AccessError):
    """The request has no credential, or one that is not valid (any more)."""


class InsufficientScopeError(AccessError):
    """The access key is valid, but its scope does not include this request."""


class EnrolmentRefusedError(AccessError):
    """The access key does not allow this device to be provisioned, or no more devices."""


class RenewalRefusedError(AccessError):
    """A certificate cannot be renewed, or the request does not prove to have its key."""


class RenewalTimeRefusedError(AccessError):
    """The time in a request to renew a certificate is too far from the authority's."""


class DeviceNotActiveError(AccessError):
    """The device is suspended, revoked or retired, so its certificate cannot be renewed."""


class RenewalOutdatedError(AuthorityError):
    """The device was renewed in another way meanwhile. Nothing was done: check and sign again."""

    def __init__(self) -> None:
        super().__init__("Another renewal of this device is under way: try again")


class RenewalOrderError(AuthorityError):
    """A renewal order cannot be given, or there is none with this number."""


class AccessKeyRefusedError(AuthorityError):
    """An access key cannot be created with these terms."""


class AccessKeyNameError(ConflictError):
    """Another valid access key has this name or this certificate."""


class UnknownAccessKeyError(AuthorityError):
    """No valid access key has this name or id."""


class BackupError(AuthorityError):
    """A backup cannot be made or restored. The message says whether anything is left behind."""


class BackupPlaceTakenError(ConflictError):
    """The target of a backup or of a restore exists already. It was not changed."""


class BatchFileError(AuthorityError):
    """The input file or the output of a batch of devices cannot be used."""


class BatchInterruptedError(AuthorityError):
    """A process that provisioned a part of a batch was killed. A retry keeps what it committed."""

    def __init__(self) -> None:
        super().__init__(
            "A worker process was killed, perhaps because memory was short. Run the same command"
            " again: it continues where it ended"
        )


class CallerLeftError(AuthorityError):
    """The caller has closed the connection, so no response is sent."""

    def __init__(self) -> None:
        super().__init__("The caller left before its answer")


class PoolFullError(AuthorityError):
    """The bounded pool is full, or the caller's share of it. Nothing was done: retry later.

    `drain_seconds` is the time after which what waits will be done; 0 if it is unknown.
    """

    def __init__(self, drain_seconds: float = 0.0) -> None:
        super().__init__("The authority has more work waiting than it accepts; try again shortly")
        self.drain_seconds = drain_seconds


class RateLimitedError(AuthorityError):
    """A caller has exceeded its rate limit. Nothing was done; this is not a verdict.

    `retry_after` is in whole seconds, at least 1. `policy` is the name of the exceeded limit.
    """

    def __init__(self, message: str, *, retry_after: int, policy: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.policy = policy


class ShuttingDownError(AuthorityError):
    """The authority no longer accepts work. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The authority is shutting down; try again shortly")
