"""Print a report, and write its figures into docs/performance.md, so that none is typed by hand.

`bench.__main__` calls it. In the document, text outside the two marks is never changed.
"""

import shutil
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from bench.figures import Report
from bench.tables import Table, all_tables

BEGIN = "<!-- figures: begin, written by `make bench-docs` -->"
END = "<!-- figures: end -->"
_COLOURS = {"aim reached": "green", "floor reached": "yellow", "missed": "red"}


def print_report(report: Report, console: Console) -> None:
    """Print every table, then the faults that make the run invalid."""
    for table in all_tables(report):
        print_table(table, console)
    for fault in report.faults:
        console.print(f"FAULT {fault}", style="bold red", markup=False, highlight=False)
    if report.faults:
        console.print("This run is INVALID.", style="bold red")


def print_table(table: Table, console: Console) -> None:
    """Print an empty line, then the table. Names of verdicts are coloured."""
    made = RichTable(
        title=table.title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, column in enumerate(table.columns):
        figure = number >= table.words
        made.add_column(
            column, justify="right" if figure else "left", no_wrap=figure, overflow="fold"
        )
    for row in table.rows:
        colour = _COLOURS.get(row[-1])
        made.add_row(*row[:-1], f"[{colour}]{row[-1]}[/]" if colour else row[-1])
    console.print()
    console.print(made)


def fill_document(document: Path, results: Path) -> None:
    """Write the tables between the two marks, and copy JSON and PNG to the document's folder.

    Raises ValueError if the document does not have both marks.
    """
    report = Report.from_json((results / "last.json").read_text(encoding="utf-8"))
    for kind in ("json", "png"):
        shutil.copyfile(results / f"last.{kind}", document.with_suffix(f".{kind}"))
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{document} has no place for the figures: {BEGIN} and {END}")
    picture = f"![Tokens a second of each side]({document.with_suffix('.png').name})"
    faults = [f"**This run is invalid:** {fault}" for fault in report.faults]
    parts = [*map(as_markdown, all_tables(report)), picture, *faults]
    document.write_text("\n\n".join([before + BEGIN, *parts, END]) + after, encoding="utf-8")


def as_markdown(table: Table) -> str:
    """Return a table in Markdown, with its title in bold above it."""
    rule = ["---" if number < table.words else "---:" for number in range(len(table.columns))]
    rows = [table.columns, rule, *table.rows]
    return f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
