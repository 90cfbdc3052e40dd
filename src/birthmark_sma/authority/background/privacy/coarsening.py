"""Drop exact times and addresses from the audit log after some days, while the server runs.

Called by the background task `audit_upkeep` and by `sma history coarsen`. A step is a short
transaction: it coarsens the rows of some batches, drops the salts of these batches, and coarsens
the tokens of the rows in the replay ledger. So a crash between two steps leaves each batch either
as it was or done, and the chain is verifiable all the time. It must never touch a row of a batch
whose salt it does not drop.

What is left to do is read from the rows: a day is done if none of its rows is between two hours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.audit_chain.checkpoints import permit_coarse
from birthmark_sma.authority.audit_chain.keys import ensure_key
from birthmark_sma.authority.background.privacy import audit_rows, ledger
from birthmark_sma.authority.background.privacy.audit_rows import ExactRow, SaltedBatch
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.postgresql.server_role import check_may_change_trail

Pause = Callable[[float], bool]
"""Waits for some seconds and returns True if the work must stop, because the server shuts down."""

_STEP_ROWS = 500
_STEP_BATCHES = 200
_STEP_PAUSE_SECONDS = 0.05
_BATCHES = 20_000  # of one query: SQLite reads all batches for it
_DAY = timedelta(days=1)


@dataclass(slots=True)
class Coarsened:
    """The numbers of rows and days that were coarsened. `is_done` is False if it was stopped."""

    rows: int = 0
    days: int = 0
    is_done: bool = False


def find_due(
    database: Database, before: datetime, since: datetime | None = None
) -> datetime | None:
    """Return the first day with an exact row from before a midnight (UTC), or None.

    `since` is a midnight before which nothing is due.
    """
    place: datetime | None = since
    while True:
        with database.read(LONG_SECONDS) as connection:
            day = audit_rows.find_day(connection, place, before)
            if day is None or audit_rows.is_exact(connection, day):
                return day
        place = day + _DAY


def coarsen(
    database: Database,
    before: datetime,
    pause: Pause,
    actor: Actor | None = None,
    *,
    keks: KeyEncryptionKeys | None,
    since: datetime | None = None,
) -> Coarsened:
    """Coarsen all rows from before a midnight (UTC), the oldest day first.

    `pause` is called after each step, and True stops the work. If a person asked for it, `actor` is
    recorded in the trail of acts before the first step. A checkpoint signs first that these rows
    are coarse. `keks` open its key; with None nothing is signed, and `sma audit verify` reports the
    rows. Raises ConfigurationError, with nothing done, if the database's user may not change audit
    rows; AuditTrailChangedError before the first step; and DatabaseUnavailableError, before which
    finished steps stay done.
    """
    check_may_change_trail(database)
    done = Coarsened()
    if actor is not None:
        database.transact(partial(_record, actor, before))
    while (day := find_due(database, before, since)) is not None:
        if keks is not None and not done.days:
            ensure_key(database, keks)
            database.transact(partial(permit_coarse, keks=keks, before=before), LONG_SECONDS)
        done.days += 1
        for rows in _steps(database, day, before):
            done.rows += rows
            if pause(_STEP_PAUSE_SECONDS):
                return done
        since = day + _DAY
    done.is_done = True
    return done


def _record(actor: Actor, before: datetime, transaction: Connection) -> None:
    subject = Subject(None, None, {"exact_since": before})
    trail.record(transaction, actor, ActKind.HISTORY_COARSEN, [subject])


def _steps(database: Database, day: datetime, before: datetime) -> Iterator[int]:
    """Coarsen the rows of a day; yield the number of rows of each step."""
    while True:
        with database.read(LONG_SECONDS) as connection:
            batches = audit_rows.read_salted(connection, day, limit=_BATCHES)
        seen: dict[str, datetime] = {}  # the latest time of each chain, to begin the search there
        for some in _group(batches):
            after = seen.get(some[0].writer)
            step = partial(_coarsen_batches, some, after, before)
            rows = database.transact(step, LONG_SECONDS)
            if rows:
                seen[some[0].writer] = max(each.validated_at for each in rows)
            yield len(rows)
        if not batches:
            alone = database.transact(partial(_coarsen_strangers, day, before), LONG_SECONDS)
            if alone is None:
                return
            yield alone


def _group(batches: Sequence[SaltedBatch]) -> Iterator[list[SaltedBatch]]:
    """Yield batches of one chain and hour with up to 500 rows together, or one batch."""
    some: list[SaltedBatch] = []
    for batch in batches:
        rows = sum(each.rows for each in some) + batch.rows
        is_alike = some and (batch.writer, batch.hour) == (some[0].writer, some[0].hour)
        if some and not (is_alike and rows <= _STEP_ROWS and len(some) < _STEP_BATCHES):
            yield some
            some = []
        some.append(batch)
    if some:
        yield some


def _coarsen_batches(
    batches: Sequence[SaltedBatch],
    after: datetime | None,
    before: datetime,
    transaction: Connection,
) -> list[ExactRow]:
    """Coarsen the rows of batches of one chain and hour, drop their salts, and return the rows.

    The rows are looked for from the time `after` on first, if it is in this hour.
    """
    wait_for_lock(transaction, AdvisoryLock.COARSENING)
    batches = audit_rows.reread(transaction, batches)
    if not batches:
        return []  # another process has done it
    rows = audit_rows.read_rows(transaction, batches, after)
    audit_rows.coarsen_rows(transaction, batches, rows)
    audit_rows.drop_salts(transaction, batches)
    _coarsen_tokens(transaction, rows, before)
    return rows


def _coarsen_strangers(day: datetime, before: datetime, transaction: Connection) -> int | None:
    """Coarsen up to 500 rows of a day that are in no batch, and count them.

    Return None if there is none, and 0 if a batch of the day has appeared meanwhile.
    """
    wait_for_lock(transaction, AdvisoryLock.COARSENING)
    rows = audit_rows.read_exact(transaction, day, limit=_STEP_ROWS)
    if not rows:
        return None
    # Only now: a batch is visible no later than its rows.
    if audit_rows.read_salted(transaction, day, limit=1):
        return 0
    audit_rows.coarsen_strangers(transaction, rows)
    _coarsen_tokens(transaction, rows, before)
    return len(rows)


def _coarsen_tokens(transaction: Connection, rows: Sequence[ExactRow], before: datetime) -> None:
    digests = {each.token_digest for each in rows if each.token_digest is not None}
    ledger.coarsen_tokens(transaction, sorted(digests), before)
