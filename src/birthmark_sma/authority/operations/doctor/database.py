"""Checks that are the same on both databases: connection, schema, authority, serials, retention.

`runner` calls them. `sqlite_checks` and `postgresql_checks` have the checks that differ.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from birthmark_sma.authority.background import pruning
from birthmark_sma.authority.background.privacy import coarsening
from birthmark_sma.authority.background.retention import oldest_kept
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices import uniqueness
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.doctor import postgresql_checks, sqlite_checks
from birthmark_sma.authority.operations.doctor.findings import Finding, critical, info, ok, warning
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.config import Settings
from birthmark_sma.counts import counted
from birthmark_sma.errors import AuthorityMovedError, BirthmarkError, DatabaseUnavailableError
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.migration import check_schema
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.schema import HEAD_REVISION

_LISTED = 3  # names that are listed one by one
_LEDGER_ROWS = 1_000
_LISTED_COLLISIONS = 20
_LISTED_UNLISTED = 1_000


def check_connection(database: Database, file: Path | None) -> Iterator[Finding]:
    """Check that the database answers. If not, this is critical, and the only finding."""
    try:
        database.ping()
    except DatabaseUnavailableError as error:
        why = f": {error.advice}" if error.advice else ""
        yield critical(f"{error}{why}", "Callers get 503 until it answers. No data are lost")
        return
    if file is None:
        yield from postgresql_checks.check_server(database)
    else:
        yield from sqlite_checks.check_file(database, file)


def check_schema_parts(database: Database) -> Iterator[Finding]:
    """Check that the schema is this program's and complete, and that privileges suffice.

    Anything else is critical.
    """
    try:
        check_schema(database)
    except AuthorityMovedError as error:
        what, _, do = str(error).partition(". ")
        yield critical(what, do)
        return
    except BirthmarkError as error:
        what, _, do = str(error).partition(" Type: ")
        yield critical(what.rstrip("."), f"Type {do}" if do else "Look at its version")
        return
    with database.read() as connection:
        missing = health.missing_parts(connection)
        refused = [] if missing else health.missing_privileges(connection)
    if missing:
        yield critical(
            f"The schema is {HEAD_REVISION}, but these parts are missing: {_some(missing)}",
            "Restore a backup: somebody changed the tables",
        )
    elif refused:
        yield critical(
            f"The database's user lacks privileges that the service needs: {_some(refused)}",
            "Grant them, as with GRANT ALL ON ALL TABLES IN SCHEMA public, and the same for ALL"
            " SEQUENCES",
        )
    else:
        yield ok(f"The schema is {HEAD_REVISION}, the one that this program needs")


def check_authority(database: Database) -> Iterator[Finding]:
    """Check that the database holds an authority. If not, this is critical."""
    with database.read() as connection:
        if key_table_store.find_sizes(connection) is None:
            yield critical("This database has no authority yet", "Type sma init")


def check_serials(database: Database) -> Iterator[Finding]:
    """Warn of devices whose serials are the same name (`pki.names.fold`).

    Only devices that an old version provisioned can have such serials.
    """
    with database.read(LONG_SECONDS) as connection:
        pairs = uniqueness.list_collisions(connection, limit=_LISTED_COLLISIONS + 1)
    for older, later in pairs[:_LISTED_COLLISIONS]:
        yield warning(
            f"{later!r} is the same name as {older!r}, which was provisioned before",
            "Both work under their exact serials. Provision one of the cameras again under another"
            " serial, and revoke the old one",
        )
    if len(pairs) > _LISTED_COLLISIONS:
        yield warning(
            f"More than {_LISTED_COLLISIONS} devices have the name of an older one",
            "Correct those that are listed, then run this command again",
        )
    if not pairs:
        yield ok("No two devices have the same name")


def check_statuses(database: Database) -> Iterator[Finding]:
    """Check that the certificates of devices that are not active are on the revocation list.

    Only an operator's own SQL can leave one out: an act changes both in one transaction.
    """
    with database.read(LONG_SECONDS) as connection:
        numbers = device_store.count_out_of_order(connection)
        unlisted = device_store.list_unlisted(connection, limit=_LISTED_UNLISTED)
    if unlisted:
        yield warning(
            f"Devices are not active, and not on the revocation list either: {_some(unlisted)}",
            "Suspend, revoke or retire them again with sma devices: that lists them. Until then an"
            " aggregation server with the list alone accepts their bundles",
        )
        return
    told = ", ".join(f"{number:,} {status.value}" for status, number in numbers.items())
    yield ok(f"Devices that are not active, all on the revocation list: {told or 'none'}")


def check_retention(database: Database, settings: Settings, now: datetime) -> Iterator[Finding]:
    """Warn if the audit log or the replay ledger has rows older than the retention time."""
    days = settings.audit_retention_days
    if days is None:
        yield info(
            "The audit log and the replay ledger are kept for ever",
            "To limit them, set SMA_AUDIT_RETENTION_DAYS",
        )
        return
    late = oldest_kept(days + 1, now)  # a day of grace: servers prune every hour
    with database.read(LONG_SECONDS) as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), late)
        rows = bool(whole) or any(pruning.is_any_older(connection, aged, late) for aged in partly)
        tokens = bool(make_store(database).find_old_tokens(connection, late, limit=_LEDGER_ROWS))
    if rows or tokens:
        old = [name for name, is_old in (("audit log", rows), ("replay ledger", tokens)) if is_old]
        yield warning(
            f"Rows are older than the retention of {counted(days, 'day')}, in: {' and '.join(old)}",
            "A server prunes every hour: look at its log, or type sma history prune"
            f" --older-than-days {days}",
        )
    else:
        yield ok(f"No row is older than the retention of {counted(days, 'day')}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def check_privacy(database: Database, settings: Settings, now: datetime) -> Iterator[Finding]:
    """Warn if the audit log has exact times and addresses that are older than the set days."""
    days = settings.privacy_days
    if days is None:
        return
    late = coarsening.find_due(database, oldest_kept(days + 1, now))  # a day of grace
    if late is not None:
        yield warning(
            f"Rows of {late:%Y-%m-%d} have exact times and addresses, after {counted(days, 'day')}",
            "A server coarsens them every hour: look at its log, or type sma history coarsen"
            f" --older-than-days {days}",
        )
    else:
        yield ok(f"No row older than {counted(days, 'day')} has an exact time or an address")
