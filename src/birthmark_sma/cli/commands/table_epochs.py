"""`sma tables rotate`, `list`, `stragglers`, `end` and `exposure`: the epochs of key tables.

`commands/tables.py` registers them. The rules are in `authority/key_tables/epochs.py`. No command
shows a key.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import administration, existing_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    confirm,
    print_fields,
    print_json,
    print_line,
    print_object,
    print_table,
    quoted,
    waiting,
)
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from birthmark_sma.authority.key_tables.epochs import TableState
    from birthmark_sma.authority.key_tables.holders import Exposure, Straggler
    from birthmark_sma.config import Settings

TableIds = Annotated[list[int] | None, Argument(help="The ids of key tables.", min=0)]
DeviceSerial = Annotated[
    str | None, Option("--device", help="Take the three tables of the device with this serial.")
]
Limit = Annotated[int, Option(min=1, max=10_000, help="The number of rows to list.")]
_MOST_TABLES = 10  # that the text for people lists one by one


def rotate(
    settings: "Settings",
    table_ids: TableIds = None,
    all_: Annotated[bool, Option("--all", help="Rotate all key tables.")] = False,
    device: DeviceSerial = None,
    accept_earlier_for: Annotated[
        str,
        Option(
            help="How long camera tokens under the earlier keys still pass, such as 12h or 30d. 0"
            " cuts off every device that has them."
        ),
    ] = "30d",
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would change, and stop.")] = False,
    yes: Annotated[bool, Option("--yes", help="Rotate without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Give key tables new keys: those of a stolen camera, or all.

    Devices that are provisioned from then on get the new keys. Camera tokens under the earlier keys
    pass until the given time is over. All tables change in one transaction.
    """
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets
    from birthmark_sma.authority.key_tables import epochs, holders
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
    from birthmark_sma.storage.portable_sql import database_time

    overlap = parse_duration(accept_earlier_for, "--accept-earlier-for", may_be_zero=True)
    with existing_database(settings) as database:
        with waiting("Counting devices"), database.read(LONG_SECONDS) as connection:
            chosen = _choose(connection, table_ids, device, all_=all_)
            now = database_time(connection)
            ended = database.clock.expired_before(timedelta())
            epochs.check_no_overlap(connection, chosen, ended, now)
            exposure = holders.find_exposure(connection, chosen)
            states = {each.table_id: each for each in epochs.list_states(connection)}
        if dry_run:
            planned = [epochs.TableState(each, states[each].epoch + 1) for each in chosen]
            _print_rotation(planned, exposure, now + overlap if overlap else None, as_json=as_json)
            return
        keks = open_stored_secrets(database, settings).keks
        confirm(
            _describe_plan(exposure, now + overlap if overlap else None),
            "Rotate?",
            "To rotate without being asked, add --yes.",
            yes=yes,
        )
        rotated = epochs.rotate(database, keks, chosen, overlap, find_actor())
    _print_rotation(rotated, exposure, rotated[0].accepted_until, as_json=as_json, done=True)


def list_(
    settings: "Settings",
    open_: Annotated[bool, Option("--open", help="Only tables whose overlap is open.")] = False,
    limit: Limit = 50,
    after: Annotated[int, Option(min=-1, help="Begin after this id, for the next page.")] = -1,
    as_json: Json = False,
) -> None:
    """List key tables with their epochs, and how long the earlier keys are accepted."""
    with administration(settings) as authority:
        page = authority.list_tables(only_open=open_, limit=limit, after=after)
    if as_json:
        print_object(page)
        return
    if not page.tables:
        print_line("No overlap is open." if open_ else "There are no more tables.")
        return
    rows = [
        [
            str(each.table_id),
            str(each.epoch),
            _moment(each.rotated_at),
            _moment(each.accepted_until),
        ]
        for each in page.tables
    ]
    columns = ["TABLE", "EPOCH", "ROTATED (UTC)", "EARLIER KEY ACCEPTED UNTIL (UTC)"]
    print_table(columns, rows, numbers=columns[:2])
    print_line(f"\n{counted(page.open_overlaps, 'overlap is', 'overlaps are')} open.")
    if page.next_cursor is not None:
        print_line(f"There are more. For the next page: --after {page.next_cursor}")


