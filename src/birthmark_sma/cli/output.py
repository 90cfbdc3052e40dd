"""What a person sees: text to stdout, progress to stderr and only on a terminal."""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

Progressed = Callable[[int, int | None], None]
"""Takes what is done and what there is to do; None where that is not known."""


def print_line(text: str = "") -> None:
    """Print a line for a person, in colours where a terminal has them and nobody declined them."""
    declined = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.echo(text, color=False if declined else None)


def print_stderr(text: str) -> None:
    """Print a line beside the result, to stderr, so that a pipe gets the result alone."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a value for a script."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns, several lines of a value below each other."""
    width = max(len(name) for name, _ in fields) + 2
    for name, value in fields:
        first, *others = value.splitlines() or [""]
        print_line(f"{typer.style(name.ljust(width), dim=True)}{first}")
        for line in others:
            print_line(" " * width + line)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()
) -> None:
    """Print a table as wide as its content: a pipe gets whole values, never shortened ones.

    The columns that `numbers` names stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for index, row in enumerate([columns, *rows]):
        cells = zip(columns, row, widths, strict=True)
        line = "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in cells
        ).rstrip()
        print_line(typer.style(line, bold=True) if index == 0 else line)


@contextmanager
def progress_bar(
    what: str, *, of_bytes: bool = False, transient: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function that moves a bar, silent where stderr is no terminal.

    A transient one is gone when its work is done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    counted = (DownloadColumn(), TimeRemainingColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counted)
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=transient
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something is under way of which nobody knows how long it takes.

    Silent where stderr is no terminal, and gone at the end.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
