"""The number of repetitions of randomized tests: few in `make test`, many in `make soak`."""

import os

SOAKING = "BIRTHMARK_SOAK" in os.environ


def times(usual: int, soaking: int) -> int:
    """Return `soaking` if BIRTHMARK_SOAK is set, else `usual`."""
    return soaking if SOAKING else usual
