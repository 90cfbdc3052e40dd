"""Return the time of the database's clock. All expiry and retention uses this clock.

PostgreSQL's clock is read from time to time. In between, this machine's monotonic clock counts on,
so setting the machine's clock or putting a laptop to sleep has no effect. SQLite has no clock of
its own. There the machine's clock decides what has expired, and only after it has agreed with the
monotonic clock for an hour. No other module may read the machine's clock to decide what to delete.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from birthmark_sma.elapsed import seconds_since_boot

STEADY_SECONDS = 3600.0
"""Seconds without a jump before the machine's clock decides which rows of SQLite have expired."""
# A larger step of the machine's clock is a jump, which is reported for as long.
_JUMP_SECONDS = 3600.0
# Drift that is not reported, and the longest duration of a query whose answer is used.
_TOLERATED_SECONDS = 5.0
_NOTHING_HAS_EXPIRED = datetime.fromtimestamp(0, UTC)


class DatabaseClock:
    """The clock of one database. Safe to use from any thread.

    `ask` returns PostgreSQL's time, or raises DatabaseUnavailableError. It is None for SQLite.
    """

    def __init__(self, ask: Callable[[], datetime] | None) -> None:
        self._ask = ask
        # PostgreSQL's clock minus the monotonic clock, in seconds.
        self._offset: float | None = None
        self._own_offset = _own_offset()
        self._steady_since = seconds_since_boot()
        self._jump = 0.0

    def look(self) -> None:
        """Read the database's clock again.

        Raises DatabaseUnavailableError; the time that was read before then stays in use.
        """
        if self._ask is None:
            self._notice_jumps()
            return
        before = seconds_since_boot()
        theirs = self._ask().timestamp()
        took = seconds_since_boot() - before
        # A slow answer is too inexact to replace an offset that is known.
        if self._offset is None or took <= _TOLERATED_SECONDS:
            self._offset = theirs - before - took / 2  # the server read its clock half way

    def now(self) -> datetime:
        """Return the current time in UTC. Only the first call queries PostgreSQL."""
        if self._ask is None:
            return datetime.fromtimestamp(time.time(), UTC)
        if self._offset is None:
            self.look()
        return datetime.fromtimestamp(seconds_since_boot() + (self._offset or 0.0), UTC)

    def expired_before(self, lifetime: timedelta) -> datetime:
        """Return the time before which rows with this lifetime have expired and may be deleted.

        On SQLite this is 1970 while the machine's clock is not trusted, so nothing has expired.
        """
        if self._ask is None:
            self._notice_jumps()
            if seconds_since_boot() - self._steady_since < STEADY_SECONDS:
                return _NOTHING_HAS_EXPIRED
        return self.now() - lifetime

    def complaint(self) -> str | None:
        """Return a few words on what is wrong with the machine's clock, or None if it is right."""
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
    # Constant until an operator or NTP sets the machine's clock.
    return time.time() - seconds_since_boot()
