"""Errors of the authority itself: its secrets, CAs, revocation lists and key tables."""

from birthmark_sma.errors.base import BirthmarkError


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


class AuditTrailChangedError(ConflictError):
    """The checkpoints of the audit log do not fit each other, so nothing more is signed."""

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"Somebody changed the checkpoints in the database: {fault}. Type: sma audit verify"
        )


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