def stragglers(
    settings: "Settings",
    table_ids: TableIds = None,
    limit: Limit = 50,
    after: Annotated[str, Option(help="Begin after this serial, for the next page.")] = "",
    as_json: Json = False,
) -> None:
    """List the devices that still have an earlier key of a table, sorted by serial.

    Without table ids, all tables count. Revoked devices are left out.
    """
    from birthmark_sma.authority.key_tables import holders
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

    with (
        existing_database(settings) as database,
        waiting("Looking at all devices"),
        database.read(LONG_SECONDS) as connection,
    ):
        chosen = _choose(connection, table_ids, None, all_=not table_ids)
        total = holders.count_stragglers(connection, chosen)
        found = holders.list_stragglers(connection, chosen, limit=limit, after=after)
    if as_json:
        print_json({"total": total, "devices": [_straggler_as_json(each) for each in found]})
        return
    if not found:
        print_line("No device has an earlier key." if not total else "No device is after this one.")
        return
    rows = [
        [each.device_serial, str(key.table_id), f"{key.epoch} of {key.current_epoch}", until]
        for each in found
        for key in each.outdated
        for until in [_moment(key.accepted_until) if key.accepted_until else "cut off"]
    ]
    print_table(["DEVICE", "TABLE", "EPOCH", "ACCEPTED UNTIL (UTC)"], rows, numbers=["TABLE"])
    print_line(f"\n{counted(total, 'device has', 'devices have')} an earlier key.")
    if len(found) == limit:
        print_line(f"For the next page: --after {quoted(found[-1].device_serial)}")


