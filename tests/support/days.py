"""The current day in UTC, for tests of what is kept by day.

pytest imports a test a quarter of an hour before it runs it, so a module must not keep the day.
"""

import time
from datetime import UTC, datetime, timedelta

from birthmark_sma.authority.background.retention import midnight

DAY = timedelta(days=1)
_LEAST = timedelta(seconds=30)


def current_time() -> datetime:
    """Return the current time, at least 30 seconds before midnight.

    Wait for the next day if this one ends sooner: a test that runs over midnight compares two days.
    """
    now = datetime.now(UTC)
    left = midnight(now) + DAY - now
    if left > _LEAST:
        return now
    time.sleep(left.total_seconds())
    return datetime.now(UTC)


def today() -> datetime:
    """Return the start of the current day. Wait as `current_time` does."""
    return midnight(current_time())
