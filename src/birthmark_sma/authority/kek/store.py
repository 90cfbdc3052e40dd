"""Records of key-encryption keys: where each comes from and what proves it, never the key.

There is one, but for the time of a rotation. Then each holds its successor's key wrapped under its
own, and its predecessor's, so that whoever has any one of the keys can open all of them.
"""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from birthmark_sma.storage.dialects import insert_or_skip
from birthmark_sma.storage.schema import key_encryption_keys as table


@dataclass(frozen=True, slots=True)
class KekRecord:
    """A key-encryption key's source (`passphrase`, `file` or `command`), and what proves it."""

    kek_id: int
    source: str
    salt: bytes = field(repr=False)
    wrapped_nuc_hash_key: bytes = field(repr=False)
    created_at: datetime
    wrapped_successor: bytes | None = field(default=None, repr=False)
    wrapped_predecessor: bytes | None = field(default=None, repr=False)


def add_kek(transaction: Connection, record: KekRecord) -> None:
    """Add the first record, or a successor."""
    transaction.execute(insert(table).values(_values(record)))


def add_successor(transaction: Connection, record: KekRecord, wrapped_successor: bytes) -> bool:
    """Add a record behind the newest one, which gets the new key wrapped under its own.

    False, with nothing changed, where somebody else has added one meanwhile.
    """
    added = transaction.execute(
        insert_or_skip(transaction, table).values(_values(record)).returning(table.c.kek_id)
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
    rows = connection.execute(
        select(
            table.c.kek_id,
            table.c.source,
            table.c.salt,
            table.c.wrapped_nuc_hash_key,
            table.c.created_at,
            table.c.wrapped_successor,
            table.c.wrapped_predecessor,
        ).order_by(table.c.kek_id)
    )
    return [KekRecord(*row) for row in rows]


def newest_kek_id(connection: Connection) -> int | None:
    """Return the id of the key that everything new is sealed under."""
    return connection.execute(
        select(table.c.kek_id).order_by(table.c.kek_id.desc()).limit(1)
    ).scalar_one_or_none()


def lock_newest_kek(transaction: Connection) -> int:
    """Return the same, and keep its record from being deleted before this transaction ends."""
    found: int = transaction.execute(
        select(table.c.kek_id)
        .order_by(table.c.kek_id.desc())
        .limit(1)
        .with_for_update(read=True, key_share=True)  # SQLite has one writer anyway
    ).scalar_one()
    return found


def retire_all_but(transaction: Connection, kek_id: int) -> int:
    """Delete all records but one, and what it holds of its predecessor; return how many.

    Raises sqlalchemy.exc.IntegrityError where something is still wrapped under one of them.
    """
    retired = transaction.execute(delete(table).where(table.c.kek_id != kek_id))
    transaction.execute(
        update(table)
        .where(table.c.kek_id == kek_id)
        .values(wrapped_predecessor=None, wrapped_successor=None)
    )
    return retired.rowcount


def _values(record: KekRecord) -> dict[str, object]:
    return {
        "kek_id": record.kek_id,
        "source": record.source,
        "salt": record.salt,
        "wrapped_nuc_hash_key": record.wrapped_nuc_hash_key,
        "created_at": record.created_at,
        "wrapped_successor": record.wrapped_successor,
        "wrapped_predecessor": record.wrapped_predecessor,
    }
