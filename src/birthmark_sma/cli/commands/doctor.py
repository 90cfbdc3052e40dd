"""`sma doctor`: examine the authority, print findings and remedies, exit with the worst state.

The checks are in `authority/operations/doctor`. The command must never change anything.
"""

import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli.options import (
    AuditRetentionDays,
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    RootKeyFile,
    settings_from,
)
from birthmark_sma.cli.output import print_json, print_line, progress_bar

if TYPE_CHECKING:
    from birthmark_sma.authority.operations.doctor.findings import Finding

_MARKS = {"well": ("✓", "green"), "noted": ("i", "blue"), "warning": ("!", "yellow")}
_WORST_MARK = ("✗", "red")
# Monitors read these codes, so they differ from those in `cli/exit_codes.py`.
_CODES = {"well": 0, "noted": 0, "warning": 1, "critical": 2}
_NARROWEST = 40
"""Columns that a sentence needs beside its name. With fewer, it is printed below the name."""


def doctor(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    root_key_file: RootKeyFile = None,
    audit_retention_days: AuditRetentionDays = None,
    whole_trail: Annotated[
        bool,
        typer.Option(
            "--whole-trail", help="Compare all of the audit trail with its counters, however long."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at everything, and say what to do about what is not well. Changes nothing.

    Give it the settings that the server runs with, and run it as the server's user.

    \b
    Exit codes, for monitors:
      0  all is well               2  critical: it does not work, or data are in danger
      1  warnings                  3  the settings cannot be used, so nothing was looked at
    """
    from datetime import UTC, datetime

    from birthmark_sma.authority.operations.doctor.findings import worst
    from birthmark_sma.authority.operations.doctor.runner import examine

    settings = settings_from(
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        root_key_file=root_key_file,
        audit_retention_days=audit_retention_days,
    )
    with progress_bar("Looking", transient=True) as progress:
        findings = examine(settings, datetime.now(UTC), progress, whole_trail=whole_trail)
    state = worst(findings).value
    if as_json:
        print_json({"state": state, "findings": [_as_json(each) for each in findings]})
    else:
        _tell(findings)
    if _CODES[state]:
        raise typer.Exit(_CODES[state])


def _as_json(finding: "Finding") -> dict[str, str | None]:
    return {
        "state": finding.state.value,
        "name": finding.name,
        "sentence": finding.sentence,
        "remedy": finding.remedy,
    }


def _tell(findings: "list[Finding]") -> None:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    wide = max(len(each.name) for each in findings)
    indent = wide + 4
    beside = columns is None or columns - indent >= _NARROWEST
    for each in findings:
        mark, colour = _MARKS.get(each.state.value, _WORST_MARK)
        bold = each.state.value in {"warning", "critical"}
        styled = typer.style(_written(mark), fg=colour, bold=True)
        if not beside:
            print_line(f"{styled} {each.name}")
            indent = 2
        lines = _lines(_ended(each.sentence), columns, indent)
        if beside:
            first, *lines = lines
            print_line(f"{styled} {each.name.ljust(wide)}  {typer.style(first, bold=bold)}")
        for line in lines:
            print_line(" " * indent + typer.style(line, bold=bold))
        for line in _lines(_ended(each.remedy), columns, indent + 2) if each.remedy else []:
            print_line(" " * (indent + 2) + typer.style(line, fg=colour))
    counted = Counter(each.state.value for each in findings)
    print_line()
    if counted["critical"] or counted["warning"]:
        print_line(f"{counted['critical']} critical, {counted['warning']} warnings.")
    else:
        print_line("All is well.")


def _lines(text: str, columns: int | None, indent: int) -> list[str]:
    """Wrap a sentence to the terminal's width. `columns` is None for a pipe: one line."""
    if columns is None:
        return [text]
    width = max(columns - indent, 1)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", ".")) else f"{sentence}."


def _written(mark: str) -> str:
    """Return the mark, or an ASCII character if stdout's encoding does not have the mark."""
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return {"✓": "+", "✗": "X"}[mark]
    return mark
