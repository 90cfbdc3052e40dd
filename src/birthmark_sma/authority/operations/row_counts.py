"""Count the rows of all tables, so that a backup can be compared with its database.

`backup` counts at the moment of the copy, `restore` counts again. Both need a transaction with one
snapshot for exact numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from birthmark_sma.storage.schema import metadata, validation_history

Progress = Callable[[int, int | None], None]
"""Called with the work done and the total (None if unknown), in bytes or steps."""

_PATIENCE = "30s"  # lock_timeout


@dataclass(frozen=True, slots=True)
class Inventory:
    """The number of rows of each table, and the highest id and newest time of the audit log."""

    rows: dict[str, int]
    highest_audit_id: int | None
    newest_audit_at: datetime | None


def lock_tables(connection: Connection) -> None:
    """Lock PostgreSQL's tables and partitions against DROP and ALTER until this transaction ends.

    Other transactions can still read and write rows. Call it before the first query of the
    transaction: its snapshot is then taken under the lock and contains no partition that is dropped
    meanwhile. Raises DatabaseUnavailableError if the locks are not free within 30 seconds.
    """
    # ACCESS SHARE, the lock of a SELECT, conflicts only with ACCESS EXCLUSIVE, as DROP takes it.
    names = ", ".join(
        connection.dialect.identifier_preparer.quote(each.name) for each in metadata.sorted_tables
    )
    connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE}'"))
    connection.execute(text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))
    connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))


def take_inventory(connection: Connection, progress: Progress) -> Inventory:
    """Count the rows of all tables by reading them. `progress` counts tables.

    The numbers are exact if the transaction has one snapshot.
    """
    rows: dict[str, int] = {}
    tables = metadata.sorted_tables
    for done, table in enumerate(tables):
        progress(done, len(tables))
        counting = select(func.count()).select_from(table)
        rows[table.name] = connection.execute(counting).scalar_one()
    trail = validation_history.c
    highest, newest = connection.execute(
        select(func.max(trail.id), func.max(trail.validated_at))
    ).one()
    progress(len(tables), len(tables))
    return Inventory(rows, highest, newest)
