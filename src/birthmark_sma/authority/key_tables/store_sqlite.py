"""Statements of `key_tables.holders` for SQLite: see `HoldersSql` there, the only caller.

Arrays are JSON texts, in the columns and as parameters.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

_SHARING = text("""
SELECT shared, count(*) FROM (
    SELECT (SELECT count(*) FROM json_each(table_assignments)
            WHERE value IN (SELECT value FROM json_each(:tables))) AS shared
    FROM registered_devices
    WHERE status IN ('active', 'suspended') AND device_serial <> :without)
WHERE shared > 0 GROUP BY shared
""")
_BY_TABLE = text("""
SELECT own.value, count(*) FROM registered_devices, json_each(table_assignments) AS own
WHERE own.value IN (SELECT value FROM json_each(:tables)) AND status IN ('active', 'suspended')
GROUP BY own.value
""")
# Missing epochs are NULL, which means 0.
_STRAGGLERS = """
SELECT {columns} FROM registered_devices WHERE status IN ('active', 'suspended') AND EXISTS (
    SELECT 1 FROM json_each(table_assignments) AS own
    JOIN key_tables AS newest ON newest.table_id = own.value
    WHERE own.value IN (SELECT value FROM json_each(:tables))
        AND newest.epoch > coalesce(json_extract(table_epochs, '$[' || own.key || ']'), 0))
"""
_COUNT = text(_STRAGGLERS.replace("{columns}", "count(*)"))
_LIST = text(
    _STRAGGLERS.replace("{columns}", "device_serial, table_assignments, table_epochs")
    + " AND device_serial > :after ORDER BY device_serial LIMIT :limit"
)


def count_sharing(connection: Connection, table_ids: Sequence[int], without: str) -> dict[int, int]:
    """Return the number of devices by the number of these tables that they have."""
    marks = {"tables": json.dumps(list(table_ids)), "without": without}
    return {row[0]: row[1] for row in connection.execute(_SHARING, marks)}


def count_by_table(connection: Connection, table_ids: Sequence[int]) -> dict[int, int]:
    """Return the number of devices by table."""
    rows = connection.execute(_BY_TABLE, {"tables": json.dumps(list(table_ids))})
    return {row[0]: row[1] for row in rows}


def count_stragglers(connection: Connection, table_ids: Sequence[int]) -> int:
    """Return the number of devices with an earlier key of one of these tables."""
    return int(connection.execute(_COUNT, {"tables": json.dumps(list(table_ids))}).scalar_one())


def list_stragglers(
    connection: Connection, table_ids: Sequence[int], after: str, limit: int
) -> Sequence[Any]:
    """Return serial, tables and epochs of such devices, by serial."""
    marks = {"tables": json.dumps(list(table_ids)), "after": after, "limit": limit}
    rows = connection.execute(_LIST, marks)
    return [
        (serial, json.loads(tables), json.loads(epochs or "null"))
        for serial, tables, epochs in rows
    ]
