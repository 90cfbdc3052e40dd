"""Create the key tables, and cache their unwrapped master keys.

`authority.authority` creates and opens them; validation and provisioning use the cache. Every
device in the field depends on these tables. A table must never be deleted, only `epochs` may change
its key, and no table must be added once devices are registered: a missing table is then a damage,
which only a backup can repair.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
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
from birthmark_sma.protocol.verdict import LiveEpochs
from birthmark_sma.storage.engine import Database

_CHUNK = 250  # tables in one transaction


class TableKey:
    """The master key of a table and its epoch, with the pseudorandom key that it extracts to."""

    # A slotted class, not a dataclass: its repr must never show a key.
    __slots__ = ("_pseudorandom_key", "alone", "epoch", "master_key")

    def __init__(self, master_key: bytes, epoch: int) -> None:
        self.master_key = master_key
        self.epoch = epoch
        self.alone = LiveEpochs(epoch)
        """The epochs of its table while no overlap is open."""
        # HKDF-Extract (RFC 5869 section 2.2) once per table, so that a token costs only one Expand.
        self._pseudorandom_key = key_derivation.extract(master_key)

    def derive(self, key_index: int, derivation: Derivation = NORMATIVE) -> bytes:
        """Return the key at `key_index`, under a key derivation.

        For the normative derivation this is HKDF-Expand (RFC 5869 section 2.3). Check the key index
        before: this function does not.
        """
        if derivation is NORMATIVE:
            return key_derivation.expand(self._pseudorandom_key, key_index)
        return key_derivation.derive_key(self.master_key, key_index, derivation)


class EarlierKey(NamedTuple):
    """The master key of the epoch before, and the time until which it is accepted."""

    key: TableKey
    accepted_until: datetime


@dataclass(frozen=True, slots=True)
class TableKeys:
    """The keys of all tables as of one generation of `authority.table_generation`. Never changed.

    `current` is indexed by table id. `earlier` has the tables whose overlap is open.
    """

    generation: int
    sizes: TableSizes
    current: Sequence[TableKey] = field(repr=False)
    earlier: Mapping[int, EarlierKey] = field(repr=False)

    def live_keys(self, table_id: int) -> tuple[TableKey, ...]:
        """Return the keys to try for a token: one, or two while the overlap is open.

        The earlier key is tried until it is deleted, also when it is no longer accepted. So the
        audit log tells the token of a device without new keys from one that opens under no key.
        """
        current, earlier = self.current[table_id], self.earlier.get(table_id)
        return (current,) if earlier is None else (current, earlier.key)

    def live_epochs(self, table_id: int, now: datetime) -> LiveEpochs:
        """Return what decides if a token of this table may pass at `now`.

        `table_id` may be larger than that of any table, as it can be in a token.
        """
        if table_id >= len(self.current):
            return LiveEpochs()
        earlier = self.earlier.get(table_id)
        if earlier is None:
            return self.current[table_id].alone
        return LiveEpochs(self.current[table_id].epoch, now < earlier.accepted_until)


class KeyTableCache:
    """The unwrapped keys of all tables, which `poll` reads again after a rotation.

    Safe to use from any thread. A caller that needs several keys of one state reads `keys` once.
    """

    __slots__ = ("_keks", "keys")

    def __init__(self, connection: Connection, keks: KeyEncryptionKeys) -> None:
        """Read and unwrap all tables. Raises the errors of `open_key_table_cache`."""
        self._keks = keks
        self.keys = _read_keys(connection, keks, key_table_store.find_generation(connection))

    @property
    def sizes(self) -> TableSizes:
        """Return the sizes of the tables. They never change."""
        return self.keys.sizes

    def poll(self, connection: Connection) -> TableKeys:
        """Read the keys again if a table was rotated or an overlap has ended; return the keys."""
        generation = key_table_store.find_generation(connection)
        keys = self.keys
        # Also if it is lower, as after the restore of a backup.
        if generation != keys.generation:
            self.keys = keys = _read_keys(connection, self._keks, generation)
        return keys


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
    database: Database,
    keks: KeyEncryptionKeys,
    progress: Callable[[int, int], None],
    actor: Actor | None,
) -> int:
    """Create the missing key tables; return their number.

    The first chunk records the act; `actor` is None for the tables of a new authority, whose
    creation is recorded.

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

        def add(transaction: Connection, chunk: Sequence[int] = chunk) -> None:
            _add_tables(transaction, chunk, keks)
            if actor is not None and chunk[0] == missing[0]:
                subject = Subject(None, {"tables": len(present)}, {"tables": sizes.tables})
                trail.record(transaction, actor, ActKind.KEY_TABLE_POPULATE, [subject])

        database.transact(add)
        progress(len(present) + start + len(chunk), sizes.tables)
    return len(missing)


