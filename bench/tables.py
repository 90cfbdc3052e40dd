"""Convert a report into tables, the same for the terminal and for docs/performance.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import CONVENTIONAL, NO_DATABASE, NOOP, POSTGRESQL, Report, Series
from bench.verdicts import TARGETS


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. The first `words` columns are text, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


def all_tables(report: Report) -> list[Table]:
    """Return the tables of a report that have rows."""
    tables = [_load(report), _readings(report), _verdicts(report), _machine(report)]
    return [table for table in tables if table.rows]


def _load(report: Report) -> Table:
    columns = (
        *("closed load", "conn.", "per s", "p50", "p95", "p99"),
        *("/conv.", "/no-op", "CPU", "db", "MB"),
    )
    rows = [_row(report, each) for each in report.series if each.rounds]
    title = "Tokens a second; ms; CPU seconds a thousand tokens of server and database; resident MB"
    return Table(title, columns, rows, words=1)


def _row(report: Report, series: Series) -> list[str]:
    rate = series.median("tokens_per_second")
    return [
        series.name,
        str(series.connections),
        f"{rate:,.0f}",
        *(_figure(series.median(name)) for name in ("p50_ms", "p95_ms", "p99_ms")),
        _times(report, series, rate, CONVENTIONAL, POSTGRESQL),
        _times(report, series, rate, NOOP, NO_DATABASE),
        f"{series.median('server_cpu'):.3f}",
        f"{series.median('database_cpu'):.3f}" if series.database == POSTGRESQL else "",
        f"{series.median('resident_mb'):.0f}",
    ]


def _times(report: Report, series: Series, rate: float, side: str, database: str) -> str:
    """Return `rate` divided by the other side's rate, as text, or an empty text if there is none.

    The other side's series with the same number of connections counts. A batch series has fewer
    connections, so it is compared with the other side's fastest series.
    """
    candidates = [each for each in report.series if (each.side, each.database) == (side, database)]
    same = [each for each in candidates if each.connections == series.connections]
    others = [each.median("tokens_per_second") for each in same or candidates if each.rounds]
    if not any(others) or series.side == side:
        return ""
    return _figure(rate / max(others))


def _readings(report: Report) -> Table:
    rows = [
        [
            each.name,
            each.unit,
            _figure(each.median),
            _figure(min(each.rounds)),
            _figure(max(each.rounds)),
        ]
        for each in report.readings
    ]
    return Table("Single figures", ("what", "unit", "median", "least", "most"), rows, words=2)


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _verdicts(report: Report) -> Table:
    rows = [
        [
            target.what,
            target.form.format(target.floor),
            target.form.format(target.aim),
            target.value(report),
            target.outcome(report).value,
        ]
        for target in TARGETS
    ]
    columns = ("what", "at least", "aim", "measured", "verdict")
    small = ", but NOT by this run with its small numbers" if report.options["small"] else ""
    return Table(f"What must be shown{small}", columns, rows, words=1)


def _machine(report: Report) -> Table:
    rows = [[name, value] for name, value in report.machine.items()]
    for name in ("rounds", "seconds", "devices", "tokens"):
        rows.append([name, f"{report.options[name]:,g}"])
    return Table("The run", ("on", ""), rows, words=2)
