"""Draw a report as a bar chart: tokens per second of each side, on a logarithmic scale."""

from pathlib import Path

from bench.closed import describe
from bench.figures import CONVENTIONAL, NOOP, PLAIN_NOOP, Report

_COLOURS = {CONVENTIONAL: "#c44e52", NOOP: "#8c8c8c", PLAIN_NOOP: "#b8b8b8"}
_OURS = "#4c72b0"


def draw(report: Report, path: Path) -> None:
    """Write a PNG with a bar for each series.

    The bar is the median; the line goes from the slowest to the fastest round.
    """
    # Here, because its import takes a second, and `make bench` needs it at the end.
    from matplotlib.figure import Figure  # noqa: PLC0415

    measured = [each for each in report.series if each.rounds]
    figure = Figure(figsize=(9, 1.2 + 0.34 * max(1, len(measured))), layout="constrained")
    axes = figure.subplots()
    for place, series in enumerate(measured):
        rates = [each.tokens_per_second for each in series.rounds]
        median = series.median("tokens_per_second")
        axes.barh(place, median, color=_COLOURS.get(series.side, _OURS))
        axes.plot([min(rates), max(rates)], [place, place], color="black", linewidth=1)
        axes.annotate(
            f" {median:,.0f}", (max(rates), place), va="center", fontsize=8, annotation_clip=False
        )
    axes.set_yticks(range(len(measured)), [describe(each) for each in measured], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("camera tokens a second (logarithmic); median, and the span of the rounds")
    axes.set_title("Validating camera tokens", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
