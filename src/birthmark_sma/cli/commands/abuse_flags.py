"""`sma devices flagged` and `reviewed`: list and review devices far above their usual rate.

`commands/devices.py` registers both. The detection itself is in
`authority/background/abuse_detection.py`.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import administration, existing_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    as_argument,
    pause,
    print_json,
    print_line,
    print_object,
    print_stderr,
    print_table,
    waiting,
)
from birthmark_sma.counts import counted
from birthmark_sma.errors import BirthmarkError, ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.authority.background.abuse_detection import AbuseScan
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database
    from birthmark_sma.web.api.administration.responses import FlagItem


def flagged(
    settings: "Settings",
    check: Annotated[
        bool, Option("--check", help="Check now. A server checks every five minutes.")
    ] = False,
    all_: Annotated[bool, Option("--all", help="Also list reviewed flags.")] = False,
    shadow: Annotated[
        bool, Option("--shadow", help="List the flags of shadow mode instead.")
    ] = False,
    limit: Annotated[int, Option(min=1, max=10_000, help="The number of flags to list.")] = 50,
    as_json: Json = False,
) -> None:
    """List devices that made far more pictures on a day than usual, with the counts.

    A picture counts if a caller with an access key submitted its token for the first time and the
    verdict was PASS.
    """
    checked = None
    if check:
        if settings.server is not None:
            raise BadParameter(
                "--check needs the database: run it where DATABASE_URL is set, without a server."
            )
        with existing_database(settings) as database:
            checked = _check(database, settings)
    with administration(settings) as authority:
        page = authority.list_flags(shadow=shadow, reviewed=all_, limit=limit)
    if as_json:
        print_json(page.model_dump() | _scan_as_json(checked))
        return
    if checked is not None:
        print_stderr(_describe_scan(checked))
    if not page.flags:
        print_line("No device is flagged.")
        return
    _print_flags(page.flags)
    if page.total > len(page.flags):
        print_line(f"\n{page.total:,} in all. To see more: --limit {min(page.total, 10_000)}")


def reviewed(
    settings: "Settings",
    device_serial: Annotated[str, Argument(help="The device's serial.")],
    day: Annotated[
        datetime | None, Option(formats=["%Y-%m-%d"], help="Only the flag of this day (UTC).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mark a device's flags as reviewed.

    The device is not flagged again today. Its status does not change.
    """
    with administration(settings) as authority:
        done = authority.review_flags(device_serial, None if day is None else day.date())
        try:
            status = authority.find_device(done.device_serial).status
        except BirthmarkError:
            status = None  # it is no longer registered; the flags are reviewed all the same
    if as_json:
        print_object(done)
        return
    serial = done.device_serial
    print_line(f"{counted(done.reviewed, 'flag')} of {serial} marked as reviewed.")
    if status == "suspended":
        end = f"sma devices reinstate {as_argument(serial)}"
        print_line(f"The device is still suspended. To end that: {end}")


def _check(database: "Database", settings: "Settings") -> "AbuseScan":
    from birthmark_sma.authority.authority import make_abuse_policy
    from birthmark_sma.authority.background.abuse_detection import scan_for_abuse
    from birthmark_sma.config import AbuseMode

    if settings.abuse is AbuseMode.OFF:
        raise ConfigurationError(
            "SMA_ABUSE is off, so nothing is checked. Give --abuse shadow, flag or suspend."
        )

    with waiting("Comparing with the usual numbers"):
        return scan_for_abuse(
            database, make_abuse_policy(settings), settings.abuse, pause, find_actor()
        )


def _describe_scan(checked: "AbuseScan") -> str:
    text = f"Checked: {checked.flagged:,} newly flagged, {checked.suspended:,} of them suspended."
    if checked.spared:
        text += f" {checked.spared:,} were not suspended: so many at once are probably a fault."
    return text


def _print_flags(found: "list[FlagItem]") -> None:
    columns = [
        "DEVICE",
        "FAMILY",
        "DAY (UTC)",
        "PICTURES",
        "USUAL",
        "THRESHOLD",
        "FLAG",
        "STATUS NOW",
    ]
    rows = []
    for each in found:
        pictures, threshold = f"{each.pictures:,}", f"{each.threshold:,}"
        usual = f"{each.usual:,.1f} in {each.days_compared:2} d"
        state = each.mode + (", reviewed" if each.reviewed_at else "")
        about = [each.device_serial, each.device_family or "-", f"{each.day}"]
        rows.append([*about, pictures, usual, threshold, state, each.status or "unknown"])
    print_table(columns, rows, numbers={"PICTURES", "USUAL", "THRESHOLD"})


def _scan_as_json(checked: "AbuseScan | None") -> dict[str, Any]:
    if checked is None:
        return {}
    return {
        "newly_flagged": checked.flagged,
        "newly_suspended": checked.suspended,
        "spared": checked.spared,
    }
