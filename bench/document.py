"""Write the last run's figures into docs/performance.md, so that none is typed by hand.

`python -m bench --document` calls it. Text outside the two marks is never changed.
"""

import shutil
from pathlib import Path

from bench.figures import Report
from bench.tables import Table, all_tables

BEGIN = "<!-- figures: begin, written by `make bench-docs` -->"
END = "<!-- figures: end -->"


def fill(document: Path, results: Path) -> None:
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
    parts = [*map(as_markdown, all_tables(report)), picture, *_faults(report)]
    document.write_text("\n\n".join([before + BEGIN, *parts, END]) + after, encoding="utf-8")


def as_markdown(table: Table) -> str:
    """Return a table in Markdown, with its title in bold above it."""
    rule = ["---" if number < table.words else "---:" for number in range(len(table.columns))]
    rows = [table.columns, rule, *table.rows]
    return f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _faults(report: Report) -> list[str]:
    return [f"**This run is invalid:** {fault}" for fault in report.faults]
