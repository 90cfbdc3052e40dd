"""`sma renewals order`, `list` and `cancel`: pull the renewal of device certificates forward.

The rules are in `authority/renewal/orders.py`. An order moves renewal windows: each device renews
by itself when it next asks for its window. No command here changes a device.
"""

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import confirm, print_json, print_line, print_table, waiting
from birthmark_sma.counts import counted
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER

if TYPE_CHECKING:
    from birthmark_sma.authority.renewal.orders import Progress, RenewalOrder
    from birthmark_sma.authority.renewal.windows import RenewalCriteria
    from birthmark_sma.config import Settings

app = typer.Typer(
    help="Pull the renewal of device certificates forward, and watch it.", no_args_is_help=True
)

_LONGEST = timedelta(days=365)


@command(app, "renewals order")
def order(
    settings: "Settings",
    issuer: Annotated[
        str | None,
        Option(help="Devices with certificates of this intermediate, as `sma ca list` names it."),
    ] = None,
    family: Annotated[str | None, Option(help="Devices of this family.")] = None,
    app_version: Annotated[str | None, Option(help="Devices with this app version.")] = None,
    table: Annotated[
        int | None,
        Option(min=0, max=MAX_WIRE_INTEGER, help="Devices to which this key table is assigned."),
    ] = None,
    all_: Annotated[bool, Option("--all", help="All devices.")] = False,
    within: Annotated[
        str, Option(help="How long the devices have: 12h, 7d; up to 365d. It spreads the load.")
    ] = "7d",
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print how many devices would renew, and order nothing.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Order devices to renew their certificates within a time. Several criteria are combined.

    A device learns it when it next asks for its renewal window, at most 6 hours later. A
    certificate that is issued after this moment is not concerned.
    """
    from birthmark_sma.authority.renewal import orders
    from birthmark_sma.authority.renewal.windows import RenewalCriteria

    criteria = RenewalCriteria(issuer, family, app_version, table)
    if all_ == (criteria != RenewalCriteria()):
        raise typer.BadParameter(
            "Give --issuer, --family, --app-version or --table, or else --all alone."
        )
    period = parse_duration(within, "--within", longest=_LONGEST)
    with existing_database(settings) as database:
        with waiting("Counting devices"):
            matched = orders.preview(database, criteria)
        devices = counted(matched, "active device")
        if dry_run:
            if as_json:
                print_json({"matched": matched, "order": None})
            else:
                print_line(f"{devices} would renew within {within}. Nothing was ordered.")
            return
        if matched:
            confirm(
                f"{devices} will renew within {within}.",
                "Order it?",
                "Repeat the command with --yes.",
                yes=yes,
            )
        given = orders.give_order(database, criteria, period, find_actor())
    if as_json:
        print_json({"matched": given.matched, "order": _order_as_json(given)})
        return
    who = counted(given.matched, "active device renews", "active devices renew")
    print_line(
        f"Order {given.id}: {who} until {given.ends_at:%Y-%m-%d %H:%M} UTC, each when it next asks"
        " for its window."
    )
    print_line(f"To watch: sma renewals list. To undo: sma renewals cancel {given.id}")


@command(app, "renewals list")
def list_(
    settings: "Settings",
    limit: Annotated[int, Option(min=1, max=1_000, help="The most orders to list.")] = 20,
    as_json: Json = False,
) -> None:
    """List renewal orders, the newest first, with how many devices have renewed since."""
    from birthmark_sma.authority.renewal import orders
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
    from birthmark_sma.storage.portable_sql import database_time

    with (
        existing_database(settings) as database,
        waiting("Counting devices"),
        database.read(LONG_SECONDS) as connection,
    ):
        now = database_time(connection)
        found = [
            orders.read_progress(connection, each)
            for each in orders.list_orders(connection, limit=limit)
        ]
    if as_json:
        print_json(
            {
                "orders": [
                    {**_order_as_json(each.order), "renewed": each.renewed, "left": each.left}
                    for each in found
                ]
            }
        )
        return
    if not found:
        print_line("No renewal was ordered.")
        return
    rows = [
        [
            str(each.order.id),
            _describe(each.order.criteria),
            f"{each.order.opened_at:%Y-%m-%d %H:%M}",
            f"{each.order.ends_at:%Y-%m-%d %H:%M}",
            f"{each.order.matched:,}",
            f"{each.renewed:,}",
            f"{each.left:,}",
            _state(each, late=each.order.ends_at <= now),
        ]
        for each in found
    ]
    columns = ["ORDER", "DEVICES", "FROM (UTC)", "UNTIL (UTC)", "MATCHED", "RENEWED", "LEFT"]
    print_table([*columns, "STATE"], rows, numbers={"MATCHED", "RENEWED", "LEFT"})


@command(app, "renewals cancel")
def cancel(
    settings: "Settings",
    number: Annotated[int, Argument(min=1, max=MAX_WIRE_INTEGER, help="The number of the order.")],
    as_json: Json = False,
) -> None:
    """Cancel a renewal order. Devices that have not renewed get their usual window again."""
    from birthmark_sma.authority.renewal import orders

    with existing_database(settings) as database:
        changed = orders.cancel(database, number, find_actor())
    if as_json:
        print_json({"order": number, "changed": changed})
    elif changed:
        print_line(f"Order {number} is cancelled.")
    else:
        print_line(f"Order {number} was cancelled before. Nothing was changed.")


def _describe(criteria: "RenewalCriteria") -> str:
    named = {
        "issuer": criteria.certificate_issuer,
        "family": criteria.device_family,
        "app version": criteria.app_version,
        "table": criteria.table_id,
    }
    told = [f"{name} {value}" for name, value in named.items() if value is not None]
    return ", ".join(told) or "all"


def _state(progress: "Progress", *, late: bool) -> str:
    if progress.order.cancelled_at is not None:
        return "cancelled"
    if not progress.left:
        return "done"
    return "late" if late else "open"


def _order_as_json(given: "RenewalOrder") -> dict[str, Any]:
    return {
        "id": given.id,
        "opened_at": given.opened_at,
        "ends_at": given.ends_at,
        "actor": given.actor,
        **asdict(given.criteria),
        "matched": given.matched,
        "cancelled_at": given.cancelled_at,
    }
