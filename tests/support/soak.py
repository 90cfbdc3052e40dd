"""The number of repetitions of randomized tests: few in `make test`, many in `make soak`."""

import os
from collections.abc import Sequence

SOAKING = "BIRTHMARK_SOAK" in os.environ


def times(usual: int, soaking: int) -> int:
    """Return `soaking` if BIRTHMARK_SOAK is set, else `usual`."""
    return soaking if SOAKING else usual


def tell(line: str) -> None:
    """Print a line of a measurement."""
    print(line)  # noqa: T201  what a soak is for


def tell_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table as wide as its content."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    tell("")
    for line in lines:
        cells = zip(line, widths, strict=True)
        tell("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
