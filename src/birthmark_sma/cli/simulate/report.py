"""Run a simulation plan with live progress, then write and print its report.

The commands of `sma simulate` call `play`, then `print_outcome`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.output import print_json, print_stderr, progress_bar

if TYPE_CHECKING:
    from birthmark_sma.cli.simulate.options import RunOptions
    from birthmark_sma.simulation import run as simulation
    from birthmark_sma.simulation.plan import Plan
    from birthmark_sma.simulation.target import Site


def play(plan: "Plan", site: "Site", options: "simulation.RunOptions") -> dict[str, Any]:
    """Run a plan and return the report. Show progress if stderr is a terminal."""
    from birthmark_sma.cli.simulate.progress import watched
    from birthmark_sma.simulation.run import simulate

    provisioning = progress_bar("Provisioning", transient=True)
    return simulate(plan, site, options, provisioning=provisioning, watch=watched)


def print_outcome(report: Mapping[str, Any], options: "RunOptions", *, as_json: bool) -> None:
    """Write the report to the files that the options name, and print it.

    Exits with code 1 if any ending is wrong, lost or missing.
    """
    from birthmark_sma.cli.simulate.progress import print_report
    from birthmark_sma.simulation.chart import chart

    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.picture is not None:
        options.picture.write_text(chart(report), encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        print_report(report)
    for each in (options.report, options.picture):
        if each is not None:
            print_stderr(f"Written: {each}")
    if not report["all_right"]:
        raise typer.Exit(exit_codes.FAILED)
