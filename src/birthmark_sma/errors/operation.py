"""Errors of backups, batches and load."""

from birthmark_sma.errors.authority import AuthorityError, ConflictError
from birthmark_sma.errors.base import BirthmarkError


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


class PreconditionFailedError(ConflictError):
    """The object was changed since the caller read it (If-Match). Nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            "It was changed since you read it, so nothing was done. Read it again, and decide again"
        )


class CallerLeftError(AuthorityError):
    """The caller has closed the connection, so no response is sent."""

    def __init__(self) -> None:
        super().__init__("The caller left before its answer")


class MoveError(AuthorityError):
    """An authority cannot be moved to another database. The message says what to do."""


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


class RefusedByServerError(AuthorityError):
    """A server refuses an administrative request, or cannot fulfil it.

    The message is the server's own. `status` is the HTTP status. `same_as` is the class of the same
    error on a database, or None if there is no such class.
    """

    def __init__(
        self, message: str, *, status: int, same_as: type[BirthmarkError] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.same_as = same_as


class ShuttingDownError(AuthorityError):
    """The authority no longer accepts work. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("The authority is shutting down; try again shortly")
