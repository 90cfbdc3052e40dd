"""Run a simulation plan with live progress, then write and print its report.

The commands of `sma simulate` call `play`, then `tell`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.output import print_json, print_stderr, progress_bar

if TYPE_CHECKING:
    from birthmark_sma.simulation.plan import Plan
    from birthmark_sma.simulation.run import RunOptions
    from birthmark_sma.simulation.target import Site


def play(plan: "Plan", site: "Site", manner: "RunOptions") -> dict[str, Any]:
    """Run a plan and return the report. Show progress if stderr is a terminal."""
    from birthmark_sma.cli.simulate.progress import watched
    from birthmark_sma.simulation.run import simulate

    provisioning = progress_bar("provisioning", transient=True)
    return simulate(plan, site, manner, provisioning=provisioning, watch=watched)


def tell(
    report: Mapping[str, Any], report_file: Path | None, picture_file: Path | None, *, as_json: bool
) -> None:
    """Write the report to the given files and print it.

    Exits with code 1 if any ending is wrong, lost or missing.
    """
    from birthmark_sma.cli.simulate.progress import print_report
    from birthmark_sma.simulation.chart import chart

    if report_file is not None:
        report_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if picture_file is not None:
        picture_file.write_text(chart(report), encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        print_report(report)
    for each in (report_file, picture_file):
        if each is not None:
            print_stderr(f"Written: {each}")
    if not report["all_right"]:
        raise typer.Exit(exit_codes.FAILED)
