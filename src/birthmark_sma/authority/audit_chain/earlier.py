"""Chain the audit rows and acts from before there were chains. Called by the migration alone.

Rows are read once, day by day, in the order of their ids, and in bounded memory. All of them are
one chain, whose last head covers every row.
"""

import secrets
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from birthmark_sma.authority.audit_chain import store
from birthmark_sma.authority.audit_chain.batches import (
    ABSENT_LEAF,
    EARLIER,
    ROW_FIELDS,
    SALT_BYTES,
    START,
    AuditBatch,
    End,
    Kind,
    hash_rows,
    seal,
)
from birthmark_sma.errors import SchemaMismatchError
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.validations import validation_history as history

_SPAN = 10_000  # ids of a batch
_DAY = timedelta(days=1)


def chain_earlier(transaction: Connection) -> None:
    """Add the batches of all audit rows and acts that there are. There must be no batch yet.

    Raises SchemaMismatchError if a value of a row is not of its column's type, as SQLite allows.
    """
    end = START
    try:
        for day in days_of(transaction):
            for batch in _batches_of_day(transaction, day, end):
                store.add_batches(transaction, [batch])
                end = batch.end
    except (ValueError, TypeError, AttributeError, struct.error):
        raise SchemaMismatchError(
            "The audit log has a row that this program cannot read, such as a time that does not"
            " end with +00:00. Look for it with the older program or with SQL: SELECT id,"
            " validated_at FROM validation_history WHERE validated_at NOT LIKE '%+00:00'. Correct"
            " it, and type the same command again. Nothing was changed."
        ) from None
    _chain_acts(transaction)


def days_of(connection: Connection) -> Iterator[datetime]:
    """Yield the midnights (UTC) of the days with audit rows, by one look-up in the index each.

    Raises ValueError for a time without a zone, which SQLite can have.
    """
    oldest = connection.execute(select(func.min(history.c.validated_at))).scalar_one()
    while oldest is not None:
        if oldest.tzinfo is None:
            raise ValueError("a time without a zone")
        day = oldest.replace(hour=0, minute=0, second=0, microsecond=0)
        yield day
        later = select(func.min(history.c.validated_at)).where(history.c.validated_at >= day + _DAY)
        oldest = connection.execute(later).scalar_one()


def _batches_of_day(transaction: Connection, day: datetime, end: End) -> Iterator[AuditBatch]:
    columns = [history.c[name] for name in ROW_FIELDS]
    rows = transaction.execute(
        select(history.c.id, *columns)
        .where(history.c.validated_at >= day, history.c.validated_at < day + _DAY)
        .order_by(history.c.id)
        .execution_options(yield_per=_SPAN)
    )
    some: list[Any] = []
    for row in rows:
        if some and row[0] >= some[0][0] + _SPAN:
            batch = _seal(some, day, end)
            yield batch
            end, some = batch.end, []
        some.append(row)
    if some:
        yield _seal(some, day, end)


def _seal(rows: list[Any], day: datetime, end: End) -> AuditBatch:
    salt = secrets.token_bytes(SALT_BYTES)
    first_id = int(rows[0][0])
    leaves = [ABSENT_LEAF] * (int(rows[-1][0]) - first_id + 1)
    for row, leaf in zip(rows, hash_rows([row[1:] for row in rows], salt), strict=True):
        leaves[row[0] - first_id] = leaf
    return seal(
        EARLIER,
        end,
        Kind.VALIDATIONS,
        leaves,
        hour=day,
        first_id=first_id,
        rows=len(leaves),
        salt=salt,
    )


def _chain_acts(transaction: Connection) -> None:
    end = START
    acts = (
        transaction.execute(select(administrative_acts).order_by(administrative_acts.c.id))
        .mappings()
        .all()
    )
    of = act_subjects.c
    for act in acts:
        subjects = transaction.execute(
            select(of.subject, of.before, of.after).where(of.act_id == act["id"])
        )
        batch = store.seal_act(end, dict(act), [tuple(each) for each in subjects])
        store.add_batches(transaction, [batch])
        end = batch.end
