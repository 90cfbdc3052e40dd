"""How often tests do what chance decides: seldom in `make test`, and often in `make soak`."""

import os

SOAKING = "BIRTHMARK_SOAK" in os.environ


def times(usual: int, soaking: int) -> int:
    """Return how often, which is the second number while soaking."""
    return soaking if SOAKING else usual
