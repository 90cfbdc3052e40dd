"""Draw a run of `sma simulate`: live on stderr while it runs, and the report on stdout.

`simulate/report.py` calls it. It only reads the state of the run and never changes it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from birthmark_sma.cli.commands.top_rendering import curve
from birthmark_sma.counts import counted
from birthmark_sma.simulation.chart import interruptions

if TYPE_CHECKING:
    from birthmark_sma.simulation.player import Play

_EVERY = 4  # frames a second
_CURVE = 48  # columns of a curve; the run counts in twice as many intervals


@contextmanager
def watched(play: "Play") -> Iterator[None]:
    """Draw a run on stderr while the context is open. Silent if stderr is no terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    drawn = Live(
        get_renderable=lambda: frame(play),
        console=console,
        refresh_per_second=_EVERY,
        transient=True,
    )
    with drawn:
        yield


def frame(play: "Play") -> RenderableType:
    """Draw the present state of a run."""
    plan, tally = play.plan, play.tally
    taken, planned = play.taken.total(), len(plan.pictures)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(
        Text("pictures", style="bold"),
        ProgressBar(total=planned, completed=taken, width=30),
        f"{taken:,} of {planned:,}",
        Text("Ctrl-C stops it" if not play.stopped else "stopping", style="dim"),
    )
    passed, refused = _halved(play.course.passed), _halved(play.course.refused)
    unknown = play.indeterminate.total()
    counts = Text.assemble(
        ("endings   ", "bold"),
        (f"{tally.right:,} right", "green"),
        (f"   {tally.wrong:,} wrong", "bold red" if tally.wrong else ""),
        (f"   {tally.lost:,} lost", "bold red" if tally.lost else ""),
        f"   {play.under_way:,} under way",
        (f"   {unknown:,} INDETERMINATE" if unknown else "", "yellow"),
        (f"   {play.late:.0f} s late at most" if play.late > 1 else "", "yellow"),
    )
    return Group(
        head,
        counts,
        Text.assemble(("PASS      ", "bold"), (curve(passed), "cyan")),
        Text.assemble(("refused   ", "bold"), (curve(refused), "yellow")),
    )


def _halved(counts: list[int]) -> list[int]:
    return [sum(counts[n : n + 2]) for n in range(0, 2 * _CURVE, 2)]


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report to stdout as text. It shows up to 10 unexpected endings."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_played(report))
    console.print(_cases(report))
    red = [
        f"picture {each['picture']}, {each['case']}, {each['device_serial']}, at aggregation server"
        f" {each['aggregator']}: {each['ended']} in place of {' or '.join(each['right'])}."
        f" {each['detail']}".rstrip()
        for each in report["surprises"][:10]
    ]
    red += [
        f"{each['device_serial']} could not be reported. {each['failure']}"
        for each in report["thefts"]
        if each["failure"]
    ]
    for line in red:
        console.print(Text(line, style="red"))
    if report["unseen"]:
        console.print(Text("\n* The protocol cannot detect these cases:", style="bold"))
        for each in report["unseen"]:
            console.print(Text(f"{each['case']}: {each['why']}", style="dim"), soft_wrap=False)
    console.print()
    console.print(_sums(report))


def _played(report: Mapping[str, Any]) -> Text:
    terms = report["terms"]
    cameras = counted(terms["cameras"], "camera")
    servers = counted(terms["aggregators"], "aggregation server")
    return Text.assemble(
        (f"{cameras} and {servers}, at {report['url']}", "bold"),
        (f"\nSerials begin with {report['serial_prefix']}.\n", "dim"),
    )


def _cases(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("Case", "Right ending", "Bundles", "Ended right"):
        justify: Any = "right" if title in {"Bundles", "Ended right"} else "left"
        table.add_column(title, justify=justify, no_wrap=True)
    for each in report["cases"]:
        good, total = each["bundles_right"], each["bundles"]
        some = Text(f"{good:,} of {total:,} ✗", style="bold red")
        ended = Text("all ✓", style="green") if good == total else some
        name = each["case"] + (" *" if each["unseen"] else "")
        table.add_row(name, " or ".join(each["right"]), f"{total:,}", ended)
    return table


def _sums(report: Mapping[str, Any]) -> Text:
    pictures, bundles, waits = report["pictures"], report["bundles"], report["verdict_seconds"]
    missing, late = pictures["planned"] - pictures["taken"], report["latest_picture_seconds"]
    unreported = sum(bool(each["failure"]) for each in report["thefts"])
    half, nearly_all = (0, 0) if waits is None else (waits["p50"] * 1000, waits["p99"] * 1000)
    verdicts = f"half within {half:,.0f} ms, 99 of 100 within {nearly_all:,.0f} ms."
    sums = f"{bundles['right']:,} right, {bundles['wrong']:,} wrong, {bundles['lost']:,} lost."
    return Text.assemble(
        f"{pictures['taken']:,} of {pictures['planned']:,} pictures, seed"
        f" {report['terms']['seed']}, in {report['seconds']:,.1f} s.",
        "" if waits is None else f"\nVerdicts: {verdicts}",
        (f" Pictures up to {late:,.0f} s late." if late > 1 else "", "yellow"),
        (f"\n{each}" if (each := interruptions(report)) else "", "yellow"),
        (f"\n{sums}", "bold green" if report["all_right"] else "bold red"),
        (f" Not taken: {counted(missing, 'picture')}." if missing else "", "red"),
        (f" Not reported: {counted(unreported, 'theft')}." if unreported else "", "red"),
        (" The run was stopped before its end." if report["stopped"] else "", "red"),
    )
