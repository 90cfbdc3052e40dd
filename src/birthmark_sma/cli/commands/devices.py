"""`sma devices`: list and show registered devices.

`device_acts.py` and `abuse_flags.py` beside it have the other commands of this name. No command
shows a device's secrets.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from birthmark_sma.cli.commands import abuse_flags, device_acts, re_enrolment
from birthmark_sma.cli.commands.expiring_devices import list_expiring
from birthmark_sma.cli.opening import administration
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_line, print_object, print_table, quoted

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

app = typer.Typer(no_args_is_help=True, help="List, inspect, suspend, revoke and retire devices.")

Serial = Annotated[str, Argument(help="The device's serial, in any case.")]

command(app, "devices suspend", remote=True)(device_acts.suspend)
command(app, "devices reinstate", remote=True)(device_acts.reinstate)
command(app, "devices revoke", remote=True)(device_acts.revoke)
command(app, "devices retire", remote=True)(device_acts.retire)
command(app, "devices flagged", remote=True)(abuse_flags.flagged)
command(app, "devices reviewed", remote=True)(abuse_flags.reviewed)
command(app, "devices re-enrol", remote=True)(re_enrolment.re_enrol)


@command(app, "devices list", remote=True)
def list_(
    settings: "Settings",
    limit: Annotated[int, Option(min=1, max=10_000, help="The number of devices to list.")] = 50,
    after: Annotated[str | None, Option(help="Begin after this serial, for the next page.")] = None,
    expiring_within: Annotated[
        str | None,
        Option(
            help="List the active and suspended devices whose certificate ends within this time,"
            " such as 90d, or has ended. Sorted by the end."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List devices, sorted by serial or, with --expiring-within, by the end of the certificate."""
    from birthmark_sma.web.api.administration.responses import DeviceItem

    with administration(settings) as authority:
        if expiring_within is not None:
            list_expiring(authority, expiring_within, limit=limit, after=after, as_json=as_json)
            return
        page = authority.list_devices(limit=limit, after=after)
    if as_json:
        print_object(page)
        return
    if not page.devices:
        print_line(
            "No devices are registered."
            if page.total == 0
            else "No device has a serial after this one."
        )
        return
    rows = []
    for each in page.devices:
        if not isinstance(each, DeviceItem):
            continue  # only a list with another filter has other items
        tables = " ".join(map(str, each.table_assignments))
        at = f"{each.provisioned_at:%Y-%m-%d %H:%M:%S}"
        ends = "-"
        if each.certificate_expires_at is not None:
            ends = f"{each.certificate_expires_at:%Y-%m-%d}"
        rows.append([each.device_serial, each.device_family, each.status, tables, at, ends])
    print_table(["DEVICE", "FAMILY", "STATUS", "TABLES", "PROVISIONED (UTC)", "EXPIRES"], rows)
    if page.next_cursor is not None:
        print_line(
            f"\n{page.total:,} in all. For the next page: --after {quoted(page.next_cursor)}"
        )


@command(app, "devices show", remote=True)
def show(
    settings: "Settings",
    device_serial: Annotated[
        str,
        Argument(
            help="The device's serial, in any case, or the serial number (hex) of one of its"
            " certificates."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show one device: status, tables and certificates, but no secret."""
    from birthmark_sma.cli.descriptions import device_as_fields, earlier_as_fields

    with administration(settings) as authority:
        device = authority.find_device(device_serial)
    if as_json:
        print_object(device)
    else:
        print_fields(device_as_fields(device) + earlier_as_fields(device))
