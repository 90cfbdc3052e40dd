"""Rotate key tables: give them new master keys, and accept the earlier keys for a while.

Called by `sma tables` and the background task `overlap_expiry`. The epoch of a table is the number
of its rotations. The time in which two of its keys are accepted is its overlap; devices get the new
keys meanwhile. All tables of one act change in one transaction, so that a rotation is there as a
whole or not at all. It commits only while no validation is under way (docs/adr/0012): no verdict by
the keys before is committed after it. A table must never have three live keys: the devices with the
oldest one would be cut off without a word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import new_table
from birthmark_sma.authority.key_tables.store import EarlierTable, WrappedTable
from birthmark_sma.counts import counted
from birthmark_sma.errors import NotInitialisedError, TableRotationError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time

_LISTED = 5  # table ids that an error message lists


@dataclass(frozen=True, slots=True)
class TableState:
    """The epoch of a key table, and the overlap of its last rotation if that is open.

    `accepted_until` may lie in the past: then the overlap has ended, and its key will be deleted.
    """

    table_id: int
    epoch: int
    rotated_at: datetime | None = None
    accepted_until: datetime | None = None


def list_states(connection: Connection) -> list[TableState]:
    """Return the state of all tables, by id."""
    return [TableState(*row) for row in key_table_store.list_epochs(connection)]


def check_tables(connection: Connection, table_ids: Sequence[int]) -> list[int]:
    """Return the ids of these tables in ascending order, each once.

    Raises TableRotationError if the authority has no such table, or NotInitialisedError.
    """
    sizes = key_table_store.find_sizes(connection)
    if sizes is None:
        raise NotInitialisedError
    unknown = sorted({each for each in table_ids if not sizes.has_table(each)})
    if unknown:
        raise TableRotationError(
            f"There is no key table {_some(unknown)}: this authority has the tables 0 to"
            f" {sizes.tables - 1}."
        )
    return sorted(set(table_ids))


def check_no_overlap(
    connection: Connection, table_ids: Sequence[int], ended: datetime, now: datetime
) -> None:
    """Raise TableRotationError if the overlap of one of these tables is open.

    Keys that were accepted until `ended` do not count: `rotate` deletes them. `now` only gives the
    message.
    """
    wanted = set(table_ids)
    still = [
        each
        for each in key_table_store.list_earlier(connection)
        if each.table_id in wanted and each.accepted_until > ended
    ]
    if not still:
        return
    latest = max(each.accepted_until for each in still)
    # With SQLite, the machine's clock must have been steady for an hour before it is trusted.
    until = "has ended; a running server deletes the key within an hour"
    if latest > now:
        until = f"is open until {latest:%Y-%m-%d %H:%M} UTC"
    raise TableRotationError(
        f"{counted(len(still), 'key table was', 'key tables were')} rotated before, and the overlap"
        f" {until}: table {_some([each.table_id for each in still])}. A second rotation would cut"
        " off the devices that still have the first key. To see them, type: sma tables stragglers."
        " To cut them off, type: sma tables end"
    )


def rotate(
    database: Database,
    keks: KeyEncryptionKeys,
    table_ids: Sequence[int],
    accept_earlier_for: timedelta,
    actor: Actor,
) -> list[TableState]:
    """Give tables new master keys, in one transaction; return their new states.

    The keys before are accepted for `accept_earlier_for` from the database's time on, or not at all
    if that is zero. Raises TableRotationError for an unknown table or one whose overlap is open,
    NotInitialisedError, KeyEncryptionKeyChangedError, and DatabaseUnavailableError if devices are
    being registered for more than ten seconds.
    """
    ended = database.clock.expired_before(timedelta())

    def work(transaction: Connection) -> list[TableState]:
        # Lock order: the row of the authority first, as `provisioning.registration` does. From here
        # on no device is registered until this transaction ends.
        device_store.await_registrations(transaction)
        chosen = check_tables(transaction, table_ids)
        now = database_time(transaction)
        check_no_overlap(transaction, chosen, ended, now)
        _delete(transaction, lambda each: each.accepted_until <= ended)
        kek = keks.lock_newest(transaction)
        before = key_table_store.lock_tables(transaction, chosen)
        after = [new_table(each.table_id, kek, each.epoch + 1) for each in before]
        key_table_store.put_tables(transaction, after)
        until = now + accept_earlier_for
        if accept_earlier_for:
            key_table_store.add_earlier(
                transaction, [_make_earlier(each, now, until) for each in before]
            )
        key_table_store.raise_generation(transaction)
        subjects = [
            Subject(str(old.table_id), {"epoch": old.epoch}, {"epoch": new.epoch})
            for old, new in zip(before, after, strict=True)
        ]
        more = {"earlier_keys_accepted_until": until if accept_earlier_for else now}
        trail.record(transaction, actor, ActKind.KEY_TABLE_ROTATE, subjects, more=more)
        times = (now, until) if accept_earlier_for else (None, None)
        device_store.await_verdicts(transaction)
        return [TableState(each.table_id, each.epoch, *times) for each in after]

    rotated = database.transact(work, LONG_SECONDS, erase=True)
    if not accept_earlier_for:
        database.truncate_wal()  # SQLite's log may hold the keys that were replaced
    return rotated


def end_overlaps(database: Database, table_ids: Sequence[int], actor: Actor) -> list[int]:
    """Delete the earlier keys of tables, before their date; return the ids of those that had one.

    Raises TableRotationError for an unknown table.
    """

    def work(transaction: Connection) -> list[int]:
        chosen = set(check_tables(transaction, table_ids))
        until = {
            each.table_id: each.accepted_until for each in key_table_store.list_earlier(transaction)
        }

        def record(gone: list[int]) -> None:
            trail.record(
                transaction,
                actor,
                ActKind.KEY_TABLE_END_OVERLAP,
                [Subject(str(e), {"earlier_key_accepted_until": until[e]}, {}) for e in gone],
            )

        return _end(transaction, lambda each: each.table_id in chosen, record)

    gone = database.transact(work, LONG_SECONDS, erase=True)
    database.truncate_wal()  # SQLite's log may hold the keys
    return gone


def delete_ended(database: Database, before: datetime) -> list[int]:
    """Delete the earlier keys that are accepted until before a time; return their tables."""

    def has_ended(each: EarlierTable) -> bool:
        return each.accepted_until <= before

    with database.read() as connection:
        if not any(map(has_ended, key_table_store.list_earlier(connection))):
            return []
    gone = database.transact(partial(_end, condition=has_ended), erase=True)
    database.truncate_wal()
    return gone


def _end(
    transaction: Connection,
    condition: Callable[[EarlierTable], bool],
    record: Callable[[list[int]], None] = lambda gone: None,  # noqa: ARG005
) -> list[int]:
    """Delete the earlier keys that meet a condition, as the last thing in a transaction.

    Return their tables. No verdict under such a key is committed after this.
    """
    gone = _delete(transaction, condition)
    if gone:
        record(gone)  # before the lock, for which validations wait
        device_store.await_verdicts(transaction)
    return gone


def _delete(transaction: Connection, condition: Callable[[EarlierTable], bool]) -> list[int]:
    """Delete the earlier keys that meet a condition; return their tables."""
    chosen = [e.table_id for e in key_table_store.list_earlier(transaction) if condition(e)]
    if not chosen:
        return []
    # Lock order: the row of the authority first, as in `rotate`.
    key_table_store.raise_generation(transaction)
    return key_table_store.delete_earlier(transaction, chosen)


def _make_earlier(table: WrappedTable, now: datetime, until: datetime) -> EarlierTable:
    # As it is wrapped: the wrapping is bound to the table and its epoch, not to the row.
    return EarlierTable(
        table.table_id,
        table.master_key,
        table.kek_id,
        table.epoch,
        rotated_at=now,
        accepted_until=until,
    )


def _some(table_ids: Sequence[int]) -> str:
    listed = ", ".join(map(str, table_ids[:_LISTED]))
    return f"{listed} and more" if len(table_ids) > _LISTED else listed
