"""Take out of the audit trail what is older than it has to be kept, while validations go on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import NamedTuple

from birthmark_sma.authority.background import pruning
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database

Pause = Callable[[float], bool]
"""Waits for some seconds; True says that the work should stop where it is."""

_STEP_ROWS = 500
_STEP_PAUSE_SECONDS = 0.05
_LEDGER_STEP = 1_000
_LEDGER_LOOK = 50_000
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
    return midnight(now) - timedelta(days=days)


def midnight(when: datetime) -> datetime:
    """Return the midnight (UTC) with which a time's day begins."""
    return datetime.combine(when.astimezone(UTC).date(), time(), UTC)


def preview_prune(database: Database, before: datetime) -> Pruned:
    """Return what `prune` would take out, and change nothing."""
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
        rows = sum(pruning.count_older(connection, aged, before) for aged in partly)
    return Pruned(tuple(partition.name for partition in whole), rows)


def prune(
    database: Database,
    before: datetime,
    pause: Pause,
    progress: Callable[[int], None] | None = None,
) -> Pruned:
    """Take out what is older than a midnight (UTC), in steps that are durable one by one.

    Whole partitions are dropped; elsewhere rows go a few hundred at a time, with pauses. The
    counters and the activity of those days go too, and the tokens that were first seen then: they
    would count as new again. Raises DatabaseUnavailableError where a
    partition is in use for long; what was done until then stays done. `progress` is told after each
    step how many partitions and rows are gone.
    """
    dropped: list[str] = []
    rows = 0
    for step in _steps(database, before):
        dropped += step.partitions
        rows += step.rows
        if progress is not None:
            progress(len(dropped) + rows)
        if pause(step.pause):
            break
    return Pruned(tuple(dropped), rows)


class _Step(NamedTuple):
    """A part of the work that is done, and how many seconds others should have before the next."""

    pause: float = _STEP_PAUSE_SECONDS
    partitions: tuple[str, ...] = ()
    rows: int = 0


def _steps(database: Database, before: datetime) -> Iterator[_Step]:
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), before)
    # The figures go first: where this is cut off, the rows that remain say that more is to do.
    for aged in pruning.FIGURES:
        for _ in _deleted(database, aged, before):
            yield _Step()
    yield from _forgotten(database, before)
    for aged in partly:
        for rows in _deleted(database, aged, before):
            yield _Step(rows=rows)
    for partition in whole:
        yield from _dropped(database, partition.name)


def _deleted(database: Database, aged: pruning.PrunableTable, before: datetime) -> Iterator[int]:
    """Delete a few rows at a time until none is left; yields how many."""
    rows = _STEP_ROWS
    while rows == _STEP_ROWS:
        with database.write() as transaction:
            rows = pruning.delete_some(transaction, aged, before, limit=_STEP_ROWS)
        yield rows


def _forgotten(database: Database, before: datetime) -> Iterator[_Step]:
    """Take out of the replay ledger what was first seen before a time."""
    progress = True
    while progress:
        progress = False
        with database.read() as connection:
            places = replay_ledger.find_old(connection, before, limit=_LEDGER_LOOK)
        for start in range(0, len(places), _LEDGER_STEP):
            with database.write() as transaction:
                some = places[start : start + _LEDGER_STEP]
                progress |= replay_ledger.forget(transaction, some, before) > 0
            yield _Step()


def _dropped(database: Database, name: str) -> Iterator[_Step]:
    """Drop a partition, trying again for a while where others hold the audit trail."""
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
