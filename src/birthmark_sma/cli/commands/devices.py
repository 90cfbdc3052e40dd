"""`sma devices`: list, show, suspend, reinstate and revoke registered devices.

The rules are in `authority/devices/revocation.py`. No command shows a device's secrets.
"""

from typing import Annotated

import typer

from birthmark_sma.cli.commands import abuse_flags
from birthmark_sma.cli.commands.init import existing_database
from birthmark_sma.cli.options import DatabaseUrl, DataDir, Json
from birthmark_sma.cli.output import print_fields, print_json, print_line, print_table

app = typer.Typer(no_args_is_help=True, help="List, inspect, suspend and revoke devices.")

Serial = Annotated[str, typer.Argument(help="The device's serial, in any case and composition.")]

app.command()(abuse_flags.flagged)
app.command()(abuse_flags.reviewed)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    after: Annotated[
        str | None, typer.Option(help="Begin behind this serial: the next page.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """List devices by serial."""
    from birthmark_sma.authority.devices import store as device_store
    from birthmark_sma.cli.descriptions import device_as_json

    with existing_database(data_dir, database_url) as database, database.read() as connection:
        found = device_store.list_devices(connection, limit=limit, after=after)
        total = device_store.count_devices(connection)
    if as_json:
        print_json({"total": total, "devices": [device_as_json(device) for device in found]})
        return
    if not found:
        print_line(
            "No devices are registered." if total == 0 else "There are no devices behind that."
        )
        return
    print_table(
        ["DEVICE", "FAMILY", "STATUS", "TABLES", "PROVISIONED (UTC)"],
        [
            [
                device.device_serial,
                device.device_family,
                device.status.value,
                " ".join(map(str, device.table_assignments)),
                f"{device.provisioned_at:%Y-%m-%d %H:%M:%S}",
            ]
            for device in found
        ],
    )
    if len(found) == limit and total > limit:
        print_line(f"\n{total:,} in all. For the next page: --after '{found[-1].device_serial}'")


@app.command()
def show(
    device_serial: Serial,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show one device: status, tables, certificate. Nothing secret is shown."""
    from birthmark_sma.authority.devices.revocation import find_named
    from birthmark_sma.cli.descriptions import device_as_fields, device_as_json

    with existing_database(data_dir, database_url) as database, database.read() as connection:
        device = find_named(connection, device_serial)
    if as_json:
        print_json(device_as_json(device))
    else:
        print_fields(device_as_fields(device))


@app.command()
def suspend(
    device_serial: Serial, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Make a device's tokens FAIL for now."""
    from birthmark_sma.authority.devices.revocation import suspend_device

    with existing_database(data_dir, database_url) as database:
        known = suspend_device(database, device_serial)
    print_line(f"{known} is suspended. To undo: sma devices reinstate '{known}'")


@app.command()
def reinstate(
    device_serial: Serial, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """End a suspension."""
    from birthmark_sma.authority.devices.revocation import reinstate_device

    with existing_database(data_dir, database_url) as database:
        known = reinstate_device(database, device_serial)
    print_line(f"{known} is active.")


@app.command()
def revoke(
    device_serial: Serial,
    reason: Annotated[
        str,
        typer.Option(
            help="unspecified, key_compromise, affiliation_changed, superseded,"
            " cessation_of_operation or privilege_withdrawn."
        ),
    ] = "unspecified",
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a device's tokens FAIL for ever.

    Its certificate goes on the CRL. A revocation cannot be undone: where you are not sure, suspend
    the device instead.
    """
    from birthmark_sma.authority.devices.revocation import revoke_device

    with existing_database(data_dir, database_url) as database:
        known = revoke_device(database, device_serial, reason)
    print_line(f"{known} is revoked, for good.")
