"""Draw the report of a run as SVG, for light and dark mode, without scripts and embedded fonts.

`cli.simulate` calls it, and `cli.drill` draws with the same style. Pure: the chart must depend on
the report alone, so that a stored report can be drawn again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from birthmark_sma.counts import counted

# The layout, in SVG units.
_WIDTH = 960
_LEFT, _RIGHT = 32, 928
_COURSE_TOP, _COURSE_HEIGHT = 132, 120
_TABLE_TOP = 336
_ROW = 26
_BARS, _BARS_WIDTH = 570, 200
_NOTE_ROW = 18
_NOTE_CHARACTERS = 145  # in a line

_STYLE = """
svg { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.ground { fill: #ffffff; } .text { fill: #1c1e21; } .dim { fill: #5f666e; }
.line { stroke: #d5d9dd; } .track { fill: #eef0f2; }
.passed { fill: #2f7fb8; } .refused { fill: #b9770e; } .wrong { fill: #c62828; }
.good { fill: #1f7a3d; } .bad { fill: #c62828; }
.title { font-size: 22px; font-weight: 600; } .head { font-weight: 600; }
.small { font-size: 12px; }
.number { text-anchor: end; font-variant-numeric: tabular-nums; } .middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #16181b; } .text { fill: #e8eaed; } .dim { fill: #9aa3ad; }
  .line { stroke: #3a4047; } .track { fill: #262a2f; }
  .passed { fill: #5aa9e0; } .refused { fill: #e0a03a; } .wrong { fill: #ff6b6b; }
  .good { fill: #5fc98a; } .bad { fill: #ff6b6b; }
}
"""


def chart(report: Mapping[str, Any]) -> str:
    """Return the SVG document for a report."""
    notes = [*_notes(report)]
    table_ends = _TABLE_TOP + _ROW * (len(report["cases"]) + 1)
    height = table_ends + (_NOTE_ROW * len(notes) + 72 if notes else 24)
    parts = [
        *_head(report),
        *_course(report),
        *_table(report["cases"]),
        *_told(notes, table_ends + 44),
    ]
    return document(_headline(report), height, parts)


def document(headline: str, height: int, parts: Iterable[str], style: str = "") -> str:
    """Return an SVG document of 960 units in width. `style` is added to the common style."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(headline)}</title>',
        f"<style>{_STYLE}{style}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _headline(report: Mapping[str, Any]) -> str:
    bundles = report["bundles"]
    if report["all_right"]:
        return f"All {bundles['right']:,} endings were right, and none was lost"
    missing = report["pictures"]["planned"] - report["pictures"]["taken"]
    faults = [
        counted(bundles["wrong"], "ending was wrong", "endings were wrong")
        if bundles["wrong"]
        else "",
        counted(bundles["lost"], "bundle was lost", "bundles were lost") if bundles["lost"] else "",
        counted(missing, "picture was not taken", "pictures were not taken") if missing else "",
        "a theft could not be reported" if any(e["failure"] for e in report["thefts"]) else "",
    ]
    return ", ".join(each for each in faults if each) or "The run was stopped"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    terms, waits = report["terms"], report["verdict_seconds"]
    colour = "good" if report["all_right"] else "bad"
    yield text(_LEFT, 48, _headline(report), f"title {colour}")
    yield text(
        _LEFT,
        74,
        f"{counted(terms['cameras'], 'camera')},"
        f" {counted(report['pictures']['taken'], 'picture')} in"
        f" {terms['seconds']:,.0f} s,"
        f" {counted(terms['aggregators'], 'aggregation server')};"
        f" seed {terms['seed']}, {report['begun_at']}",
        "dim",
    )
    if waits is not None:
        yield text(
            _LEFT,
            94,
            f"Verdicts: half within {_seconds(waits['p50'])}, 99 of 100 within"
            f" {_seconds(waits['p99'])}, the longest {_seconds(waits['longest'])}."
            f" Pictures at most {_seconds(report['latest_picture_seconds'])} late.",
            "dim",
        )
    interrupted = interruptions(report)
    for n, line in enumerate(_wrapped(interrupted) if interrupted else ()):
        yield text(_LEFT, 110 + 15 * n, line, "refused small")


def interruptions(report: Mapping[str, Any]) -> str | None:
    """Return a sentence about missing verdicts and their consequences, or None without any."""
    told, lost = report["indeterminate"], report["bundles"]["lost"]
    if not told["times"]:
        return None
    causes = ", ".join(f"{cause} {times:,}" for cause, times in told["causes"].items())
    end = "all were asked about again, and none was lost"
    if lost:
        end = counted(lost, "was lost", "were lost")
    return (
        f"INDETERMINATE, which is no FAIL: {counted(told['times'], 'time')} ({causes})"
        f" for {counted(told['bundles'], 'bundle')}; {end}."
    )


def _course(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a stacked bar chart: passed, refused and wrong bundles by the time of the picture."""
    course, terms = report["course"], report["terms"]
    kinds = ("passed", "refused", "wrong")
    parts = [*zip(*(course[each] for each in kinds), strict=True)]
    most = max(map(sum, parts)) or 1
    wide = (_RIGHT - _LEFT) / len(parts)
    bottom = _COURSE_TOP + _COURSE_HEIGHT
    for n, counts in enumerate(parts):
        base = float(bottom)
        for kind, count in zip(kinds, counts, strict=True):
            tall = count / most * _COURSE_HEIGHT
            if count:
                base -= tall
                yield (
                    f'<rect class="{kind}" x="{_LEFT + n * wide:.2f}" y="{base:.2f}"'
                    f' width="{wide - 1.5:.2f}" height="{tall:.2f}"/>'
                )
    yield f'<path class="line" d="M{_LEFT} {bottom + 0.5}H{_RIGHT}"/>'
    seconds = terms["seconds"]
    marks = (
        [f"{hour:02}:00" for hour in (0, 6, 12, 18, 24)]
        if terms["day"]
        else [f"{seconds * n / 4:g} s" for n in range(5)]
    )
    for n, mark in enumerate(marks):
        x = _LEFT + (_RIGHT - _LEFT) * n / 4
        anchor = {0: "", 4: " number"}.get(n, " middle")
        yield text(x, bottom + 18, mark, f"dim small{anchor}")
    a_second = most / (seconds / len(parts))
    yield text(_RIGHT, bottom + 43, f"highest: {a_second:,.0f} bundles/s", "dim small number")
    x = float(_LEFT)
    for kind, label in zip(kinds, ("PASS", "turned away, rightly", "wrong or lost"), strict=True):
        yield f'<rect class="{kind}" x="{x}" y="{bottom + 32}" width="12" height="12"/>'
        yield text(x + 18, bottom + 43, label, "text small")
        x += 18 + 6.2 * len(label) + 24


def _table(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield text(_LEFT, _TABLE_TOP, "Case", "text head")
    yield text(260, _TABLE_TOP, "Right ending", "text head")
    yield text(_BARS - 16, _TABLE_TOP, "Bundles", "text head number")
    yield text(_RIGHT, _TABLE_TOP, "Ended right", "text head number")
    most = max((each["bundles"] for each in cases), default=1)
    for n, each in enumerate(cases):
        y = _TABLE_TOP + _ROW * (n + 1)
        good, total = each["bundles_right"], each["bundles"]
        yield f'<path class="line" d="M{_LEFT} {y - 17.5}H{_RIGHT}"/>'
        yield text(_LEFT, y, each["case"] + (" *" if each["unseen"] else ""), "text")
        yield text(260, y, " or ".join(each["right"]), "text")
        yield text(_BARS - 16, y, f"{total:,}", "text number")
        # A square-root scale keeps the rarest case visible beside the genuine pictures.
        wide = max(2.0, (total / most) ** 0.5 * _BARS_WIDTH)
        kind = "passed" if "PASS" in each["right"] else "refused"
        yield f'<rect class="track" x="{_BARS}" y="{y - 12}" width="{_BARS_WIDTH}" height="14"/>'
        yield f'<rect class="{kind}" x="{_BARS}" y="{y - 12}" width="{wide:.1f}" height="14"/>'
        if good < total:
            bad = max(3.0, wide * (total - good) / total)
            x = _BARS + wide - bad
            yield f'<rect class="wrong" x="{x:.1f}" y="{y - 12}" width="{bad:.1f}" height="14"/>'
        mark = "all ✓" if good == total else f"{good:,} of {total:,} ✗"
        yield text(_RIGHT, y, mark, f"{'good' if good == total else 'bad'} number")


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    for each in report["unseen"]:
        yield from _wrapped(f"{each['case']}: {each['why']}")


def _told(notes: Sequence[str], top: int) -> Iterator[str]:
    if notes:
        yield text(_LEFT, top, "* What the protocol cannot see", "text head")
    for n, each in enumerate(notes):
        yield text(_LEFT, top + _NOTE_ROW * (n + 1) + 4, each, "dim small")


def _wrapped(sentence: str) -> Iterator[str]:
    line = ""
    for word in sentence.split():
        if line and len(line) + 1 + len(word) > _NOTE_CHARACTERS:
            yield line
            line = "   "
        line = f"{line} {word}" if line else word
    yield line


def text(x: float, y: float, content: str, kinds: str) -> str:
    """Return a text element. `kinds` are classes of the common style."""
    return f'<text class="{kinds}" x="{x:g}" y="{y:g}">{escape(content)}</text>'


def _seconds(number: float) -> str:
    return f"{number * 1000:,.0f} ms" if number < 1 else f"{number:,.1f} s"
