"""`sma devices flagged` and `reviewed`: list and review devices far above their usual rate.

`commands/devices.py` registers both. The detection itself is in
`authority/background/abuse_detection.py`.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    pause,
    print_json,
    print_line,
    print_stderr,
    print_table,
    waiting,
)
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.authority.background.abuse_detection import AbuseScan
    from birthmark_sma.authority.devices.abuse_flags import ShownFlag
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database


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
    from birthmark_sma.authority.devices.abuse_flags import list_flags

    with existing_database(settings) as database:
        checked = _check(database, settings) if check else None
        with database.read() as connection:
            total, found = list_flags(connection, shadow=shadow, reviewed=all_, limit=limit)
    if as_json:
        print_json(_as_json(total, found, checked))
        return
    if checked is not None:
        print_stderr(_describe_scan(checked))
    if not found:
        print_line("No device is flagged.")
        return
    _print_flags(found)
    if total > len(found):
        print_line(f"\n{total:,} in all. To see more: --limit {min(total, 10_000)}")


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
    from birthmark_sma.authority.background.abuse_detection import review_flags
    from birthmark_sma.authority.devices.store import find_devices_named

    with existing_database(settings) as database:
        number = review_flags(
            database, device_serial, find_actor(), None if day is None else day.date()
        )
        with database.read() as connection:
            found = find_devices_named(connection, device_serial)
    if as_json:
        serial = found[0].device_serial if len(found) == 1 else device_serial
        print_json({"device_serial": serial, "reviewed": number})
        return
    print_line(f"{counted(number, 'flag')} of {device_serial} marked as reviewed.")
    if found and found[0].status.value == "suspended":
        serial = found[0].device_serial
        print_line(f"The device is still suspended. To end that: sma devices reinstate '{serial}'")


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


def _print_flags(found: "list[ShownFlag]") -> None:
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
    for shown in found:
        flag = shown.flag
        pictures, threshold = f"{flag.pictures:,}", f"{flag.threshold:,}"
        usual = f"{flag.usual:,.1f} in {flag.days_compared:2} d"
        state = flag.mode.value + (", reviewed" if flag.reviewed_at else "")
        about = [flag.device_serial, shown.device_family or "-", f"{flag.day}"]
        rows.append([*about, pictures, usual, threshold, state, shown.status or "unknown"])
    print_table(columns, rows, numbers={"PICTURES", "USUAL", "THRESHOLD"})


def _as_json(total: int, found: "list[ShownFlag]", checked: "AbuseScan | None") -> dict[str, Any]:
    from birthmark_sma.authority.representations.devices import flag_as_json

    value: dict[str, Any] = {"total": total, "flags": [flag_as_json(each) for each in found]}
    if checked is not None:
        value["newly_flagged"] = checked.flagged
        value["newly_suspended"] = checked.suspended
        value["spared"] = checked.spared
    return value
