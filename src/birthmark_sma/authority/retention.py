"""Take out of the audit trail what is older than it has to be kept, while validations go on."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import partitions, pruning
from birthmark_sma.storage.engine import Database

Pause = Callable[[float], bool]
"""Waits for some seconds; True says that the work should stop where it is."""

_STEP_ROWS = 500
_STEP_PAUSE_SECONDS = 0.05
_DROP_TRIES = 5
_DROP_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was taken out, or would be: whole partitions, and rows of the audit trail one by one."""

    partitions: tuple[str, ...]
    rows: int


def oldest_kept(days: int, now: datetime) -> datetime:
    """Return the midnight (UTC) from which on everything is kept: the last `days` whole days.

    Raises OverflowError for a time before the calendar begins.
    """
    return datetime.combine(now.astimezone(UTC).date(), time(), UTC) - timedelta(days=days)


def foresee(database: Database, before: datetime) -> Pruned:
    """Return what `prune` would take out, and change nothing."""
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
        rows = sum(pruning.count_older(connection, aged, before) for aged in partly)
    return Pruned(tuple(partition.name for partition in whole), rows)


def prune(database: Database, before: datetime, pause: Pause) -> Pruned:
    """Take out what is older than a midnight (UTC), in steps that are durable one by one.

    Whole partitions are dropped; elsewhere rows go a few hundred at a time, with pauses. The
    counters and the activity of those days go too. Raises DatabaseUnavailableError where a
    partition is in use for long; what was done until then stays done.
    """
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
    # The figures go first: where this is cut off, the rows that remain say that more is to do.
    for aged in pruning.FIGURES:
        _delete(database, aged, before, pause)
    rows = sum(_delete(database, aged, before, pause) for aged in partly)
    dropped = [each.name for each in whole if _drop(database, each.name, pause)]
    return Pruned(tuple(dropped), rows)


def _delete(database: Database, aged: pruning.Aged, before: datetime, pause: Pause) -> int:
    deleted = 0
    while True:
        with database.write() as transaction:
            step = pruning.delete_some(transaction, aged, before, limit=_STEP_ROWS)
        deleted += step
        if step < _STEP_ROWS or pause(_STEP_PAUSE_SECONDS):
            return deleted


def _drop(database: Database, name: str, pause: Pause) -> bool:
    """Drop a partition, trying again while others read the trail; False where told to stop."""
    for _ in range(_DROP_TRIES - 1):
        try:
            with database.write() as transaction:
                partitions.drop(transaction, name)
        except DatabaseUnavailableError:
            if pause(_DROP_PAUSE_SECONDS):
                return False
        else:
            return True
    with database.write() as transaction:
        partitions.drop(transaction, name)
    return True
