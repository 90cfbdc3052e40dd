"""Delete old rows of the audit trail, its counters and the replay ledger, while the server runs.

Called by the background task `audit_upkeep`, by `sma history prune` and by a sandbox. Each step is
a short transaction, and steps are followed by pauses, so that validations hardly wait.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.audit_chain import pruning as audit_pruning
from birthmark_sma.authority.audit_chain.keys import ensure_key
from birthmark_sma.authority.background import pruning
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.store import ValidationStore, make_store
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.postgresql.server_role import check_may_delete_trail

Pause = Callable[[float], bool]
"""Waits for some seconds and returns True if the work must stop, because the server shuts down."""

_STEP_ROWS = 500
_STEP_PAUSE_SECONDS = 0.05
_LEDGER_STEP = 1_000
_LEDGER_LOOK = 50_000  # tokens found by one query; the ledger has no index on their age (ADR 0009)
_DROP_TRIES = 5
_DROP_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of a pruning, or of its preview.

    `partitions` are the names of the dropped partitions. `rows` is the number of rows of the audit
    trail that were deleted one by one; the rows of dropped partitions are not counted.
    """

    partitions: tuple[str, ...]
    rows: int


def oldest_kept(days: int, now: datetime) -> datetime:
    """Return the midnight (UTC) `days` days before today's. Rows from then on are kept.

    Raises OverflowError if that is before the year 1.
    """
    return midnight(now) - timedelta(days=days)


def midnight(when: datetime) -> datetime:
    """Return the midnight (UTC) at which the day of `when` begins."""
    return datetime.combine(when.astimezone(UTC).date(), time(), UTC)


def preview_prune(database: Database, before: datetime) -> Pruned:
    """Return what `prune` would delete, and change nothing. Raises DatabaseUnavailableError."""
    with database.read(LONG_SECONDS) as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
        rows = sum(pruning.count_older(connection, aged, before) for aged in partly)
    return Pruned(tuple(partition.name for partition in whole), rows)


def prune(
    database: Database,
    before: datetime,
    pause: Pause,
    progress: Callable[[int], None] | None = None,
    actor: Actor | None = None,
    *,
    keks: KeyEncryptionKeys | None,
) -> Pruned:
    """Delete everything that is older than `before`, a midnight (UTC), and return what was deleted.

    Drop whole partitions; delete other rows up to 500 at a time. Also delete the counters and the
    device activity of those days, and the tokens that were first seen then: such a token counts as
    new if it comes again. Each step commits. `progress` is called after each with the number of
    partitions and rows so far; then `pause` is called, and True stops the work. If a person asked
    for it, `actor` is recorded in the trail of acts before the first step.

    A checkpoint signs first that these rows are deleted. `keks` open its key; with None nothing is
    signed, and `sma audit verify` reports the rows.

    Raises ConfigurationError, with nothing done, if the database's user may not delete audit rows;
    AuditTrailChangedError before the first step; and DatabaseUnavailableError, for instance if a
    partition stays locked for 5 tries. The steps before that stay done.
    """
    check_may_delete_trail(database)
    if actor is not None:
        database.transact(partial(_record, actor, before))
    dropped: list[str] = []
    rows = 0
    if keks is not None:
        ensure_key(database, keks)
        database.transact(partial(audit_pruning.permit, keks=keks, before=before), LONG_SECONDS)
    for step in _steps(database, before):
        dropped += step.partitions
        rows += step.rows
        if progress is not None:
            progress(len(dropped) + rows)
        if pause(step.pause):
            break
    return Pruned(tuple(dropped), rows)


def _record(actor: Actor, before: datetime, transaction: Connection) -> None:
    subject = Subject(None, None, {"oldest_kept": before})
    trail.record(transaction, actor, ActKind.HISTORY_PRUNE, [subject])


class _Step(NamedTuple):
    """A finished step, and the pause in seconds before the next one."""

    pause: float = _STEP_PAUSE_SECONDS
    partitions: tuple[str, ...] = ()
    rows: int = 0


def _steps(database: Database, before: datetime) -> Iterator[_Step]:
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
    # Delete the counters first. If this is interrupted, the remaining rows of the audit trail show
    # that there is more to delete; counters without rows would stay unnoticed.
    for aged in pruning.FIGURES:
        for _ in _deleted(database, aged, before):
            yield _Step()
    yield from _forgotten(database, before)
    for aged in partly:
        for rows in _deleted(database, aged, before):
            yield _Step(rows=rows)
    for partition in whole:
        yield from _dropped(database, partition.name)
    for _ in audit_pruning.delete_batches(database):
        yield _Step()


def _deleted(database: Database, aged: pruning.PrunableTable, before: datetime) -> Iterator[int]:
    """Delete up to 500 rows at a time until no older one is left; yield the number of each step."""
    rows = _STEP_ROWS
    while rows == _STEP_ROWS:
        rows = database.transact(
            partial(pruning.delete_some, aged=aged, before=before, limit=_STEP_ROWS), LONG_SECONDS
        )
        yield rows


def _forgotten(database: Database, before: datetime) -> Iterator[_Step]:
    """Delete the tokens from the replay ledger that were first seen before a time."""
    store = make_store(database)
    # Stop at a round that deletes nothing: another process may have deleted what this one found.
    progress = True
    while progress:
        progress = False
        with database.read(LONG_SECONDS) as connection:
            row_ids = store.find_old_tokens(connection, before, limit=_LEDGER_LOOK)
        for start in range(0, len(row_ids), _LEDGER_STEP):
            some = row_ids[start : start + _LEDGER_STEP]
            progress |= database.transact(partial(_forget, store, some, before)) > 0
            yield _Step()


def _forget(
    store: ValidationStore, row_ids: Sequence[Any], before: datetime, transaction: Connection
) -> int:
    return replay_ledger.forget(store, transaction, row_ids, before)


def _dropped(database: Database, name: str) -> Iterator[_Step]:
    """Drop a partition. Retry up to 4 times, a second apart, if the audit trail stays locked.

    Dropping needs a lock on the whole audit trail and waits for it for 200 ms only, because
    validations queue behind it (ADR 0006). Raises DatabaseUnavailableError after the last try.
    """
    for tries_left in reversed(range(_DROP_TRIES)):
        try:
            with database.write() as transaction:
                partitions.drop(transaction, name)
        except DatabaseUnavailableError:
            if not tries_left:
                raise
            yield _Step(pause=_DROP_PAUSE_SECONDS)
        else:
            yield _Step(partitions=(name,))
            return
