"""SQL for the records of key-encryption keys: their source and proof, never the key itself.

Called by `wrapping`, `rotation` and the ceremony. There is one record, except during a rotation
(docs/adr/0008). Then the records form a chain: each has the key of its successor and of its
predecessor, wrapped under its own key, so that one of the keys suffices to open all others.
"""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from birthmark_sma.storage.portable_sql import insert_or_skip
from birthmark_sma.storage.schema.authority import key_encryption_keys as table


@dataclass(frozen=True, slots=True)
class KekRecord:
    """The record of a key-encryption key. `source` is `passphrase`, `file` or `command`.

    `wrapped_nuc_hash_key` is also the proof of the key: only the right key unwraps it.
    `wrapped_successor` and `wrapped_predecessor` are set during a rotation only.
    """

    kek_id: int
    source: str
    salt: bytes = field(repr=False)
    wrapped_nuc_hash_key: bytes = field(repr=False)
    created_at: datetime
    wrapped_successor: bytes | None = field(default=None, repr=False)
    wrapped_predecessor: bytes | None = field(default=None, repr=False)


def add_kek(transaction: Connection, record: KekRecord) -> None:
    """Add a record."""
    transaction.execute(insert(table).values(**asdict(record)))


def add_successor(transaction: Connection, record: KekRecord, wrapped_successor: bytes) -> bool:
    """Add the record of a new key, and store `wrapped_successor` in the record before it.

    Return False, with nothing changed, if another rotation has added a record with this id.
    """
    added = transaction.execute(
        insert_or_skip(transaction, table).values(**asdict(record)).returning(table.c.kek_id)
    ).one_or_none()
    if added is None:
        return False
    transaction.execute(
        update(table)
        .where(table.c.kek_id == record.kek_id - 1)
        .values(wrapped_successor=wrapped_successor)
    )
    return True


def list_keks(connection: Connection) -> list[KekRecord]:
    """Return all records, the newest last."""
    columns = (table.c[each.name] for each in fields(KekRecord))
    rows = connection.execute(select(*columns).order_by(table.c.kek_id))
    return [KekRecord(*row) for row in rows]


def newest_kek_id(connection: Connection) -> int | None:
    """Return the id of the newest key, under which all new values are wrapped, or None."""
    return connection.execute(
        select(table.c.kek_id).order_by(table.c.kek_id.desc()).limit(1)
    ).scalar_one_or_none()


def lock_newest_kek(transaction: Connection) -> int:
    """Return the id of the newest key, and lock its record until this transaction ends.

    The lock (FOR KEY SHARE) prevents the deletion of the record, but does not block other readers.
    """
    found: int = transaction.execute(
        select(table.c.kek_id)
        .order_by(table.c.kek_id.desc())
        .limit(1)
        .with_for_update(read=True, key_share=True)  # SQLite needs no lock: it has one writer
    ).scalar_one()
    return found


def retire_all_but(transaction: Connection, kek_id: int) -> int:
    """Delete all records except one, and the wrapped keys in it. Return the number of deleted ones.

    Raises sqlalchemy.exc.IntegrityError, from the foreign keys, if a value is still wrapped under
    one of them.
    """
    retired = transaction.execute(delete(table).where(table.c.kek_id != kek_id))
    transaction.execute(
        update(table)
        .where(table.c.kek_id == kek_id)
        .values(wrapped_predecessor=None, wrapped_successor=None)
    )
    return retired.rowcount