def end(
    settings: "Settings",
    table_ids: TableIds = None,
    all_: Annotated[bool, Option("--all", help="End every overlap that is open.")] = False,
    yes: Annotated[bool, Option("--yes", help="End them without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Stop accepting the earlier keys of key tables before their time, and delete these keys.

    From then on the camera tokens of devices that have not got the new keys fail.
    """
    from birthmark_sma.authority.key_tables import epochs, holders
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

    with existing_database(settings) as database:
        with waiting("Counting devices"), database.read(LONG_SECONDS) as connection:
            chosen = set(_choose(connection, table_ids, None, all_=all_))
            overlaps = [
                each.table_id
                for each in epochs.list_states(connection)
                if each.accepted_until is not None and each.table_id in chosen
            ]
            cut_off = holders.count_stragglers(connection, overlaps)
        if overlaps:
            confirm(
                f"{counted(len(overlaps), 'overlap is', 'overlaps are')} open."
                f" {counted(cut_off, 'device has', 'devices have')} an earlier key: tokens under it"
                " will fail, and this cannot be undone.",
                "End them?",
                "To see the devices, type: sma tables stragglers. To cut them off, add --yes.",
                yes=yes,
            )
        ended = epochs.end_overlaps(database, overlaps, find_actor())
    if as_json:
        print_json({"ended": ended, "devices_cut_off": cut_off if ended else 0})
    elif ended:
        print_line(
            f"{counted(len(ended), 'overlap')} ended, and"
            f" {counted(cut_off, 'device was', 'devices were')} cut off. The earlier keys are"
            " deleted."
        )
    else:
        print_line("No overlap is open. Nothing was changed.")


def exposure(
    settings: "Settings",
    table_ids: TableIds = None,
    device: DeviceSerial = None,
    as_json: Json = False,
) -> None:
    """Show how many devices share key tables with a device, or have these tables.

    With the keys of a table, an attacker can open the camera tokens under it, and pose as each
    device whose NUC hash they contain. Revoked devices are left out.
    """
    from birthmark_sma.authority.devices.revocation import find_named
    from birthmark_sma.authority.key_tables import holders
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

    with (
        existing_database(settings) as database,
        waiting("Counting devices"),
        database.read(LONG_SECONDS) as connection,
    ):
        chosen = _choose(connection, table_ids, device, all_=False)
        serial = "" if device is None else find_named(connection, device).device_serial
        found = holders.find_exposure(connection, chosen, without=serial)
    if as_json:
        print_json(
            {
                "tables": [
                    {"table_id": each, "devices": n} for each, n in found.devices_by_table.items()
                ],
                "devices": found.devices,
                "devices_by_shared_tables": found.devices_by_shared,
            }
        )
        return
    others = "other device" if device is not None else "device"
    fields = [("devices exposed", f"{found.devices:,}")]
    for shared, devices in found.devices_by_shared.items():
        if shared <= len(chosen):
            share = "shares" if devices == 1 else "share"
            fields.append(("", f"{counted(devices, others)} {share} {counted(shared, 'table')}"))
    print_fields([*fields, *_table_fields(found)])


def _choose(
    connection: "Connection", table_ids: Sequence[int] | None, device: str | None, *, all_: bool
) -> list[int]:
    """Return the ids of the tables that the arguments name. Raises BadParameter."""
    from birthmark_sma.authority.devices.revocation import find_named
    from birthmark_sma.authority.key_tables import epochs
    from birthmark_sma.authority.key_tables import store as key_table_store

    if bool(table_ids) + (device is not None) + all_ != 1:
        raise BadParameter("Give table ids, or one of the options that name tables.")
    if device is not None:
        table_ids = find_named(connection, device).table_assignments
    elif all_:
        table_ids = key_table_store.list_table_ids(connection)
    return epochs.check_tables(connection, table_ids or ())


def _describe_plan(exposure: "Exposure", until: datetime | None) -> str:
    accepted = (
        f"Tokens under the earlier keys pass until {_moment(until)} UTC."
        if until
        else "Tokens under the earlier keys fail at once."
    )
    return (
        f"{counted(len(exposure.tables), 'key table')} will get new keys."
        f" {counted(exposure.devices, 'device has', 'devices have')} the earlier ones. {accepted}"
    )


def _print_rotation(
    tables: Sequence["TableState"],
    exposure: "Exposure",
    until: datetime | None,
    *,
    as_json: bool,
    done: bool = False,
) -> None:
    if as_json:
        listed = [
            {
                "table_id": each.table_id,
                "epoch": each.epoch,
                "devices": exposure.devices_by_table[each.table_id],
            }
            for each in tables
        ]
        print_json(
            {
                "rotated": done,
                "devices": exposure.devices,
                "accepted_until": until,
                "tables": listed,
            }
        )
        return
    if not done:
        print_line(f"{_describe_plan(exposure, until)} Nothing was changed.\n")
    else:
        print_line(f"{counted(len(tables), 'key table')} rotated.\n")
    accepted = f"until {_moment(until)} UTC" if until else "no longer"
    print_fields(
        [
            ("devices with earlier keys", f"{exposure.devices:,}"),
            ("earlier keys accepted", accepted),
            *_table_fields(exposure),
        ]
    )


def _table_fields(exposure: "Exposure") -> list[tuple[str, str]]:
    counts = list(exposure.devices_by_table.items())
    fields = [
        (f"table {table_id}", counted(devices, "device"))
        for table_id, devices in counts[:_MOST_TABLES]
    ]
    if len(counts) > _MOST_TABLES:
        fields.append(("", f"and {counted(len(counts) - _MOST_TABLES, 'more table')}; see --json"))
    return fields


def _straggler_as_json(straggler: "Straggler") -> dict[str, Any]:
    return {
        "device_serial": straggler.device_serial,
        "earlier_keys": [each._asdict() for each in straggler.outdated],
    }


def _moment(time: datetime | None) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"
