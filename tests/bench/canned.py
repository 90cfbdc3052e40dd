"""A report as a whole run would leave it, with figures chosen so that each verdict is known."""

from dataclasses import asdict

from bench.figures import (
    CONVENTIONAL,
    NO_DATABASE,
    NOOP,
    POSTGRESQL,
    SERVER,
    SQLITE,
    Report,
    Round,
    Series,
)
from bench.options import Options
from bench.parts import open_load, start


def a_series(side: str, database: str, connections: int, rate: float, batch: int = 1) -> Series:
    rounds = [Round(rate * share, 9.5, 12.25, 1_234.5, 0.05, 0.025, 102.4) for share in (0.9, 1, 2)]
    return Series(side, database, connections, batch, rounds)


def report() -> Report:
    """100 times the conventional way, half of the no-op handler, batches 200 times."""
    made = Report({"cores": "2", "PostgreSQL": "18.6"}, asdict(Options()))
    made.series.extend(
        [
            a_series(CONVENTIONAL, POSTGRESQL, 32, 110),
            a_series(CONVENTIONAL, POSTGRESQL, 128, 100),
            a_series(NOOP, NO_DATABASE, 128, 20_000),
            a_series(SERVER, POSTGRESQL, 128, 10_000),
            a_series(SERVER, SQLITE, 128, 4_000),
            a_series(SERVER, POSTGRESQL, 4, 20_000, batch=1_000),
        ]
    )
    for value in (14.0, 40.0, 20.0):
        made.read(open_load.name_of(POSTGRESQL, "p99"), "ms", value)
    made.read(start.name_of(POSTGRESQL), "s", 0.5)
    made.read(start.name_of(SQLITE), "s", 0.9)
    return made
