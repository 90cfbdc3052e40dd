"""The table of faults in docs/operate/faults.md, and its figures in faults.json beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.machine import TOP
from checks.reference_pages.marks import table as markdown_table
from tests.faults.catalog import FAULTS
from tests.faults.fault import Result

PAGE = TOP / "docs" / "operate" / "faults.md"
BEGIN = "<!-- faults: begin, written by `make faults` -->"
END = "<!-- faults: end -->"
HEADER = (
    "fault",
    "what clients saw",
    "longest without a verdict",
    "ready",
    "live",
    "service back",
    "acknowledged",
    "lost / doubled / wrong",
)


def cells(result: Result) -> tuple[str, ...]:
    """Return the cells of a row."""
    ready = "stayed 200"
    if result.unready is not None and result.ready is not None:
        ready = f"not ready after {result.unready:.1f} s, ready again after {result.ready:.1f} s"
    return (
        result.name,
        result.clients,
        f"{result.gap:.1f} s",
        ready,
        result.live,
        f"{result.back:.1f} s",
        f"{result.acknowledged:,}",
        f"{result.lost} / {result.doubled} / {result.wrong}",
    )


def render(machine: Mapping[str, str], results: Iterable[Result]) -> str:
    """Return the generated part of the page: the machine, the sums, a table for each bed."""
    done = list(results)
    lines = ", ".join(
        f"{name} {value}" for name, value in machine.items() if name not in {"measured", "commit"}
    )
    sums = (
        f"{len(done)} faults, {sum(each.acknowledged for each in done):,} acknowledged verdicts:"
        f" {sum(each.lost for each in done)} lost, {sum(each.doubled for each in done)} doubled,"
        f" {sum(each.wrong for each in done)} wrong."
    )
    parts = [f"{sums} Played on {machine['measured'][:10]}: {lines}."]
    for bed, group in groupby(done, key=lambda each: each.bed):
        parts.append(f"### {bed}\n\n{markdown_table(HEADER, [cells(each) for each in group])}")
    return "\n\n".join(each.strip() for each in parts)


def write(machine: Mapping[str, str], results: Iterable[Result], page: Path = PAGE) -> None:
    """Renew the figures of these faults, and drop those of faults that are no more."""
    figures = page.with_suffix(".json")
    known = {(each.bed, each.name): each for each in read(figures)}
    known |= {(each.bed, each.name): each for each in results}
    listed = [(each.bed.value, each.name) for each in FAULTS]
    kept = [known[each] for each in listed if each in known]
    document = {"machine": dict(machine), "results": [asdict(each) for each in kept]}
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page} has no place for the table of faults")
    figures.write_text(f"{json.dumps(document, indent=1)}\n", encoding="utf-8")
    part = f"{BEGIN}\n\n{render(machine, kept)}\n\n{END}"
    page.write_text(f"{before}{part}{after}", encoding="utf-8")


def read(figures: Path) -> Sequence[Result]:
    """Return the results of the last run. Empty if there is none."""
    if not figures.exists():
        return []
    document: dict[str, list[dict[str, Any]]] = json.loads(figures.read_text(encoding="utf-8"))
    return [
        Result(**(each | {"complaints": tuple(each["complaints"])})) for each in document["results"]
    ]
