"""Key tables and the keys that wrap them, always in their wrapped form."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.dialects import insert_or_skip
from birthmark_sma.storage.schema import authority, key_encryption_keys, key_tables


@dataclass(frozen=True, slots=True)
class WrappedTable:
    """A table's master key, wrapped under the key-encryption key `kek_id`."""

    table_id: int
    master_key: bytes
    kek_id: int


@dataclass(frozen=True, slots=True)
class StoredKek:
    """Where a key-encryption key comes from (`passphrase` or `file`), and what proves it."""

    kek_id: int
    source: str
    salt: bytes
    wrapped_nuc_hash_key: bytes


def add_authority(transaction: Connection, sizes: TableSizes, now: datetime) -> bool:
    """Claim this database for an authority of these sizes; False where it has one already."""
    claimed = transaction.execute(
        insert_or_skip(transaction, authority)
        .values(id=1, tables=sizes.tables, keys_per_table=sizes.keys_per_table, created_at=now)
        .returning(authority.c.id)
    )
    return claimed.one_or_none() is not None


def find_sizes(connection: Connection) -> TableSizes | None:
    """Return the sizes fixed at initialisation, or None where there is no authority yet."""
    row = connection.execute(select(authority.c.tables, authority.c.keys_per_table)).one_or_none()
    return None if row is None else TableSizes(*row)


def add_kek(transaction: Connection, kek: StoredKek, now: datetime) -> None:
    """Record a key-encryption key's source and proof, never the key."""
    transaction.execute(
        insert(key_encryption_keys).values(
            kek_id=kek.kek_id,
            source=kek.source,
            salt=kek.salt,
            wrapped_nuc_hash_key=kek.wrapped_nuc_hash_key,
            created_at=now,
        )
    )


def current_kek(connection: Connection) -> StoredKek | None:
    """Return the newest key-encryption key's record."""
    table = key_encryption_keys.c
    row = connection.execute(
        select(table.kek_id, table.source, table.salt, table.wrapped_nuc_hash_key)
        .order_by(table.kek_id.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else StoredKek(*row)


def add_tables(transaction: Connection, tables: Iterable[WrappedTable], now: datetime) -> None:
    """Add wrapped tables. A table id that exists keeps its master key, whoever was first."""
    transaction.execute(
        insert_or_skip(transaction, key_tables),
        [
            {
                "table_id": table.table_id,
                "master_key": table.master_key,
                "kek_id": table.kek_id,
                "created_at": now,
            }
            for table in tables
        ],
    )


def list_table_ids(connection: Connection) -> list[int]:
    """Return the ids of all tables that exist, ascending."""
    return list(
        connection.execute(select(key_tables.c.table_id).order_by(key_tables.c.table_id)).scalars()
    )


def list_tables(connection: Connection) -> list[WrappedTable]:
    """Return every table, in the order of their ids."""
    table = key_tables.c
    rows = connection.execute(
        select(table.table_id, table.master_key, table.kek_id).order_by(table.table_id)
    )
    return [WrappedTable(*row) for row in rows]


def count_tables(connection: Connection) -> int:
    """Return how many tables exist."""
    return connection.execute(select(func.count()).select_from(key_tables)).scalar_one()
