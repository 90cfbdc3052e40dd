"""Draw the renewals and the marks of a drill as SVG, for light and dark mode.

`command` calls it. Pure: the picture must depend on the report alone, so that a stored report can
be drawn again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from birthmark_sma.counts import counted
from birthmark_sma.simulation.chart import document, text

# The layout, in SVG units.
_LEFT, _RIGHT = 32, 928
_TOP, _HEIGHT = 132, 160
_MARKS_TOP = 384
_ROW = 26
_MEASURED, _LIMIT = 620, 644

_PLANNED = ".planned { fill: none; stroke: #b9770e; stroke-width: 2; }"


def draw(report: Mapping[str, Any]) -> str:
    """Return the SVG document for a report."""
    height = _MARKS_TOP + _ROW * (len(report["marks"]) + 1)
    parts = [
        *_head(report),
        *_curve(report["renewals"], report["stragglers"]),
        *_marks(report["marks"]),
    ]
    return document(_headline(report), height, parts, _PLANNED)


def _headline(report: Mapping[str, Any]) -> str:
    devices = report["devices"]
    if report["passed"]:
        return f"All {devices['concerned']:,} devices renewed, and all marks hold"
    missed = sum(not each["holds"] for each in report["marks"])
    return f"{counted(missed, 'mark was', 'marks were')} missed" if missed else "It was stopped"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    devices, seconds = report["devices"], report["seconds"]
    yield text(_LEFT, 48, _headline(report), f"title {'good' if report['passed'] else 'bad'}")
    yield text(
        _LEFT,
        74,
        f"Drill: {report['cause']}, {report['subject']}."
        f" {counted(devices['in_the_act'], 'device')} in the act, {_moment(report['decided_at'])}.",
        "dim",
    )
    last = seconds["to_last_wrong_pass"]
    yield text(
        _LEFT,
        94,
        f"From the decision: commit after {_seconds(seconds['to_commit'])}, last wrong PASS"
        f" {'never' if last is None else 'after ' + _seconds(last)}, on the list after"
        f" {_seconds(seconds['to_list'])}, last renewal after"
        f" {_seconds(seconds['to_last_renewal'])}.",
        "dim",
    )


def _curve(renewals: Mapping[str, Any], stragglers: Mapping[str, Any]) -> Iterator[str]:
    """Yield the renewals as bars, and the plan as a line, by the seconds since the order."""
    done, planned = renewals["done"], renewals["planned"]
    most = max(*done, *planned, 1)
    wide = (_RIGHT - _LEFT) / len(done)
    bottom = _TOP + _HEIGHT
    for n, count in enumerate(done):
        if count:
            tall = count / most * _HEIGHT
            yield (
                f'<rect class="passed" x="{_LEFT + n * wide:.2f}" y="{bottom - tall:.2f}"'
                f' width="{wide - 1.5:.2f}" height="{tall:.2f}"/>'
            )
    yield f'<path class="planned" d="{_steps(planned, most, wide, bottom)}"/>'
    yield f'<path class="line" d="M{_LEFT} {bottom + 0.5}H{_RIGHT}"/>'
    span = renewals["seconds_of_a_part"] * len(done)
    for n in range(5):
        anchor = {0: "", 4: " number"}.get(n, " middle")
        x = _LEFT + (_RIGHT - _LEFT) * n / 4
        yield text(x, bottom + 18, f"{span * n / 4:,.0f} s", f"dim small{anchor}")
    end = _LEFT + (_RIGHT - _LEFT) * min(1.0, renewals["within_seconds"] / span)
    yield f'<path class="line" d="M{end:.1f} {_TOP - 8}V{bottom}"/>'
    yield text(end - 6, _TOP - 12, "the order's time is over", "dim small number")
    late = stragglers["at_the_end_of_the_order"]
    yield from _legend(bottom + 44, renewals["most_a_second"], late)


def _steps(counts: Sequence[int], most: int, wide: float, bottom: int) -> str:
    begun = f"M{_LEFT} {bottom}"
    return begun + "".join(
        f"V{bottom - count / most * _HEIGHT:.2f}H{_LEFT + (n + 1) * wide:.2f}"
        for n, count in enumerate(counts)
    )


def _legend(y: int, most: float, late: int) -> Iterator[str]:
    yield f'<rect class="passed" x="{_LEFT}" y="{y - 11}" width="12" height="12"/>'
    yield text(_LEFT + 18, y, "renewed", "text small")
    yield f'<path class="planned" d="M{_LEFT + 92} {y - 5}H{_LEFT + 108}"/>'
    yield text(_LEFT + 114, y, "planned by the windows", "text small")
    told = f"highest: {most:g} a second; {counted(late, 'straggler')} when the time was over"
    yield text(_RIGHT, y, told, "dim small number")


def _marks(marks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield text(_LEFT, _MARKS_TOP, "Mark", "text head")
    yield text(_MEASURED, _MARKS_TOP, "Measured", "text head number")
    yield text(_LIMIT, _MARKS_TOP, "Limit", "text head")
    for n, each in enumerate(marks):
        y = _MARKS_TOP + _ROW * (n + 1)
        yield f'<path class="line" d="M{_LEFT} {y - 17.5}H{_RIGHT}"/>'
        yield text(_LEFT, y, each["name"], "text")
        yield text(_MEASURED, y, each["measured"], "text number")
        yield text(_LIMIT, y, each["limit"], "dim")
        sign, colour = ("✓", "good") if each["holds"] else ("✗", "bad")
        yield text(_RIGHT, y, sign, f"{colour} number")


def _moment(time: str | None) -> str:
    return "never decided" if time is None else f"decided {time[:19].replace('T', ' ')} UTC"


def _seconds(number: float | None) -> str:
    return "no time" if number is None else f"{number:,.1f} s"
