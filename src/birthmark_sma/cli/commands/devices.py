"""`sma devices`: list and show registered devices.

`device_acts.py` and `abuse_flags.py` beside it have the other commands of this name. No command
shows a device's secrets.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from birthmark_sma.cli.commands import abuse_flags, device_acts, re_enrolment
from birthmark_sma.cli.commands.expiring_devices import list_expiring
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_json, print_line, print_table

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

app = typer.Typer(no_args_is_help=True, help="List, inspect, suspend, revoke and retire devices.")

Serial = Annotated[str, Argument(help="The device's serial, in any case.")]

command(app, "devices suspend")(device_acts.suspend)
command(app, "devices reinstate")(device_acts.reinstate)
command(app, "devices revoke")(device_acts.revoke)
command(app, "devices retire")(device_acts.retire)
command(app, "devices flagged")(abuse_flags.flagged)
command(app, "devices reviewed")(abuse_flags.reviewed)
command(app, "devices re-enrol")(re_enrolment.re_enrol)


@command(app, "devices list")
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
    from birthmark_sma.authority.devices import store as device_store
    from birthmark_sma.authority.representations.devices import device_as_json

    with existing_database(settings) as database, database.read() as connection:
        if expiring_within is not None:
            list_expiring(connection, expiring_within, limit=limit, after=after, as_json=as_json)
            return
        # One more than a page, to know whether there is a next page.
        found = device_store.list_devices(connection, limit=limit + 1, after=after)
        total = device_store.count_devices(connection)
    if as_json:
        listed = [device_as_json(device) for device in found[:limit]]
        following = found[limit - 1].device_serial if len(found) > limit else None
        print_json({"total": total, "devices": listed, "next_cursor": following})
        return
    if not found:
        print_line(
            "No devices are registered." if total == 0 else "No device has a serial after this one."
        )
        return
    rows = []
    for each in found[:limit]:
        tables = " ".join(map(str, each.table_assignments))
        at = f"{each.provisioned_at:%Y-%m-%d %H:%M:%S}"
        ends = "-"
        if each.certificate_expires_at is not None:
            ends = f"{each.certificate_expires_at:%Y-%m-%d}"
        rows.append([each.device_serial, each.device_family, each.status.value, tables, at, ends])
    print_table(["DEVICE", "FAMILY", "STATUS", "TABLES", "PROVISIONED (UTC)", "EXPIRES"], rows)
    if len(found) > limit:
        last = found[limit - 1].device_serial
        print_line(f"\n{total:,} in all. For the next page: --after '{last}'")


@command(app, "devices show")
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
    from birthmark_sma.authority.devices import certificates_store, re_enrolments
    from birthmark_sma.authority.devices.revocation import find_by_serial_or_certificate
    from birthmark_sma.authority.representations.devices import whole_device_as_json
    from birthmark_sma.cli.descriptions import device_as_fields, earlier_as_fields
    from birthmark_sma.storage.portable_sql import database_time

    with existing_database(settings) as database, database.read() as connection:
        device = find_by_serial_or_certificate(connection, device_serial)
        earlier = certificates_store.list_earlier(connection, device.device_serial)
        now = database_time(connection)
        permission = re_enrolments.find(connection, device.device_serial, now)
    until = None if permission is None else permission.allowed_until
    if as_json:
        print_json(whole_device_as_json(device, until, earlier))
    else:
        print_fields(device_as_fields(device) + earlier_as_fields(earlier, until))
