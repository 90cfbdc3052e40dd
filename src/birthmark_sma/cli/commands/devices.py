"""`sma devices`: list and show registered devices.

`device_acts.py` and `abuse_flags.py` beside it have the other commands of this name. No command
shows a device's secrets.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from birthmark_sma.cli.commands import abuse_flags, device_acts
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


@command(app, "devices list")
def list_(
    settings: "Settings",
    limit: Annotated[int, Option(min=1, max=10_000, help="The number of devices to list.")] = 50,
    after: Annotated[str | None, Option(help="Begin after this serial, for the next page.")] = None,
    as_json: Json = False,
) -> None:
    """List devices, sorted by serial."""
    from birthmark_sma.authority.devices import store as device_store
    from birthmark_sma.cli.descriptions import device_as_json

    with existing_database(settings) as database, database.read() as connection:
        found = device_store.list_devices(connection, limit=limit, after=after)
        total = device_store.count_devices(connection)
    if as_json:
        print_json({"total": total, "devices": [device_as_json(device) for device in found]})
        return
    if not found:
        print_line(
            "No devices are registered." if total == 0 else "No device has a serial after this one."
        )
        return
    rows = []
    for each in found:
        tables = " ".join(map(str, each.table_assignments))
        at = f"{each.provisioned_at:%Y-%m-%d %H:%M:%S}"
        rows.append([each.device_serial, each.device_family, each.status.value, tables, at])
    print_table(["DEVICE", "FAMILY", "STATUS", "TABLES", "PROVISIONED (UTC)"], rows)
    if len(found) == limit and total > limit:
        print_line(f"\n{total:,} in all. For the next page: --after '{found[-1].device_serial}'")


@command(app, "devices show")
def show(settings: "Settings", device_serial: Serial, as_json: Json = False) -> None:
    """Show one device: status, tables and certificate, but no secret."""
    from birthmark_sma.authority.devices.revocation import find_named
    from birthmark_sma.cli.descriptions import device_as_fields, device_as_json

    with existing_database(settings) as database, database.read() as connection:
        device = find_named(connection, device_serial)
    if as_json:
        print_json(device_as_json(device))
    else:
        print_fields(device_as_fields(device))
