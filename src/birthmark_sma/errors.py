"""The one tree of exceptions. It knows nothing of HTTP: `web.problems` alone maps it to statuses.

Every message is a sentence that a person can act on, and may be shown to whoever caused it: no
message holds a secret, a path that the caller did not give, or SQL.
"""

from enum import StrEnum


class BirthmarkError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigurationError(BirthmarkError):
    """A setting is missing, unknown or cannot be used."""


class RateRefusedError(ConfigurationError, ValueError):
    """A text is no rate that anything can be limited to."""


# --- protocol


class ProtocolError(BirthmarkError):
    """A value breaks protocol v1."""


class MalformedCameraTokenError(ProtocolError):
    """A part of a camera token has the wrong length or range; no cryptography was tried."""


class UnopenedCameraTokenError(ProtocolError):
    """A well-formed camera token does not open: wrong key, or an altered nonce, text or tag."""


class BundleError(ProtocolError):
    """A bundle cannot be relied on."""


class MalformedBundleError(BundleError):
    """A bundle is not of the form that it must have; no cryptography was tried."""


class BundleSignatureError(BundleError):
    """A well-formed bundle was not signed by the device that its certificate names."""


class BundleCertificateError(BundleError):
    """The certificates of a bundle do not lead from the device to the pinned root."""


class BundleTimeError(BundleError):
    """A bundle says that it was captured in the future, or too long ago."""


class DeviceRevokedError(BundleError):
    """The certificate of the device that signed a bundle is on the revocation list."""


# --- pki


class PkiError(BirthmarkError):
    """A key, a request or a certificate is not what the profile demands."""


class KeyRefusedError(PkiError):
    """A public key is malformed, too weak, or of a kind that the key policy does not name."""


class KeyEncryptionKeyRefusedError(KeyRefusedError):
    """A public key that table keys should be sealed to is refused."""


class CsrRefusedError(PkiError):
    """A PKCS#10 request is malformed or does not prove possession of its key."""


class DeviceSerialRefusedError(PkiError):
    """A device serial cannot become the common name of a certificate."""


class ProfileViolationError(PkiError):
    """A certificate that was about to be signed departs from its profile. Nothing was signed."""


class IssuerExpiredError(PkiError):
    """The issuing certificate is not valid at this time, so nothing can be issued under it."""


class PathRefusedError(PkiError):
    """No valid certification path leads from this certificate to the trusted root."""


class RevocationUnknownError(PkiError):
    """A revocation list is out of date or another issuer's, so it does not say who is revoked.

    It says nothing of a bundle: fetch a newer list, and look again.
    """


# --- client


class ClientMisuseError(BirthmarkError):
    """A client is used after it was closed or from another event loop, or gets a time without zone.

    It says nothing of a bundle or a camera token: the calling program has to change.
    """


class TooManyPendingError(BirthmarkError):
    """As many bundles without a verdict are kept as may be. This one was not added."""

    def __init__(self) -> None:
        super().__init__(
            "Too many bundles wait for a verdict: ask about those that are due, or allow more"
        )


# --- device


class DeviceError(BirthmarkError):
    """A camera cannot do what its app asked. What it holds on disk is as good as before."""


class DeviceStorageError(DeviceError):
    """A camera's directory or a file in it cannot be used: modes, a full or read-only disk."""


class DeviceBusyError(DeviceStorageError):
    """Another process has this camera's directory, and two would spend the same nonces."""


class DamagedDeviceStateError(DeviceStorageError):
    """A file of a camera's state is missing, torn or altered. It was left as it is."""


class DeviceSecretError(DeviceError):
    """A camera's state is not sealed under the secret that its app gave."""


class OtherDeviceError(DeviceError):
    """The directory belongs to another device serial: a copied disk, or the wrong directory."""


class ProvisioningError(DeviceError):
    """The camera is not provisioned yet."""


class AuthorityAwayError(ProvisioningError):
    """The authority gave no answer that counts. Nothing is lost: start again later.

    `retry_after` is in seconds, where the authority said so.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProvisioningRefusedError(ProvisioningError):
    """The authority refuses to provision this camera: asking again changes nothing.

    `status` is the answer's (HTTP), `kind` the last part of the problem's type.
    """

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class EmptyPictureError(DeviceError):
    """A picture's file has no bytes: it is not written yet, or writing it failed."""

    def __init__(self) -> None:
        super().__init__("The picture's file is empty: there is nothing to authenticate")


class WrongClockError(DeviceError):
    """A camera's clock cannot be right. The picture was not signed: capture it once it is set."""


class QueueFullError(DeviceError):
    """A camera's queue holds as many bundles as it may. The bundle was not queued."""

    def __init__(self) -> None:
        super().__init__("The queue is full: have its bundles sent, or make it larger")


class NoncesUsedUpError(DeviceError):
    """A camera has made as many camera tokens as its nonce counter allows: 2**32."""

    def __init__(self) -> None:
        super().__init__(
            "This camera has used its nonces up: provision it again under a new serial"
        )


# --- storage


class StorageError(BirthmarkError):
    """The database did not do what was asked."""


class DatabaseFault(StrEnum):
    """Kinds of trouble with a database, as metrics name them."""

    AWAY = "away"
    BUSY = "busy"
    """Serialization failures, deadlocks, cancelled statements, too little memory."""
    CONNECTIONS = "connections"
    DAMAGED = "damaged"
    FAILED = "failed"
    """Whatever the others do not name, such as a disk that fails."""
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
    """The database cannot be reached, or gave up: the last commit may or may not have happened.

    `advice` is for the operator alone: which kind of fault it is, and what to look at.
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

    def again(self) -> "DatabaseUnavailableError":
        """Return a copy: callers must not share an exception, and so each other's traceback."""
        return DatabaseUnavailableError(str(self), self.advice, self.fault)


