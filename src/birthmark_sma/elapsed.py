"""A monotonic clock that also counts while the machine sleeps.

`storage.clock` and the camera's modules in `device` use it. It does not return a date.
"""

import time


def seconds_since_boot() -> float:
    """Return seconds since some fixed moment, at best including the time that the machine slept.

    Systems without CLOCK_BOOTTIME use `time.monotonic` instead.
    """
    # On Linux `time.monotonic` stops during sleep. A camera sleeps most of the time, a laptop at
    # night.
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
