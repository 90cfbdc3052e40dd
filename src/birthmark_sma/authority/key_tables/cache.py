"""Create the key tables, and cache their unwrapped master keys.

`authority.authority` creates and opens them; validation and provisioning use the cache. Every
device in the field depends on these tables. A table must never change or be deleted, and no table
must be added once devices are registered: a missing table is then a damage, which only a backup
can repair.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKey, KeyEncryptionKeys
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.store import WrappedTable
from birthmark_sma.config import Settings
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError, KeyTablesError, NotInitialisedError
from birthmark_sma.protocol import key_derivation
from birthmark_sma.protocol.key_derivation import MASTER_KEY_BYTES, NORMATIVE, Derivation
from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.engine import Database

_CHUNK = 250  # tables in one transaction


class KeyTableCache:
    """A read-only cache of all unwrapped key tables, for the life of the process.

    Memory: one list of master keys and one of pseudorandom keys, both indexed by table id.
    """

    # A slotted class, not a dataclass: its repr must never show a key.
    __slots__ = ("_master_keys", "_pseudorandom_keys", "sizes")

    def __init__(self, sizes: TableSizes, master_keys: list[bytes]) -> None:
        self.sizes = sizes
        self._master_keys = master_keys
        # HKDF-Extract (RFC 5869 section 2.2) once per table, so that a token costs only one Expand.
        self._pseudorandom_keys = [key_derivation.extract(key) for key in master_keys]

    def master_key(self, table_id: int) -> bytes:
        """Return the 32-byte master key of a table, to provision a device with that table."""
        return self._master_keys[table_id]

    def derived_key(
        self, table_id: int, key_index: int, derivation: Derivation = NORMATIVE
    ) -> bytes:
        """Return the key at `key_index` of a table, under a key derivation.

        For the normative derivation this is HKDF-Expand (RFC 5869 section 2.3). Check the table id
        and the key index before: this function does not.
        """
        if derivation is NORMATIVE:
            return key_derivation.expand(self._pseudorandom_keys[table_id], key_index)
        return key_derivation.derive_key(self._master_keys[table_id], key_index, derivation)


def check_sizes(database: Database, settings: Settings) -> None:
    """Raise ConfigurationError if the settings give other sizes than the authority has.

    Sizes that are not set are not compared.
    """
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
    given = settings.model_fields_set & {"tables", "keys_per_table"}
    if sizes is not None and any(getattr(settings, one) != getattr(sizes, one) for one in given):
        raise ConfigurationError(
            f"This authority has {sizes.tables} tables of {sizes.keys_per_table} keys, fixed when"
            " it was initialised. Leave the sizes out, or give another data directory or database."
        )


def populate(
    database: Database, keks: KeyEncryptionKeys, progress: Callable[[int, int], None]
) -> int:
    """Create the missing key tables; return their number.

    Each chunk of 250 tables is one transaction, so this can be interrupted and run again, also
    twice at the same time. Calls `progress(tables_present, tables_wanted)` after each chunk. Raises
    NotInitialisedError, or KeyTablesError if tables are missing while devices are registered.
    """
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        present = set(key_table_store.list_table_ids(connection))
        registered = device_store.are_registered(connection)
    if sizes is None:
        raise NotInitialisedError
    missing = [table_id for table_id in range(sizes.tables) if table_id not in present]
    if missing and registered:
        raise KeyTablesError(
            f"{counted(len(missing), 'key table is', 'key tables are')} missing while devices are"
            " registered."
            " New keys would differ from those of the devices. Restore a backup."
        )
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        database.transact(partial(_add_tables, chunk, keks))
        progress(len(present) + start + len(chunk), sizes.tables)
    return len(missing)


def _add_tables(table_ids: Sequence[int], keks: KeyEncryptionKeys, transaction: Connection) -> None:
    # Under a lock, so that no rotation of the key-encryption key misses these tables.
    kek = keks.lock_newest(transaction)
    key_table_store.add_tables(
        transaction, [_new_table(table_id, kek) for table_id in table_ids], datetime.now(UTC)
    )


def open_key_table_cache(database: Database, keks: KeyEncryptionKeys) -> KeyTableCache:
    """Unwrap all key tables and return the cache.

    Raises NotInitialisedError, KeyTablesError if tables are missing, or WrongSecretError.
    """
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        wrapped = key_table_store.list_tables(connection)
        if sizes is None:
            raise NotInitialisedError
        if [table.table_id for table in wrapped] != list(range(sizes.tables)):
            raise KeyTablesError(
                f"{len(wrapped):,} of {counted(sizes.tables, 'key table')} are there."
                " Type: sma tables populate"
            )
        return KeyTableCache(sizes, [unwrap_table(table, keks, connection) for table in wrapped])


def unwrap_table(table: WrappedTable, keks: KeyEncryptionKeys, connection: Connection) -> bytes:
    """Return the unwrapped master key of a table. Raises WrongSecretError if that fails."""
    return keks.unwrap(connection, table.master_key, table.kek_id, _place(table.table_id))


def rewrap(table: WrappedTable, keks: KeyEncryptionKeys, connection: Connection) -> WrappedTable:
    """Return the same master key, wrapped under the newest key-encryption key."""
    kek = keks.newest
    master_key = unwrap_table(table, keks, connection)
    return WrappedTable(table.table_id, kek.wrap(master_key, _place(table.table_id)), kek.kek_id)


def _new_table(table_id: int, kek: KeyEncryptionKey) -> WrappedTable:
    master_key = secrets.token_bytes(MASTER_KEY_BYTES)
    return WrappedTable(table_id, kek.wrap(master_key, _place(table_id)), kek.kek_id)


def _place(table_id: int) -> bytes:
    # Additional authenticated data: a wrapped key that is copied to another row does not unwrap.
    return b"key table %d" % table_id
