"""The tables of a report: readable in a terminal of 100 columns, and as Markdown."""

import io
from dataclasses import replace

from rich.console import Console

from bench.output import as_markdown, print_report
from bench.tables import all_tables
from tests.bench import canned


def printed(width: int = 100) -> str:
    text = io.StringIO()
    print_report(canned.report(), Console(file=text, width=width))
    return text.getvalue()


def line_with(start: str) -> str:
    return next(line.strip() for line in printed().splitlines() if line.strip().startswith(start))


def test_a_hundred_columns_are_enough() -> None:
    assert max(map(len, printed().splitlines())) <= 100
    assert line_with("sma serve, PostgreSQL by 1000").split()[4:] == [
        *("1000", "4", "20,000", "9.50", "12.2", "1,234"),
        *("182", "1.00", "0.050", "0.025", "102"),
    ]


def test_ratios_are_to_the_same_number_of_connections() -> None:
    cells = line_with("sma serve, PostgreSQL   ").split()
    assert cells[-5:-3] == ["100", "0.50"]


def test_what_spoils_a_run_is_said_at_the_end() -> None:
    text = io.StringIO()
    report = replace(canned.report(), faults=["3 [rows] are missing"])
    print_report(report, Console(file=text, width=100))
    assert text.getvalue().endswith("FAULT 3 [rows] are missing\nThis run is INVALID.\n")
    assert "INVALID" not in printed()


def test_markdown_has_the_same_cells() -> None:
    table = all_tables(canned.report())[0]
    lines = as_markdown(table).splitlines()
    assert lines[0] == f"**{table.title}**"
    assert lines[3].startswith("| --- | ---: |")
    assert len(lines) == 4 + len(table.rows)