def _add_tables(transaction: Connection, table_ids: Sequence[int], keks: KeyEncryptionKeys) -> None:
    # Under a lock, so that no rotation of the key-encryption key misses these tables.
    kek = keks.lock_newest(transaction)
    key_table_store.add_tables(
        transaction, [new_table(table_id, kek) for table_id in table_ids], datetime.now(UTC)
    )


def open_key_table_cache(database: Database, keks: KeyEncryptionKeys) -> KeyTableCache:
    """Unwrap all key tables and return the cache.

    Raises NotInitialisedError, KeyTablesError if tables are missing, or WrongSecretError.
    """
    with database.read() as connection:
        return KeyTableCache(connection, keks)


def _read_keys(connection: Connection, keks: KeyEncryptionKeys, generation: int) -> TableKeys:
    """Read all keys. `generation` must have been read before them.

    A rotation that commits between the two is then noticed by the next comparison of generations;
    in the other order its keys would never be read.
    """
    sizes = key_table_store.find_sizes(connection)
    wrapped = key_table_store.list_tables(connection)
    if sizes is None:
        raise NotInitialisedError
    if [table.table_id for table in wrapped] != list(range(sizes.tables)):
        raise KeyTablesError(
            f"{len(wrapped):,} of {counted(sizes.tables, 'key table')} are there."
            " Type: sma tables populate"
        )
    return TableKeys(
        generation,
        sizes,
        [TableKey(unwrap_table(each, keks, connection), each.epoch) for each in wrapped],
        {
            each.table_id: EarlierKey(
                TableKey(unwrap_table(each, keks, connection), each.epoch), each.accepted_until
            )
            for each in key_table_store.list_earlier(connection)
        },
    )


def unwrap_table(table: WrappedTable, keks: KeyEncryptionKeys, connection: Connection) -> bytes:
    """Return the unwrapped master key of a table. Raises WrongSecretError if that fails."""
    place = _place(table.table_id, table.epoch)
    return keks.unwrap(connection, table.master_key, table.kek_id, place)


def rewrap(table: WrappedTable, keks: KeyEncryptionKeys, connection: Connection) -> WrappedTable:
    """Return the same master key, wrapped under the newest key-encryption key."""
    kek = keks.newest
    place = _place(table.table_id, table.epoch)
    master_key = kek.wrap(unwrap_table(table, keks, connection), place)
    return replace(table, master_key=master_key, kek_id=kek.kek_id)


def new_table(table_id: int, kek: KeyEncryptionKey, epoch: int = 0) -> WrappedTable:
    """Return a new random master key of a table, wrapped."""
    master_key = secrets.token_bytes(MASTER_KEY_BYTES)
    return WrappedTable(table_id, kek.wrap(master_key, _place(table_id, epoch)), kek.kek_id, epoch)


def _place(table_id: int, epoch: int) -> bytes:
    # Additional authenticated data: a wrapped key that is copied to another row does not unwrap,
    # nor one of another epoch, which would undo a rotation. Tables of epoch 0 were wrapped before
    # there were epochs.
    return b"key table %d epoch %d" % (table_id, epoch) if epoch else b"key table %d" % table_id
