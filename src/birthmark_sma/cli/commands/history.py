"""`sma history`: show the partitions of the audit log, and delete or coarsen old rows.

The work is in `authority/background/retention.py` and `background/privacy/coarsening.py`. Nothing
is deleted or dropped without --yes or a confirmation at a terminal.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, Yes, command
from birthmark_sma.cli.output import (
    confirm,
    pause,
    print_json,
    print_line,
    print_table,
    progress_bar,
    waiting,
)
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import datetime

    from birthmark_sma.authority.background.retention import Pruned
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.partitions import Partition

app = typer.Typer(no_args_is_help=True, help="Show, prune and coarsen the audit log.")


@command(app, "history prune")
def prune(
    settings: "Settings",
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete old audit rows, and the statistics of their days.

    Servers may run meanwhile. Deleted rows cannot be restored. A server with
    SMA_AUDIT_RETENTION_DAYS prunes by itself every hour. It signs a checkpoint that says so, and
    so needs the authority's secret.
    """
    from birthmark_sma.authority.background import retention
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets

    days = settings.audit_retention_days
    if days is None:
        raise ConfigurationError(
            "The number of days to keep is missing. Give --older-than-days, or set"
            " SMA_AUDIT_RETENTION_DAYS."
        )
    with existing_database(settings) as database:
        before = retention.oldest_kept(days, database.clock.now())
        with waiting("Counting old rows"):
            foreseen = retention.preview_prune(database, before)
        if dry_run or not (foreseen.partitions or foreseen.rows):
            _print_pruned(foreseen, before, done=False, as_json=as_json)
            return
        confirm(
            f"This deletes {_what(foreseen, before)} for ever.",
            "Delete?",
            "Add --yes, or try --dry-run first.",
            yes=yes,
        )
        total = len(foreseen.partitions) + foreseen.rows
        keks = open_stored_secrets(database, settings).keks
        with progress_bar("Deleting", transient=True) as progress:
            # `foreseen` is an estimate from before, so the total grows if more is deleted.
            pruned = retention.prune(
                database,
                before,
                pause,
                lambda done: progress(done, max(done, total)),
                find_actor(),
                keks=keks,
            )
    _print_pruned(pruned, before, done=True, as_json=as_json)


@command(app, "history coarsen")
def coarsen(settings: "Settings", yes: Yes = False, as_json: Json = False) -> None:
    """Put the hour in place of the time of old audit rows, and drop their addresses.

    Servers may run meanwhile. What is dropped cannot be restored; `sma audit verify` still verifies
    these rows. A server with SMA_PRIVACY_DAYS does this by itself every hour.
    """
    from birthmark_sma.authority.background.privacy import coarsening
    from birthmark_sma.authority.background.retention import oldest_kept

    days = settings.privacy_days
    if days is None:
        raise ConfigurationError(
            "The number of days to keep exactly is missing. Give --older-than-days, or set"
            " SMA_PRIVACY_DAYS."
        )
    with existing_database(settings) as database:
        before = oldest_kept(days, database.clock.now())
        with waiting("Looking for exact times"):
            first = coarsening.find_due(database, before)
        done = coarsening.Coarsened(is_done=True)
        if first is not None:
            confirm(
                "This drops the addresses and exact times of all rows from before"
                f" {before:%Y-%m-%d} for ever.",
                "Drop?",
                "Add --yes.",
                yes=yes,
            )
            with waiting("Dropping"):
                done = coarsening.coarsen(database, before, pause, find_actor(), since=first)
    if as_json:
        print_json({"before": before, "days": done.days, "rows": done.rows})
    elif first is None:
        print_line(f"No row from before {before:%Y-%m-%d} has an exact time.")
    else:
        print_line(
            f"Coarsened: {counted(done.rows, 'row')} of {counted(done.days, 'day')} from before"
            f" {before:%Y-%m-%d}."
        )


@command(app, "history partitions")
def partitions(settings: "Settings", as_json: Json = False) -> None:
    """Show the partitions of the audit log: period, number of rows and size."""
    from birthmark_sma.authority.validation.records import count_rows
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
    from birthmark_sma.storage.partitions import list_partitions

    with (
        existing_database(settings) as database,
        waiting("Counting"),
        database.read(LONG_SECONDS) as connection,
    ):
        found = list_partitions(connection)
        rows = sum(each.rows for each in found) if found else count_rows(connection)
    if as_json:
        names = ("name", "from", "to", "rows_estimate", "bytes")
        listed = [dict(zip(names, each, strict=True)) for each in found]
        print_json({"rows": rows, "partitions": listed})
        return
    if not found:
        print_line(
            f"SQLite has no partitions. The audit log is one table of {counted(rows, 'row')}."
        )
        return
    print_table(
        ["PARTITION", "FROM (UTC)", "TO (UTC)", "ROWS, ABOUT", "SIZE"],
        [[each.name, *_range(each), f"{each.rows:,}", _size(each.size)] for each in found],
    )
    print_line(f"\nAbout {counted(rows, 'row')}, {_size(sum(each.size for each in found))} in all.")


def _print_pruned(pruned: "Pruned", before: "datetime", *, done: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "deleted": done,
                "before": before,
                "partitions": list(pruned.partitions),
                "rows": pruned.rows,
            }
        )
    elif not (pruned.partitions or pruned.rows):
        print_line(f"Nothing is older than {before:%Y-%m-%d}.")
    else:
        print_line(f"{'Deleted' if done else 'Would delete'}: {_what(pruned, before)}.")


def _what(pruned: "Pruned", before: "datetime") -> str:
    parts = []
    if pruned.partitions:
        partitions = counted(len(pruned.partitions), "partition")
        parts.append(f"{partitions} ({', '.join(pruned.partitions)})")
    if pruned.rows:
        parts.append(counted(pruned.rows, "row"))
    return f"{' and '.join(parts)} from before {before:%Y-%m-%d}"


def _range(partition: "Partition") -> list[str]:
    begins, ends = partition.begins, partition.ends
    unbounded = "any other day" if ends is None else "the beginning"
    return [f"{bound:%Y-%m-%d}" if bound is not None else unbounded for bound in (begins, ends)]


def _size(size: int) -> str:
    return f"{size / 1_000_000:,.1f} MB"
