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
    counts = Text("endings   ", style="bold")
    counts.append(f"{tally.right:,} right", style="green not bold")
    for name, number in (("wrong", tally.wrong), ("lost", tally.lost)):
        counts.append(f"   {number:,} {name}", style="bold red" if number else "not bold")
    counts.append(f"   {play.under_way:,} under way", style="not bold")
    if play.indeterminate:
        counts.append(f"   {play.indeterminate.total():,} INDETERMINATE", style="yellow not bold")
    if play.late > 1:
        counts.append(f"   {play.late:.0f} s late at most", style="yellow not bold")
    passed, refused = _halved(play.course.passed), _halved(play.course.refused)
    return Group(
        head,
        counts,
        Text("PASS      ", style="bold").append(curve(passed), style="cyan not bold"),
        Text("refused   ", style="bold").append(curve(refused), style="yellow not bold"),
    )


def _halved(counts: list[int]) -> list[int]:
    return [sum(counts[n : n + 2]) for n in range(0, 2 * _CURVE, 2)]


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report to stdout as text. It shows up to 10 unexpected endings."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_played(report))
    console.print(_cases(report))
    for each in report["surprises"][:10]:
        console.print(
            Text(
                f"picture {each['picture']}, {each['case']}, {each['device_serial']}, at"
                f" aggregation server {each['aggregator']}: {each['ended']} in place of"
                f" {' or '.join(each['right'])}. {each['detail']}".rstrip(),
                style="red",
            )
        )
    for each in report["thefts"]:
        if each["failure"]:
            text = f"{each['device_serial']} could not be reported. {each['failure']}"
            console.print(Text(text, style="red"))
    if report["unseen"]:
        console.print(Text("\n* The protocol cannot detect these cases:", style="bold"))
        for each in report["unseen"]:
            console.print(Text(f"{each['case']}: {each['why']}", style="dim"), soft_wrap=False)
    console.print()
    console.print(_sums(report))


def _played(report: Mapping[str, Any]) -> Text:
    terms = report["terms"]
    cameras = _counted(terms["cameras"], "camera")
    servers = _counted(terms["aggregators"], "aggregation server")
    text = Text(f"{cameras} and {servers}, at {report['url']}", style="bold")
    return text.append(f"\nSerials begin with {report['serial_prefix']}.\n", "not bold dim")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _cases(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("Case", no_wrap=True)
    table.add_column("Right ending", no_wrap=True)
    table.add_column("Bundles", justify="right", no_wrap=True)
    table.add_column("Ended right", justify="right", no_wrap=True)
    for each in report["cases"]:
        good, total = each["bundles_right"], each["bundles"]
        table.add_row(
            each["case"] + (" *" if each["unseen"] else ""),
            " or ".join(each["right"]),
            f"{total:,}",
            Text("all ✓", style="green")
            if good == total
            else Text(f"{good:,} of {total:,} ✗", style="bold red"),
        )
    return table


def _sums(report: Mapping[str, Any]) -> Text:
    pictures, bundles, waits = report["pictures"], report["bundles"], report["verdict_seconds"]
    text = Text(
        f"{pictures['taken']:,} of {pictures['planned']:,} pictures, seed"
        f" {report['terms']['seed']}, in {report['seconds']:,.1f} s."
    )
    if waits is not None:
        text.append(
            f"\nVerdicts: half within {waits['p50'] * 1000:,.0f} ms, 99 of 100 within"
            f" {waits['p99'] * 1000:,.0f} ms."
        )
    if report["latest_picture_seconds"] > 1:
        text.append(f" Pictures up to {report['latest_picture_seconds']:,.0f} s late.", "yellow")
    interrupted = interruptions(report)
    if interrupted is not None:
        text.append(f"\n{interrupted}", "yellow")
    sums = f"\n{bundles['right']:,} right, {bundles['wrong']:,} wrong, {bundles['lost']:,} lost."
    text.append(sums, "bold green" if report["all_right"] else "bold red")
    if missing := pictures["planned"] - pictures["taken"]:
        text.append(f" Not taken: {_counted(missing, 'picture')}.", "red")
    if unreported := sum(bool(each["failure"]) for each in report["thefts"]):
        text.append(f" Not reported: {_counted(unreported, 'theft')}.", "red")
    if report["stopped"]:
        text.append(" The run was stopped before its end.", "red")
    return text
