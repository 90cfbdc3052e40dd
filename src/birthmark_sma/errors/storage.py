"""Errors of the database and of private files."""

from enum import StrEnum

from birthmark_sma.errors.base import BirthmarkError


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


class AuthorityMovedError(StorageError):
    """The authority is being moved, or was moved, to another database. The message says which."""
