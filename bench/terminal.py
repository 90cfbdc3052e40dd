"""Print a report to a terminal with rich."""

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from bench.figures import Report
from bench.tables import Table, all_tables

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
    """Print an empty line, then the table."""
    console.print()
    console.print(_rich(table))


def _rich(table: Table) -> RichTable:
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
        made.add_row(*row[:-1], _coloured(row[-1]))
    return made


def _coloured(cell: str) -> str:
    colour = _COLOURS.get(cell)
    return f"[{colour}]{cell}[/]" if colour else cell
