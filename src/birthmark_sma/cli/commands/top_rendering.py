"""Draw one frame of `sma top`: the overview, for a terminal of 80 columns or fewer.

`commands/top.py` calls `frame`; `simulate/progress.py` uses `curve`. It only formats data that it
was given, and never queries the database.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from birthmark_sma import __version__
from birthmark_sma.authority.operations.statistics import Overview
from birthmark_sma.counts import counted

_LEVELS = "▁▂▃▄▅▆▇█"
_LISTED = 8
_SERIAL_WIDTH = 26
_FAMILY_WIDTH = 16
_BAR_WIDTH = 6
_GOOD_RATE = 0.95
_BESIDE_CURVE = 20  # columns for the name before the curve and the last value behind it
_TWO_LISTS = 74  # columns that two lists side by side need


def frame(overview: Overview, away: str | None = None, *, width: int = 80) -> RenderableType:
    """Draw an overview in `width` columns. `away` says why there is no newer one."""
    minutes = max(min(len(overview.curve.passes), width - _BESIDE_CURVE), 1)
    return Group(
        _head(overview, away),
        Text(),
        _curve("PASS/min", overview.curve.passes[-minutes:], "green"),
        _curve("FAIL/min", overview.curve.fails[-minutes:], "red"),
        Text(" " * 9 + f"{minutes} minutes ago".ljust(minutes - 3) + "now", style="dim"),
        Text(),
        _figures(overview),
        _state(overview),
        Text(),
        _lists(overview, width),
    )


def curve(values: Sequence[int]) -> str:
    """Draw values as a line of bars, scaled to the highest. A value above 0 is always visible."""
    highest = max(values, default=0)
    if not highest:
        return _LEVELS[0] * len(values)
    steps = len(_LEVELS) - 1
    # Rounded up (-(-a // b)), so that a small value gets a bar too.
    return "".join(_LEVELS[max(-(-value * steps // highest), 0)] for value in values)


def _head(overview: Overview, away: str | None) -> Text:
    glance = overview.glance
    size, took = f"{glance.size / 1_000_000:,.1f} MB", f"{glance.seconds * 1_000:,.0f} ms"
    state = (f"{glance.database}, {size}, {took}", "green")
    return Text.assemble(
        (f"birthmark-sma {__version__}", "bold"),
        f"   {glance.stats.until:%Y-%m-%d %H:%M:%S} UTC   ",
        state if away is None else (f"\n{away} These values are older.", "bold red"),
    )


def _curve(name: str, values: Sequence[int], colour: str) -> Text:
    return Text.assemble((f"{name} ", "bold"), (curve(values), colour), f" {values[-1]:>9,}")


def _figures(overview: Overview) -> Text:
    stats, rate = overview.glance.stats, overview.success_rate
    if rate is None:
        return Text.assemble(("24 hours  ", "bold"), "no validations")
    repeats = stats.repeats_24h
    reasons = sorted(stats.fail_reasons_24h.items(), key=lambda each: -each[1])[:2]
    shown = ", ".join(f"{times:,} {reason}" for reason, times in reasons)
    return Text.assemble(
        ("24 hours  ", "bold"),
        (f"{rate:.2%} PASS", "green" if rate >= _GOOD_RATE else "yellow"),
        f" of {sum(stats.verdicts_24h.values()):,}",
        f"   {repeats['dual_submission']:,} dual, {repeats['replayed']:,} replayed",
        (f"\n          FAIL: {shown}" if shown else "", "red"),
    )


def _state(overview: Overview) -> Text:
    tables, wanted = overview.glance.stats.key_tables, overview.tables_wanted
    flagged, ends = overview.glance.flagged, overview.ca_ends
    far = ends is None or (ends - overview.glance.stats.until).days > 365
    some = f"{flagged:,} devices wait for review: sma devices flagged"
    return Text.assemble(
        ("keys      ", "bold"),
        (f"{tables:,} of {wanted:,} tables", _colour(tables == wanted)),
        (", a rotation is under way" if overview.rotating else "", "yellow"),
        f"   {overview.callers:,} access keys",
        (f"   CA until {ends:%Y-%m-%d}" if ends else "", _colour(far)),
        ("\nflags     ", "bold"),
        (some if flagged else "none", _colour(not flagged)),
    )


def _colour(good: bool) -> str:
    return "" if good else "yellow"


def _lists(overview: Overview, width: int) -> RenderableType:
    if width < _TWO_LISTS:
        return Group(_families(overview), Text(), _busiest(overview))
    both = Table.grid(padding=(0, 3, 0, 0))
    both.add_row(_families(overview), _busiest(overview))
    return both


def _families(overview: Overview) -> Table:
    stats = overview.glance.stats
    table = _listed(f"{counted(stats.total_devices, 'device')}, by family")
    listed = list(stats.devices_by_family.items())[:_LISTED]
    most = max((number for _, number in listed), default=1)
    for family, number in listed:
        bar = "█" * max(round(number / most * _BAR_WIDTH), 1)
        table.add_row(_cut(family, _FAMILY_WIDTH), f"{number:,}", Text(bar, style="cyan"))
    more = len(stats.devices_by_family) - len(listed)
    if more > 0:
        table.add_row(Text(f"and {more} more", style="dim"), "", "")
    return table


def _busiest(overview: Overview) -> Table:
    table = _listed("PASS, today and yesterday (UTC)")
    for serial, passes in overview.glance.stats.top_devices[:_LISTED]:
        table.add_row(_cut(serial, _SERIAL_WIDTH), f"{passes:,}", "")
    return table


def _listed(title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    return table


def _cut(name: str, width: int) -> Text:
    """Return a name as plain text of up to `width` columns, so that brackets are no markup."""
    return Text(name if len(name) <= width else f"{name[: width - 1]}…")
