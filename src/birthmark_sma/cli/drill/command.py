"""`sma drill`: parse the options, show the progress, and print and write the report.

`run` is the course of a drill, `report` judges it. The exit code is 1 if a mark is missed.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import require_sqlite_file
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    Progressed,
    print_fields,
    print_json,
    print_line,
    print_stderr,
    print_table,
    progress_bar,
    waiting,
)

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

_LEAST_SECONDS = 60.0
_RENEWALS_A_SECOND = 30.0
"""What one server and the simulated devices do together on a small machine, with some to spare."""


def drill(
    settings: "Settings",
    cause: Annotated[str, Argument(help="intermediate-key, family, app-version or key-table.")],
    subject: Annotated[
        str | None,
        Argument(
            help="The intermediate, family, app version, or ids of key tables such as 17,230."
            " Default: the active intermediate, a family or version of the drill, all key tables."
        ),
    ] = None,
    devices: Annotated[
        int, Option(min=10, max=100_000, help="The number of simulated devices.")
    ] = 1_000,
    within: Annotated[
        str | None,
        Option(
            help="The time in which the devices renew: 90s, 10m. Default: one minute, or longer for"
            " many devices. It stands for the days of a real order."
        ),
    ] = None,
    rate: Annotated[
        float, Option(min=1, max=1_000, help="The number of pictures a second meanwhile.")
    ] = 20.0,
    offline: Annotated[
        float,
        Option(min=0, max=0.9, help="The share of devices that are off until the time is over."),
    ] = 0.02,
    keep: Annotated[
        Path | None,
        Option(help="A new directory for the copy, which then stays. Default: it is deleted."),
    ] = None,
    report: Annotated[Path | None, Option(help="Write the report to this file, as JSON.")] = None,
    picture: Annotated[Path | None, Option(help="Draw the renewals to this file, as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Rehearse the worst day on a copy of the data: a lost key, a revocation, a fleet that renews.

    The data of the authority is only read. The copy gets simulated devices and a server of its own
    on this machine. It contains the secrets of the authority, and is deleted at the end.

    The exit code is 1 if a mark of the report is missed.
    """
    from birthmark_sma.cli.drill.causes import Cause
    from birthmark_sma.cli.drill.chart import draw
    from birthmark_sma.cli.drill.report import make_report
    from birthmark_sma.cli.drill.run import DrillOptions, rehearse

    if cause not in set(Cause):
        raise typer.BadParameter(f"Give one of {', '.join(Cause)}.", param_hint="CAUSE")
    require_sqlite_file(settings)
    options = DrillOptions(
        Cause(cause),
        subject,
        devices,
        _seconds_of(within, devices),
        rate,
        offline,
        keep,
    )
    made = make_report(rehearse(settings, options, _bar, waiting))
    if report is not None:
        report.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        picture.write_text(draw(made), encoding="utf-8")
    if as_json:
        print_json(made)
    else:
        _print(made)
    for each in (report, picture):
        if each is not None:
            print_stderr(f"Written: {each}")
    if not made["passed"]:
        raise typer.Exit(exit_codes.FAILED)


def _seconds_of(within: str | None, devices: int) -> float:
    if within is None:
        return max(_LEAST_SECONDS, devices / _RENEWALS_A_SECOND)
    return parse_duration(within, "--within").total_seconds()


def _bar(what: str, unit: Literal["bytes", "steps"]) -> AbstractContextManager[Progressed]:
    return progress_bar(what, of_bytes=unit == "bytes", transient=True)


def _print(made: dict[str, Any]) -> None:
    devices, renewals, load = made["devices"], made["renewals"], made["load"]
    print_line(typer.style(f"Drill: {made['cause']}, {made['subject']}", bold=True))
    print_line()
    print_fields(
        [
            ("devices", f"{devices['simulated']:,} simulated, {devices['concerned']:,} to renew"),
            ("the act", f"{devices['in_the_act']:,} devices of the copy's register"),
            ("the order", f"{devices['in_the_order']:,} devices, {renewals['within_seconds']:g} s"),
            ("list", _describe_list(made["publication"])),
            ("OCSP", _describe(made["publication"]["ocsp"])),
            ("renewals", f"at most {renewals['most_a_second']:g} a second"),
            ("  each", _times(renewals["latency_seconds"])),
            ("validations", f"{load['pictures']:,}, {load['pictures_a_second']:g} a second"),
            ("  before the act", _times(load["latency_seconds_before"])),
            ("  after the act", _times(load["latency_seconds_during"])),
            ("stragglers", _describe_stragglers(made["stragglers"])),
            ("exposed", _describe_exposure(made["exposure"])),
        ]
    )
    print_line()
    rows = [
        ["yes" if each["holds"] else "NO", each["name"], each["measured"], each["limit"]]
        for each in made["marks"]
    ]
    print_table(["OK", "MARK", "MEASURED", "LIMIT"], rows, numbers=["MEASURED"])
    print_line()
    if made["stopped"]:
        print_line("The drill was stopped. The marks tell what happened until then.")
    elif made["passed"]:
        print_line(typer.style("All marks hold.", fg="green", bold=True))
    else:
        print_line(typer.style("A mark was missed.", fg="red", bold=True))
    print_line("A real order takes days instead of seconds. Only the copy was changed.")
    if made["copy"] is not None:
        where = ", ".join(f"{name} {value}" for name, value in made["copy"].items())
        print_line(f"The copy, with its secrets, was kept: {where}. Delete it when you are done.")


def _describe_list(publication: dict[str, Any]) -> str:
    name = publication["list_of"]
    before, after = publication["list_before"], publication["list_after"]
    return f"of {name}: {_describe(before)} before, {_describe(after)} after the act"


def _describe(fetched: dict[str, Any] | None) -> str:
    if fetched is None:
        return "not asked: no responder speaks for a compromised intermediate"
    return f"{fetched['bytes']:,} bytes in {fetched['milliseconds']:g} ms"


def _times(percentiles: dict[str, float] | None) -> str:
    if percentiles is None:
        return "-"
    return ", ".join(f"{name} {1000 * value:,.0f} ms" for name, value in percentiles.items())


def _describe_stragglers(stragglers: dict[str, Any]) -> str:
    late, left = stragglers["at_the_end_of_the_order"], stragglers["at_the_end"]
    some = "\n" + "\n".join(stragglers["serials"]) if left else ""
    return f"{late:,} when the order's time was over, {left:,} at the end{some}"


def _describe_exposure(exposure: dict[str, Any] | None) -> str:
    if exposure is None:
        return "-"
    tables = ", ".join(map(str, exposure["tables"]))
    return (
        f"if {exposure['camera']} is opened: {exposure['devices']:,} devices share one of its key"
        f" tables ({tables})"
    )
