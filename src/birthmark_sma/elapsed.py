"""A clock for pauses: it never goes back, and nobody sets it."""

import time


def seconds_since_boot() -> float:
    """Return seconds that also count while the machine sleeps, where the system has such a clock.

    A camera sleeps most of its time, a laptop at night, and `time.monotonic` stands still then on
    Linux.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
