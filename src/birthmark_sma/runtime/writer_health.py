"""The health of one writer: did its last write succeed in time, and does anything hang?

`storage.group_commit` reports every batch, `authority.background.write_check` its probing writes.
The health endpoints and the metrics read it. A writer that has written nothing yet counts as well.
Nothing here may wait or use the database.
"""

from time import monotonic
from typing import NamedTuple

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError

STALL_SECONDS = 5.0
"""The time after which a write counts as hanging: half of the default `answer_timeout`. Waiting
items alone are no fault: on a busy server they wait for their turn, while batches are committed."""


class Outcome(NamedTuple):
    """The end of a batch or of a probing write, at a time of `monotonic`."""

    at: float
    error: DatabaseUnavailableError | None
    seconds: float = 0.0
    """The time of a transaction that was committed."""


class WriterHealth:
    """The last outcome of a writer. Any thread may set and read it: each field is set at once."""

    def __init__(self) -> None:
        self.last_commit = 0.0
        """The Unix time of the last committed batch, 0 if there was none."""
        self.last: Outcome | None = None
        """The last outcome. The writer sets it after each batch that was committed."""
        self._failing_since = 0.0  # the time of the first failure after the last success

    def failed(self, at: float, error: DatabaseUnavailableError, seconds: float = 0.0) -> None:
        """Report a batch or a probing write that failed, at a time of `monotonic`."""
        if self.last is None or self.last.error is None:
            self._failing_since = at
        self.last = Outcome(at, error, seconds)

    def outage_seconds(self, oldest_seconds: float) -> float:
        """Return for how long nothing could be written, in seconds; 0 without a fault."""
        if self.fault(oldest_seconds) is None:
            return 0.0
        last = self.last
        failing = monotonic() - self._failing_since if last and last.error else 0.0
        return max(failing, oldest_seconds)

    def probed(self, began: float, error: DatabaseUnavailableError | None) -> None:
        """Report a probing write, unless a batch has ended since it began at `began`."""
        if self.last is None or self.last.at <= began:
            now = monotonic()
            if error is None:
                self.last = Outcome(now, None, now - began)
            else:
                self.failed(now, error, now - began)

    @property
    def is_known(self) -> bool:
        """True once a batch or a probing write has ended."""
        return self.last is not None

    def fault(self, oldest_seconds: float) -> DatabaseUnavailableError | None:
        """Return why this writer cannot write, or None if it can.

        `oldest_seconds` is the age of the oldest item without an answer, 0 if there is none.
        """
        last = self.last
        if last is not None and last.error is not None:
            return last.error
        if last is not None and last.seconds > STALL_SECONDS:
            return _hangs()
        idle = monotonic() - last.at if last is not None else oldest_seconds
        return _hangs() if min(oldest_seconds, idle) > STALL_SECONDS else None


def _hangs() -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"Writing to the database takes longer than {STALL_SECONDS:.0f} seconds",
        "look for locks, a slow disk, or a synchronous standby that is away",
        DatabaseFault.BUSY,
    )
