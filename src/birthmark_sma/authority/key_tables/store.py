"""Store and read the wrapped key tables and the row of the authority with their sizes.

Called by `key_tables.cache`, `ca.ceremony`, `kek.rotation` and the doctor. This module must never
see an unwrapped master key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, inspect, select, update

from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.portable_sql import insert_or_skip
from birthmark_sma.storage.schema import authority, key_tables


@dataclass(frozen=True, slots=True)
class WrappedTable:
    """A table's master key, wrapped under the key-encryption key `kek_id`."""

    table_id: int
    master_key: bytes = field(repr=False)
    kek_id: int


_COLUMNS = [key_tables.c[each.name] for each in fields(WrappedTable)]


def add_authority(
    transaction: Connection, sizes: TableSizes, now: datetime, *, sandbox: bool = False
) -> bool:
    """Create the row of the authority in this database; return False if there is one already."""
    # The fixed id decides the race: of two processes, only one inserts the row.
    inserting = insert_or_skip(transaction, authority).returning(authority.c.id)
    claimed = transaction.execute(
        inserting.values(id=1, **asdict(sizes), created_at=now, sandbox=sandbox)
    )
    return claimed.one_or_none() is not None


def was_created_as_sandbox(connection: Connection) -> bool | None:
    """Return True if the authority was created as a sandbox, None if there is no authority.

    This works with every version of the schema, also before its migration.
    """
    # The schema is inspected first, because table or column are missing before a migration.
    schema = inspect(connection)
    if not schema.has_table(authority.name):
        return None
    if all(column["name"] != "sandbox" for column in schema.get_columns(authority.name)):
        there = connection.execute(select(authority.c.id)).scalar_one_or_none()
        return None if there is None else False  # older than the sandbox feature
    return connection.execute(select(authority.c.sandbox)).scalar_one_or_none()


def find_sizes(connection: Connection) -> TableSizes | None:
    """Return the sizes fixed at initialisation, or None if there is no authority yet."""
    row = connection.execute(select(authority.c.tables, authority.c.keys_per_table)).one_or_none()
    return None if row is None else TableSizes(*row)


def add_tables(transaction: Connection, tables: Iterable[WrappedTable], now: datetime) -> None:
    """Add wrapped tables. A table id that exists already keeps its master key."""
    rows = [asdict(table) | {"created_at": now} for table in tables]
    transaction.execute(insert_or_skip(transaction, key_tables), rows)


def list_table_ids(connection: Connection) -> list[int]:
    """Return the ids of all existing tables, ascending."""
    table_id = key_tables.c.table_id
    return list(connection.execute(select(table_id).order_by(table_id)).scalars())


def list_tables(connection: Connection) -> list[WrappedTable]:
    """Return all wrapped tables, in the order of their ids."""
    rows = connection.execute(select(*_COLUMNS).order_by(key_tables.c.table_id))
    return [WrappedTable(*row) for row in rows]


def count_tables(connection: Connection) -> int:
    """Return the number of existing tables."""
    return connection.execute(select(func.count()).select_from(key_tables)).scalar_one()


def count_by_kek(connection: Connection) -> dict[int, int]:
    """Return the number of tables by the id of their key-encryption key."""
    table = key_tables.c
    rows = connection.execute(select(table.kek_id, func.count()).group_by(table.kek_id))
    return {row[0]: row[1] for row in rows}


def take_outdated(transaction: Connection, kek_id: int, limit: int) -> list[WrappedTable]:
    """Lock and return up to `limit` tables that are not wrapped under the key `kek_id`.

    The locks last until the transaction ends. Rows that another transaction has locked are skipped
    (SKIP LOCKED), so this never waits.
    """
    table = key_tables.c
    rows = transaction.execute(
        select(*_COLUMNS)
        .where(table.kek_id != kek_id)
        .order_by(table.table_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [WrappedTable(*row) for row in rows]


def put_rewrapped(transaction: Connection, tables: Sequence[WrappedTable]) -> None:
    """Replace the tables of `take_outdated` with the same master keys, wrapped again."""
    # The parameter has another name than the column, which SQLAlchemy reserves for SET.
    transaction.execute(
        update(key_tables).where(key_tables.c.table_id == bindparam("place")),
        [{"place": t.table_id, "master_key": t.master_key, "kek_id": t.kek_id} for t in tables],
    )
