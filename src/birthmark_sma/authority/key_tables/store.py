"""Store and read the wrapped key tables and the row of the authority with their sizes.

Called by `key_tables.cache`, `key_tables.epochs`, `ca.ceremony`, `kek.rotation` and the doctor. A
table has one master key in `key_tables`, and while an overlap is open the one of the epoch before
in `earlier_table_keys`. This module must never see an unwrapped master key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, Table, bindparam, delete, func, inspect, select, update

from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.portable_sql import insert_or_skip, is_any_of
from birthmark_sma.storage.schema.authority import authority
from birthmark_sma.storage.schema.key_tables import earlier_table_keys, key_tables


@dataclass(frozen=True, slots=True)
class WrappedTable:
    """A table's master key of one epoch, wrapped under the key-encryption key `kek_id`."""

    table_id: int
    master_key: bytes = field(repr=False)
    kek_id: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class EarlierTable(WrappedTable):
    """The master key that a rotation replaced. It is accepted until a time of the database."""

    rotated_at: datetime = field(kw_only=True)
    accepted_until: datetime = field(kw_only=True)


_NAMES = [each.name for each in fields(WrappedTable)]
_COLUMNS = [key_tables.c[name] for name in _NAMES]
_EARLIER_COLUMNS = [earlier_table_keys.c[each.name] for each in fields(EarlierTable)]


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


def count_by_kek(connection: Connection, table: Table = key_tables) -> dict[int, int]:
    """Return the number of master keys by the id of their key-encryption key.

    `table` is `key_tables` or `earlier_table_keys`, here and below.
    """
    rows = connection.execute(select(table.c.kek_id, func.count()).group_by(table.c.kek_id))
    return {row[0]: row[1] for row in rows}


def take_outdated(
    transaction: Connection, kek_id: int, limit: int, table: Table = key_tables
) -> list[WrappedTable]:
    """Lock and return up to `limit` master keys that are not wrapped under the key `kek_id`.

    The locks last until the transaction ends. Rows that another transaction has locked are skipped
    (SKIP LOCKED), so this never waits.
    """
    rows = transaction.execute(
        select(*(table.c[name] for name in _NAMES))
        .where(table.c.kek_id != kek_id)
        .order_by(table.c.table_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [WrappedTable(*row) for row in rows]


def put_tables(
    transaction: Connection, tables: Sequence[WrappedTable], table: Table = key_tables
) -> None:
    """Replace the master keys of existing tables. Call it with their rows locked."""
    # The parameter has another name than the column, which SQLAlchemy reserves for SET.
    transaction.execute(
        update(table).where(table.c.table_id == bindparam("place")),
        [
            {
                "place": each.table_id,
                "master_key": each.master_key,
                "kek_id": each.kek_id,
                "epoch": each.epoch,
            }
            for each in tables
        ],
    )


# --- epochs


def find_generation(connection: Connection) -> int:
    """Return the number that rises with each change of a table's keys; 0 without an authority."""
    generation = connection.execute(select(authority.c.table_generation)).scalar_one_or_none()
    return generation or 0


def raise_generation(transaction: Connection) -> int:
    """Raise the generation by one, so that servers read the tables again; return the new one."""
    raising = update(authority).values(table_generation=authority.c.table_generation + 1)
    return int(transaction.execute(raising.returning(authority.c.table_generation)).scalar_one())


def find_epochs(connection: Connection, table_ids: Sequence[int]) -> dict[int, int]:
    """Return the current epochs of tables, by table id. Unknown tables are missing."""
    column = key_tables.c.table_id
    rows = connection.execute(
        select(column, key_tables.c.epoch).where(is_any_of(connection, column, table_ids))
    )
    return {row[0]: row[1] for row in rows}


def list_epochs(connection: Connection) -> list[tuple[int, int, datetime | None, datetime | None]]:
    """Return id and epoch of all tables, by id, and `rotated_at` and `accepted_until` if there.

    This reads no wrapped key.
    """
    table, earlier = key_tables.c, earlier_table_keys.c
    rows = connection.execute(
        select(table.table_id, table.epoch, earlier.rotated_at, earlier.accepted_until)
        .outerjoin_from(key_tables, earlier_table_keys, earlier.table_id == table.table_id)
        .order_by(table.table_id)
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def lock_tables(transaction: Connection, table_ids: Sequence[int]) -> list[WrappedTable]:
    """Return these tables in the order of their ids, and lock them until the transaction ends."""
    column = key_tables.c.table_id
    rows = transaction.execute(
        select(*_COLUMNS)
        .where(is_any_of(transaction, column, table_ids))
        .order_by(column)
        .with_for_update()
    )
    return [WrappedTable(*row) for row in rows]


def add_earlier(transaction: Connection, tables: Sequence[EarlierTable]) -> None:
    """Add the master keys that were replaced. A table must have none here."""
    transaction.execute(earlier_table_keys.insert(), [asdict(table) for table in tables])


def list_earlier(connection: Connection) -> list[EarlierTable]:
    """Return the earlier master keys of all tables, in the order of their ids."""
    rows = connection.execute(select(*_EARLIER_COLUMNS).order_by(earlier_table_keys.c.table_id))
    return [EarlierTable(**row._asdict()) for row in rows]


def count_open(connection: Connection, now: datetime) -> int:
    """Return the number of tables whose earlier master key is accepted at `now`."""
    return connection.execute(
        select(func.count())
        .select_from(earlier_table_keys)
        .where(earlier_table_keys.c.accepted_until > now)
    ).scalar_one()


def delete_earlier(transaction: Connection, table_ids: Sequence[int]) -> list[int]:
    """Delete the earlier master keys of these tables; return the ids of those that had one."""
    column = earlier_table_keys.c.table_id
    gone = transaction.execute(
        delete(earlier_table_keys)
        .where(is_any_of(transaction, column, table_ids))
        .returning(column)
    ).scalars()
    return sorted(gone)
