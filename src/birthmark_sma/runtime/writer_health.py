"""The health of one writer: did its last write succeed in time, and does anything hang?

`storage.group_commit` reports every batch, `authority.background.write_check` its probing writes.
The health endpoints and the metrics read it. A writer that has written nothing yet counts as well.
Nothing here may wait or use the database.
"""

from time import monotonic, time
from typing import NamedTuple

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError

STALL_SECONDS = 5.0
"""The time after which a write counts as hanging: half of the default `answer_timeout`. Waiting
items alone are no fault: on a busy server they wait for their turn, while batches are committed."""


class _Outcome(NamedTuple):
    """The end of a batch or of a probing write: the time of `monotonic`, and the error if any."""

    at: float
    error: DatabaseUnavailableError | None


class WriterHealth:
    """The last outcome of a writer. Any thread may report and read: each field is set at once."""

    def __init__(self) -> None:
        self.last_commit = 0.0
        """The Unix time of the last committed batch, 0 if there was none."""
        self._last: _Outcome | None = None

    def committed(self, seconds: float) -> None:
        """Report a batch whose transaction took so many seconds and is committed now."""
        self.last_commit = time()
        self._last = _Outcome(monotonic(), _too_slow(seconds))

    def failed(self, error: DatabaseUnavailableError) -> None:
        """Report a batch that failed."""
        self._last = _Outcome(monotonic(), error)

    def probed(self, began: float, error: DatabaseUnavailableError | None) -> None:
        """Report a probing write, unless a batch has ended since it began at `began`."""
        if self._last is None or self._last.at <= began:
            now = monotonic()
            self._last = _Outcome(now, error or _too_slow(now - began))

    @property
    def is_known(self) -> bool:
        """True once a batch or a probing write has ended."""
        return self._last is not None

    def fault(self, oldest_seconds: float) -> DatabaseUnavailableError | None:
        """Return why this writer cannot write, or None if it can.

        `oldest_seconds` is the age of the oldest item without an answer, 0 if there is none.
        """
        last = self._last
        if last is not None and last.error is not None:
            return last.error
        idle = monotonic() - last.at if last is not None else oldest_seconds
        return _hangs() if min(oldest_seconds, idle) > STALL_SECONDS else None


def _too_slow(seconds: float) -> DatabaseUnavailableError | None:
    return _hangs() if seconds > STALL_SECONDS else None


def _hangs() -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"Writing to the database takes longer than {STALL_SECONDS:.0f} seconds",
        "look for locks, a slow disk, or a synchronous standby that is away",
        DatabaseFault.BUSY,
    )
