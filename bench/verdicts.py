"""The performance targets, and the comparison of a report with them.

`bench.tables` prints them, and docs/performance.md shows them with the last run's figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from bench.figures import CONVENTIONAL, NO_DATABASE, NOOP, POSTGRESQL, SERVER, SQLITE, Report
from bench.parts import (
    bulk,
    memory,
    open_load,
    pages,
    processes,
    provisioning,
    replay,
    scale,
    start,
)
from birthmark_sma.pki.keys.ca_keys import CaKeyType

_CONNECTIONS = 128


class Outcome(StrEnum):
    """Result of comparing a measured value with its floor and its aim."""

    AIM = "aim reached"
    FLOOR = "floor reached"
    MISSED = "missed"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Target:
    """One performance target. `form` formats a value. `smaller` means that less is better."""

    what: str
    floor: float
    aim: float
    form: str
    measured: Callable[[Report], float | None]
    smaller: bool = False

    def outcome(self, report: Report) -> Outcome:
        """Compare the measured value with the floor and the aim."""
        value = self.measured(report)
        if value is None:
            return Outcome.NOT_MEASURED
        sign = -1 if self.smaller else 1
        if sign * value >= sign * self.aim:
            return Outcome.AIM
        return Outcome.FLOOR if sign * value >= sign * self.floor else Outcome.MISSED

    def value(self, report: Report) -> str:
        """Return the measured value as text, or an empty text if it was not measured."""
        value = self.measured(report)
        return "" if value is None else self.form.format(value)


def _rate(report: Report, side: str, database: str, batch: int = 1) -> float | None:
    series = report.find(
        side, database, batch=batch, connections=_CONNECTIONS if batch == 1 else None
    )
    return None if series is None else series.median("tokens_per_second")


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _against(
    side: str, database: str, other: str, other_database: str, batch: int = 1
) -> Callable[[Report], float | None]:
    return lambda report: _ratio(
        _rate(report, side, database, batch), _rate(report, other, other_database)
    )


def _slowest_start(report: Report) -> float | None:
    readings = [report.reading(start.name_of(each)) for each in (POSTGRESQL, SQLITE)]
    return max((each for each in readings if each is not None), default=None)


def _reading(name: str) -> Callable[[Report], float | None]:
    return lambda report: report.reading(name)


def _provisioning_share(report: Report) -> float | None:
    return _ratio(
        report.reading(provisioning.provisioned_name(CaKeyType.RSA_4096)),
        report.reading(provisioning.signing_name(CaKeyType.RSA_4096)),
    )


TARGETS = (
    Target(
        "one token a request, 128 connections, PostgreSQL, against the conventional way",
        *(60, 90, "{:,.1f} x"),
        _against(SERVER, POSTGRESQL, CONVENTIONAL, POSTGRESQL),
    ),
    Target(
        "the same with two processes, against the conventional way",
        *(90, 130, "{:,.1f} x"),
        _against(processes.name_of(2), POSTGRESQL, CONVENTIONAL, POSTGRESQL),
    ),
    Target(
        "one process against the no-op ASGI handler",
        *(0.35, 0.45, "{:.2f}"),
        _against(SERVER, POSTGRESQL, NOOP, NO_DATABASE),
    ),
    Target(
        "one process on SQLite (synchronous=FULL), against the conventional way on PostgreSQL",
        *(60, 80, "{:,.1f} x"),
        _against(SERVER, SQLITE, CONVENTIONAL, POSTGRESQL),
    ),
    Target(
        "batch of 1,000, tokens a second, PostgreSQL, against the conventional way",
        *(200, 300, "{:,.0f} x"),
        _against(SERVER, POSTGRESQL, CONVENTIONAL, POSTGRESQL, batch=1_000),
    ),
    Target(
        "p99 under an open load of 2,000 requests/s, PostgreSQL",
        *(30, 15, "{:.1f} ms"),
        _reading(open_load.name_of(POSTGRESQL, "p99")),
        smaller=True,
    ),
    Target(
        "throughput at 1,000,000 devices and 10,000,000 rows, against 1,000 and none",
        *(0.85, 0.95, "{:.2f}"),
        _against(scale.LARGE, POSTGRESQL, scale.SMALL, POSTGRESQL),
    ),
    Target(
        "/stats at 10,000,000 rows",
        *(50, 10, "{:.1f} ms"),
        _reading(scale.stats_name(scale.LARGE)),
        smaller=True,
    ),
    *(
        Target(
            f"every page of the dashboard at that size, {database}: the slowest of all",
            *(200, 100, "{:.0f} ms"),
            partial(pages.slowest, database=database),
            smaller=True,
        )
        for database in (POSTGRESQL, SQLITE)
    ),
    Target(
        "provisioning with an RSA-4096 issuer, durable, against the bare signing rate of one core",
        *(0.6, 0.85, "{:.2f}"),
        _provisioning_share,
    ),
    Target(
        "100,000 devices provisioned in bulk with an EC P-256 issuer",
        *(3_000, 6_000, "{:,.0f}/s"),
        _reading(bulk.NAME),
    ),
    Target(
        "second start to first answer, the slower database",
        *(2, 1, "{:.2f} s"),
        _slowest_start,
        smaller=True,
    ),
    Target(
        "resident memory after a million validations",
        *(150, 110, "{:.0f} MB"),
        _reading(memory.AFTER),
        smaller=True,
    ),
    *(
        Target(
            f"{side}, {database}, against the same server without one",
            *(0.9, 0.95, "{:.2f}"),
            _against(side, database, replay.WITHOUT, database),
        )
        for database in (POSTGRESQL, SQLITE)
        for side in (replay.WITH, replay.DUAL)
    ),
)
