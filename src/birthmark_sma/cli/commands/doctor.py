"""`sma doctor`: examine the authority, print findings and remedies, exit with the worst state.

The checks are in `authority/operations/doctor`. The command must never change anything.
"""

import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_json, print_line, progress_bar
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from birthmark_sma.authority.operations.doctor.findings import Finding
    from birthmark_sma.config import Settings

_MARKS = {"well": ("✓", "green"), "noted": ("i", "blue"), "warning": ("!", "yellow")}
_WORST_MARK = ("✗", "red")
# Monitors read these codes, so they differ from those in `cli/exit_codes.py`.
_CODES = {"well": 0, "noted": 0, "warning": 1, "critical": 2}
_NARROWEST = 40
"""Columns that a sentence needs beside its name. With fewer, it is printed below the name."""


def doctor(
    settings: "Settings",
    whole_trail: Annotated[
        bool,
        Option(
            "--whole-trail",
            help="Compare the complete audit log with its counters. This can take long.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the authority, and print faults with their remedies. Nothing is changed.

    Use the settings of the server, and run the command as the server's user.

    \b
    Exit codes, for monitors:
      0  no fault                  2  critical: the authority fails, or data is in danger
      1  warnings                  3  the settings are invalid, so nothing was checked
    """
    from datetime import UTC, datetime

    from birthmark_sma.authority.operations.doctor.findings import worst
    from birthmark_sma.authority.operations.doctor.runner import Extent, examine

    with progress_bar("Checking", transient=True) as progress:
        extent = Extent(audit_rows=None) if whole_trail else Extent()
        findings = examine(settings, datetime.now(UTC), progress, extent=extent)
    state = worst(findings).value
    if as_json:
        print_json({"state": state, "findings": [asdict(each) for each in findings]})
    else:
        print_findings(findings)
    if _CODES[state]:
        raise typer.Exit(_CODES[state])


def print_findings(findings: "list[Finding]") -> None:
    """Print findings with their remedies, then the number of faults."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    wide = max((len(each.name) for each in findings), default=0)
    beside = columns is None or columns - wide - 4 >= _NARROWEST
    indent = wide + 4 if beside else 2
    for each in findings:
        mark, colour = _MARKS.get(each.state.value, _WORST_MARK)
        bold = each.state.value in {"warning", "critical"}
        lines = [typer.style(line, bold=bold) for line in _lines(each.sentence, columns, indent)]
        head = f"{typer.style(_written(mark), fg=colour, bold=True)} {each.name}"
        if beside:
            # Padded without the codes of colours, which take no columns.
            head += " " * (wide - len(each.name)) + f"  {lines.pop(0)}"
        remedy = _lines(each.remedy, columns, indent + 2) if each.remedy else []
        lines += ["  " + typer.style(line, fg=colour) for line in remedy]
        for line in (head, *(" " * indent + line for line in lines)):
            print_line(line)
    states = Counter(each.state.value for each in findings)
    faults = f"{states['critical']} critical, {counted(states['warning'], 'warning')}."
    some = states["critical"] or states["warning"]
    print_line(f"\n{faults if some else 'No fault was found.'}")


def _lines(sentence: str, columns: int | None, indent: int) -> list[str]:
    """Wrap a sentence to the terminal's width. `columns` is None for a pipe: one line."""
    text = sentence if sentence.endswith(("?", ".")) else f"{sentence}."
    if columns is None:
        return [text]
    width = max(columns - indent, 1)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _written(mark: str) -> str:
    """Return the mark, or an ASCII character if stdout's encoding does not have the mark."""
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return {"✓": "+", "✗": "X"}[mark]
    return mark
