"""Count the rows of all tables, so that a backup can be compared with its database.

`backup` counts at the moment of the copy, `restore` counts again. Both need a transaction with one
snapshot for exact numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.schema import metadata, validation_history

Progress = Callable[[int, int | None], None]
"""Called with the work done and the total (None if unknown), in bytes or steps."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The number of rows of each table, and the highest id and newest time of the audit log."""

    rows: dict[str, int]
    highest_audit_id: int | None
    newest_audit_at: datetime | None


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
