"""Count everything that a database holds, to compare it with a copy."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from birthmark_sma.storage.schema import metadata, validation_history

Progress = Callable[[int, int | None], None]

_PATIENCE = "30s"


@dataclass(frozen=True, slots=True)
class Inventory:
    """How many rows each table has, and the highest id and newest time of the audit trail."""

    rows: dict[str, int]
    highest_audit_id: int | None
    newest_audit_at: datetime | None


def lock_tables(connection: Connection) -> None:
    """Keep PostgreSQL's tables and their partitions as they are until this transaction ends.

    Who reads and writes rows goes on. Before the first query of a transaction, so that its snapshot
    sees nothing that was gone by then. Raises DatabaseUnavailableError where others change them for
    longer than `_PATIENCE`.
    """
    names = ", ".join(
        connection.dialect.identifier_preparer.quote(each.name) for each in metadata.sorted_tables
    )
    connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE}'"))
    connection.execute(text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))
    connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))


def take_inventory(connection: Connection, progress: Progress) -> Inventory:
    """Count all tables, by reading them. In one transaction on one snapshot it is exact."""
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
