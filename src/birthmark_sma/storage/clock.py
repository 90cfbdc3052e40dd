"""The clock by which things expire: the database's, so that no machine's own clock ends anything.

PostgreSQL's clock is asked now and then, and kept by this machine's monotonic clock in between:
whoever sets the machine's clock changes nothing, nor does a laptop's sleep. SQLite has no clock but
the machine's, which is trusted only after it has agreed with the monotonic clock for an hour.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from birthmark_sma.elapsed import seconds_since_boot

STEADY_SECONDS = 3600.0
"""How long the machine's clock must have been right before SQLite's rows are deleted by it."""
_JUMP_SECONDS = 3600.0
_TOLERATED_SECONDS = 5.0
_NOTHING_HAS_EXPIRED = datetime.fromtimestamp(0, UTC)


class DatabaseClock:
    """Tells the time of a database. Safe to use from any thread.

    `ask` returns PostgreSQL's time, or raises DatabaseUnavailableError; SQLite has None.
    """

    def __init__(self, ask: Callable[[], datetime] | None) -> None:
        self._ask = ask
        self._offset: float | None = None  # of their clock from the monotonic one
        self._own_offset = _own_offset()
        self._steady_since = seconds_since_boot()
        self._jump = 0.0

    def look(self) -> None:
        """Ask the database. Raises DatabaseUnavailableError, with the last answer still in use."""
        if self._ask is None:
            self._notice_jumps()
            return
        before = seconds_since_boot()
        theirs = self._ask().timestamp()
        took = seconds_since_boot() - before
        if self._offset is None or took <= _TOLERATED_SECONDS:  # a slow answer says too little
            self._offset = theirs - before - took / 2

    def now(self) -> datetime:
        """Return the time. Only the first time PostgreSQL is asked for it."""
        if self._ask is None:
            return datetime.fromtimestamp(time.time(), UTC)
        if self._offset is None:
            self.look()
        return datetime.fromtimestamp(seconds_since_boot() + (self._offset or 0.0), UTC)

    def expired_before(self, lifetime: timedelta) -> datetime:
        """Return the time before which whatever has this lifetime has expired and may go.

        On SQLite nothing has, while the machine's clock is not trusted.
        """
        if self._ask is None:
            self._notice_jumps()
            if seconds_since_boot() - self._steady_since < STEADY_SECONDS:
                return _NOTHING_HAS_EXPIRED
        return self.now() - lifetime

    def complaint(self) -> str | None:
        """Say in a few words what is wrong with the machine's clock; None where nothing is."""
        if self._ask is None:
            self._notice_jumps()
            recent = seconds_since_boot() - self._steady_since < _JUMP_SECONDS
            if not (self._jump and recent):
                return None
            way = "forward" if self._jump > 0 else "back"
            return f"was set {way} by {abs(self._jump):,.0f} seconds"
        drift = time.time() - self.now().timestamp()
        if abs(drift) <= _TOLERATED_SECONDS:
            return None
        return f"{abs(drift):,.0f} seconds {'ahead of' if drift > 0 else 'behind'} the database's"

    def _notice_jumps(self) -> None:
        jump = _own_offset() - self._own_offset
        if abs(jump) > _JUMP_SECONDS:
            self._own_offset += jump
            self._steady_since = seconds_since_boot()
            self._jump = jump


def _own_offset() -> float:
    return time.time() - seconds_since_boot()
