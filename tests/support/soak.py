"""The number of repetitions of randomized tests: few in `make test`, many in `make soak`."""

import os

SOAKING = "BIRTHMARK_SOAK" in os.environ


def times(usual: int, soaking: int) -> int:
    """Return `soaking` if BIRTHMARK_SOAK is set, else `usual`."""
    return soaking if SOAKING else usual


def tell(line: str) -> None:
    """Print a line of a measurement."""
    print(line)  # noqa: T201  what a soak is for
