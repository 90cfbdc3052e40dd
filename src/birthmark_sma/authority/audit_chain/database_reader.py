"""Read the trail from the database, for verification and export.

`sma audit verify` and `sma audit export` call it, in a transaction with one snapshot. It must read
each table a bounded number of rows at a time.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Select, func, select

from birthmark_sma.authority.audit_chain.batches import AuditBatch, Kind
from birthmark_sma.authority.audit_chain.checkpoints import read_notes
from birthmark_sma.authority.audit_chain.leaves import ROW_FIELDS
from birthmark_sma.authority.audit_chain.store import hash_act_and_subjects
from birthmark_sma.authority.audit_chain.verification import StoredAct, StoredRow
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_batches
from birthmark_sma.storage.schema.validations import validation_history as history

_AT_ONCE = 5_000
_DAY = timedelta(days=1)
_batches = audit_batches.c
_columns = [_batches[name] for name in AuditBatch._fields]


def _by_name(subject: tuple[Any, ...]) -> str:
    return str(subject[0])


class DatabaseReader:
    """The trail in a database, as `verification.AuditReader` wants it.

    Its methods may be called one after the other, never two at the same time but those of a day.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def notes(self) -> Iterator[tuple[int, str]]:
        """Yield the checkpoints by number."""
        yield from read_notes(self._connection)

    def chains(self) -> Iterator[AuditBatch]:
        """Yield all batches by writer and sequence, without their leaves."""
        columns = [each for each in _columns if each is not _batches.leaves]
        for row in self._stream(select(*columns).order_by(_batches.writer, _batches.sequence)):
            yield AuditBatch._make([*row, None])

    def days(self) -> Iterator[datetime]:
        """Yield the days that have rows or batches of validations."""
        after = None
        while True:
            found = [
                day
                for day in (
                    self._next_day(history.c.validated_at, after),
                    self._next_day(_batches.hour, after, _batches.kind == Kind.VALIDATIONS.value),
                )
                if day is not None
            ]
            if not found:
                return
            day = min(found)
            yield day
            after = day + _DAY

    def _next_day(self, column: Any, after: datetime | None, *conditions: Any) -> datetime | None:
        query = select(func.min(column)).where(*conditions)
        if after is not None:
            query = query.where(column >= after)
        first: datetime | None = self._connection.execute(query).scalar_one()
        return first and first.replace(hour=0, minute=0, second=0, microsecond=0)

    def batches_of(self, day: datetime) -> Iterator[AuditBatch]:
        """Yield the batches of validations of a day by first id."""
        of_day = (_batches.hour >= day, _batches.hour < day + _DAY)
        return self._batches(*of_day, _batches.kind == Kind.VALIDATIONS.value)

    def rows_of(self, day: datetime) -> Iterator[StoredRow]:
        """Yield the audit rows of a day by id."""
        row = history.c
        query = (
            select(row.id, row.time_and_ip_commitment, *(row[name] for name in ROW_FIELDS))
            .where(row.validated_at >= day, row.validated_at < day + _DAY)
            .order_by(row.id)
        )
        for number, kept, *values in self._stream(query):
            yield StoredRow(number, kept, tuple(values))

    def batches_of_acts(self) -> Iterator[AuditBatch]:
        """Yield the batches of acts by first id."""
        return self._batches(_batches.kind == Kind.ACTS.value)

    def acts(self) -> Iterator[StoredAct]:
        """Yield the acts by id."""
        of = act_subjects.c
        acts = administrative_acts.c
        subjects = groupby(
            self._stream(
                select(of.act_id, of.subject, of.before, of.after).order_by(of.act_id, of.subject)
            ),
            itemgetter(0),
        )
        pending = next(subjects, None)
        for act in self._stream(select(administrative_acts).order_by(acts.id)):
            named: list[tuple[Any, ...]] = []
            while pending is not None and pending[0] <= act.id:
                if pending[0] == act.id:
                    named = sorted(
                        (tuple(each[1:]) for each in pending[1]), key=lambda a: str(a[0])
                    )
                pending = next(subjects, None)
            leaves = hash_act_and_subjects(act._mapping, named)
            yield StoredAct(act.id, leaves, [str(each[0]) for each in named])

    def _batches(self, *conditions: Any) -> Iterator[AuditBatch]:
        query = select(*_columns).where(*conditions).order_by(_batches.first_id)
        for row in self._stream(query):
            yield AuditBatch(*row)

    def _stream(self, query: Select[Any]) -> Iterator[Any]:
        return iter(self._connection.execute(query.execution_options(yield_per=_AT_ONCE)))
