"""Print results to stdout, and messages and progress to stderr.

Every command uses these functions. A progress bar appears only if stderr is a terminal. stdout
carries the result alone, so that a script can parse it.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

Progressed = Callable[[int, int | None], None]
"""Callback of a progress bar: takes the number done and the total, or None if it is unknown."""


def print_line(text: str = "") -> None:
    """Print a line to stdout. Use colours only on a terminal, without NO_COLOR and TERM=dumb."""
    declined = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.echo(text, color=False if declined else None)


def print_stderr(text: str) -> None:
    """Print a line to stderr, so that a pipe gets only the result."""
    typer.echo(text, err=True)


def program_name() -> str:
    """Return how this program is started: `sma` if that is on PATH, else the way it was now."""
    if shutil.which("sma"):
        return "sma"
    as_module = sys.argv[0].endswith(".py")
    return shlex.join([sys.executable, "-m", "birthmark_sma"] if as_module else sys.argv[:1])


def quoted(text: str) -> str:
    """Return a text in quotes, for a command that is printed to be copied into a shell (POSIX).

    Devices choose their serials: a quote in one must not end the argument.
    """
    return "'" + text.replace("'", "'\\''") + "'"


def as_argument(name: str) -> str:
    """Return a name as a positional argument, as `quoted` does: `-x` is a serial, no option."""
    return f"-- {quoted(name)}" if name.startswith("-") else quoted(name)


def print_json(value: Any) -> None:
    """Print a value to stdout as indented JSON. Times are in UTC (RFC 3339), days in ISO 8601."""
    from birthmark_sma.authority.representations.json_text import as_json_text

    typer.echo(as_json_text(value, indent=2))


def print_object(value: "BaseModel") -> None:
    """Print an object of the administration API to stdout as JSON, without members it has not."""
    print_json(value.model_dump(exclude_unset=True))


def confirm(what: str, question: str, advice: str, *, yes: bool) -> None:
    """Ask before a deletion, unless `yes` is true. Raises Abort if the answer is no.

    `what` tells the consequence. Raises BadParameter with `advice` if nobody can be asked.
    """
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter(f"{what} {advice}")
    if not yes:
        typer.confirm(f"{what} {question}", abort=True, err=True)


def pause(seconds: float) -> bool:
    """Sleep between two transactions. Return False: a command never stops early, as servers do."""
    time.sleep(seconds)
    return False


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns. Lines of a value stand below each other."""
    width = max(len(name) for name, _ in fields) + 2
    for name, value in fields:
        first, *others = value.splitlines() or [""]
        print_line(f"{typer.style(name.ljust(width), dim=True)}{first}")
        for line in others:
            print_line(" " * width + line)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()
) -> None:
    """Print a table as wide as its content. Values are never shortened, so a pipe gets them whole.

    `numbers` lists the columns to align to the right.
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
    """Show a progress bar and yield the function that moves it. Silent if stderr is no terminal.

    `of_bytes` shows sizes in place of counts. `transient` removes the bar at the end.
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
    """Show a spinner during work of unknown duration, and remove it at the end.

    Silent if stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
