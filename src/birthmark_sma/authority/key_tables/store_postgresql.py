"""Statements of `key_tables.holders` for PostgreSQL: see `HoldersSql` there, the only caller."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

_SHARING = text("""
SELECT shared, count(*) FROM (
    SELECT (SELECT count(*) FROM unnest(table_assignments) AS own (table_id)
            WHERE table_id = ANY(CAST(:tables AS int4[]))) AS shared
    FROM registered_devices
    WHERE status IN ('active', 'suspended') AND device_serial <> :without) AS found
WHERE shared > 0 GROUP BY shared
""")
_BY_TABLE = text("""
SELECT table_id, count(*) FROM registered_devices, unnest(table_assignments) AS own (table_id)
WHERE table_id = ANY(CAST(:tables AS int4[])) AND status IN ('active', 'suspended')
GROUP BY table_id
""")
# unnest() of two arrays pairs their elements. Missing epochs are NULL, which means 0.
_STRAGGLERS = """
SELECT {columns} FROM registered_devices WHERE status IN ('active', 'suspended') AND EXISTS (
    SELECT FROM unnest(table_assignments, table_epochs) AS own (table_id, epoch)
    JOIN key_tables AS newest USING (table_id)
    WHERE table_id = ANY(CAST(:tables AS int4[])) AND newest.epoch > coalesce(own.epoch, 0))
"""
_COUNT = text(_STRAGGLERS.replace("{columns}", "count(*)"))
_LIST = text(
    _STRAGGLERS.replace("{columns}", "device_serial, table_assignments, table_epochs")
    + " AND device_serial > :after ORDER BY device_serial LIMIT :limit"
)


def count_sharing(connection: Connection, table_ids: Sequence[int], without: str) -> dict[int, int]:
    """Return the number of devices by the number of these tables that they have."""
    rows = connection.execute(_SHARING, {"tables": list(table_ids), "without": without})
    return {row[0]: row[1] for row in rows}


def count_by_table(connection: Connection, table_ids: Sequence[int]) -> dict[int, int]:
    """Return the number of devices by table."""
    rows = connection.execute(_BY_TABLE, {"tables": list(table_ids)})
    return {row[0]: row[1] for row in rows}


def count_stragglers(connection: Connection, table_ids: Sequence[int]) -> int:
    """Return the number of devices with an earlier key of one of these tables."""
    return int(connection.execute(_COUNT, {"tables": list(table_ids)}).scalar_one())


def list_stragglers(
    connection: Connection, table_ids: Sequence[int], after: str, limit: int
) -> Sequence[Any]:
    """Return serial, tables and epochs of such devices, by serial."""
    marks = {"tables": list(table_ids), "after": after, "limit": limit}
    return connection.execute(_LIST, marks).all()