class AbandonedWorkError(StorageError):
    """Nobody waits for this work any more, so it ends. What was not committed never happened."""

    def __init__(self) -> None:
        super().__init__("Whoever asked has left, or has waited too long")


class SchemaMismatchError(StorageError):
    """The database has another schema version than this program."""


class PrivateFileError(StorageError):
    """A file for secrets cannot be written, is missing, or is readable by others."""


# --- authority


class AuthorityError(BirthmarkError):
    """The authority refuses, or cannot do, what was asked."""


class NotInitialisedError(AuthorityError):
    """The database holds no authority yet."""

    def __init__(
        self, message: str = "There is no authority in this database yet. Type: sma init"
    ) -> None:
        super().__init__(message)


class AlreadyInitialisedError(AuthorityError):
    """The database holds an authority already; it is never overwritten."""


class WrongSecretError(AuthorityError):
    """The passphrase or key-encryption key given is not the one that this authority uses."""


class KeyEncryptionKeyChangedError(AuthorityError):
    """A rotation went by that this process could not follow. What it asked for was not done."""

    def __init__(self) -> None:
        super().__init__("The authority's keys were changed; try again shortly")


class RotationError(AuthorityError):
    """The key-encryption key cannot be rotated now, or not to this secret. Nothing was changed."""


class KeyTablesError(AuthorityError):
    """The key tables are incomplete, or populating them would endanger devices in the field."""


class ConflictError(AuthorityError):
    """What was asked contradicts what is registered."""


class DeviceAlreadyProvisionedError(ConflictError):
    """The device serial is registered."""

    def __init__(self) -> None:
        super().__init__("Device already provisioned")


class PublicKeyInUseError(ConflictError):
    """Another device serial holds this public key."""

    def __init__(self) -> None:
        super().__init__("This public key belongs to another device; make a new key pair")


class NucHashInUseError(ConflictError):
    """Another device serial holds this NUC hash."""

    def __init__(self) -> None:
        super().__init__("This NUC hash belongs to another device")


class DeviceStatusError(ConflictError):
    """The device's status does not allow this change; a revocation is final."""


class TokenAlreadySubmittedError(ConflictError):
    """The same caller brought this camera token before. It is no verdict: the first answer was."""

    def __init__(self) -> None:
        super().__init__(
            "You had this camera token validated before, and here each caller may do so once: go"
            " by the answer that you got then. Where it was lost, ask the operator, who finds the"
            " verdict in the audit trail"
        )


class DeviceDescriptionRefusedError(AuthorityError):
    """A device's family or app version is empty, too long, or has control characters."""


class UnknownDeviceError(AuthorityError):
    """No device of this serial is registered."""


class CrlNotPublishedError(AuthorityError):
    """No revocation list is stored yet: the first is made within seconds of a server's start."""

    def __init__(
        self, message: str = "The revocation list is not published yet; try again shortly"
    ) -> None:
        super().__init__(message)


class RootCrlNotPublishedError(CrlNotPublishedError):
    """The root's key has signed no revocation list in this database."""

    def __init__(self) -> None:
        super().__init__(
            "The root has signed no revocation list yet. The operator makes one where the root's"
            " key is: sma ca publish-crl"
        )


class UnknownFlagError(AuthorityError):
    """A device has no flag that waits for review."""


class IdempotencyKeyReusedError(AuthorityError):
    """The Idempotency-Key was used within 24 hours for a different request."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for a different request: a new request needs a new key"
        )


class AccessError(AuthorityError):
    """Whoever asks may not do this. Nothing was done."""


class UnauthenticatedError(AccessError):
    """No credential was shown, or one that is not in force."""


class InsufficientScopeError(AccessError):
    """The access key is in force, and good for something else."""


class EnrolmentRefusedError(AccessError):
    """The access key does not allow this device to be provisioned, or no further one."""


class AccessKeyRefusedError(AuthorityError):
    """An access key cannot have these terms."""


class AccessKeyNameError(ConflictError):
    """A key in force has this name, or stands for this certificate."""


class UnknownAccessKeyError(AuthorityError):
    """No access key in force has this name or id."""


class BackupError(AuthorityError):
    """A backup cannot be made, or cannot be restored. The message says whether anything is left."""


class BackupPlaceTakenError(ConflictError):
    """Something is where a backup, or what it is restored to, should go. It was not touched."""


class BatchFileError(AuthorityError):
    """A file that describes many devices, or what is to take their results, cannot be used."""


class BatchInterruptedError(AuthorityError):
    """A process that provisioned a chunk was killed. What it committed is found again."""

    def __init__(self) -> None:
        super().__init__(
            "A process ended before its work: was memory short? Run the same command again, and it"
            " carries on"
        )


class CallerLeftError(AuthorityError):
    """Whoever asked has closed the connection: nobody gets an answer."""

    def __init__(self) -> None:
        super().__init__("The caller left before its answer")


class PoolFullError(AuthorityError):
    """More work waits than the bounded pool holds. Nothing was done; try again."""

    def __init__(self) -> None:
        super().__init__("The authority has more work waiting than it accepts; try again shortly")


class RateLimitedError(AuthorityError):
    """A caller has asked for more than its rate limit allows. Nothing was done; this is no verdict.

    `retry_after` is in whole seconds, at least 1; `policy` is the name of the limit that was met.
    """

    def __init__(self, message: str, *, retry_after: int, policy: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.policy = policy


class ShuttingDownError(AuthorityError):
    """The authority no longer accepts work. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The authority is shutting down; try again shortly")
