"""Read the trail from the database, for verification and export.

`sma audit verify` and `sma audit export` call it, in a transaction with one snapshot. It must read
each table a bounded number of rows at a time.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from birthmark_sma.authority.audit_chain.batches import ROW_FIELDS, AuditBatch, Kind
from birthmark_sma.authority.audit_chain.keys import list_verifiers
from birthmark_sma.authority.audit_chain.store import hash_act_and_subjects
from birthmark_sma.authority.audit_chain.verification.findings import (
    StoredAct,
    StoredNote,
    StoredRow,
)
from birthmark_sma.authority.audit_chain.verification.malformed import (
    find_malformed,
    is_well_formed,
)
from birthmark_sma.storage.portable_sql import choose
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_batches, audit_checkpoints
from birthmark_sma.storage.schema.validations import validation_history as history

_AT_ONCE = 5_000
_DAY = timedelta(days=1)
_batches = audit_batches.c
_NAMES: dict[Table, tuple[str, tuple[str, ...]]] = {
    history: ("row {}", ("id",)),
    audit_batches: ("batch {1} of chain {0}", ("writer", "sequence")),
    audit_checkpoints: ("checkpoint {}", ("number",)),
    administrative_acts: ("act {}", ("id",)),
    act_subjects: ("subject {1!r} of act {0}", ("act_id", "subject")),
}
"""A row of each table in words, and the columns that name it."""
_columns = [_batches[name] for name in AuditBatch._fields]


class DatabaseReader:
    """The trail in a database, as `verification.AuditReader` wants it.

    Its methods may be called one after the other, never two at the same time but those of a day.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        choose(connection, postgresql=_read_nothing_else, sqlite=_read_any_text)(connection)
        self._conditions: dict[Table, ColumnElement[bool]] = {}  # of tables with malformed rows

    def malformed(self) -> Iterator[str]:
        """Yield the rows that cannot be read, in words. All other methods leave them out."""
        for table, (words, names) in _NAMES.items():
            for values in find_malformed(self._connection, table, names):
                self._conditions[table] = is_well_formed(self._connection, table)
                yield words.format(*values)

    def verifiers(self) -> Iterator[tuple[int, str]]:
        """Yield the public keys of checkpoints by number."""
        yield from list_verifiers(self._connection)

    def notes(self) -> Iterator[StoredNote]:
        """Yield the checkpoints by number."""
        of = audit_checkpoints.c
        columns = [of[name] for name in StoredNote._fields]
        for row in self._stream(select(*columns).order_by(of.number), audit_checkpoints):
            yield StoredNote(*row)

    def chains(self) -> Iterator[AuditBatch]:
        """Yield all batches by writer and sequence, without their leaves."""
        columns = [each for each in _columns if each is not _batches.leaves]
        query = select(*columns).order_by(_batches.writer, _batches.sequence)
        for row in self._stream(query, audit_batches):
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
        query = self._without_malformed(select(func.min(column)).where(*conditions), column.table)
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
        for number, kept, *values in self._stream(query, history):
            yield StoredRow(number, kept, tuple(values))

    def batches_of_acts(self) -> Iterator[AuditBatch]:
        """Yield the batches of acts by first id."""
        return self._batches(_batches.kind == Kind.ACTS.value)

    def acts(self) -> Iterator[StoredAct]:
        """Yield the acts by id, and subjects whose act does not exist."""
        acts = self._stream(
            select(administrative_acts).order_by(administrative_acts.c.id), administrative_acts
        )
        of = act_subjects.c
        query = select(of.act_id, of.subject, of.before, of.after).order_by(of.act_id, of.subject)
        subjects = groupby(self._stream(query, act_subjects), itemgetter(0))
        group = next(subjects, None)
        for act in acts:
            named: list[tuple[Any, ...]] = []
            while group is not None and group[0] <= act.id:
                some = _sort(group[1])
                if group[0] == act.id:
                    named = some
                else:
                    yield StoredAct(group[0], [], _names(some))
                group = next(subjects, None)
            yield StoredAct(act.id, hash_act_and_subjects(act._mapping, named), _names(named))
        while group is not None:
            yield StoredAct(group[0], [], _names(_sort(group[1])))
            group = next(subjects, None)

    def _batches(self, *conditions: Any) -> Iterator[AuditBatch]:
        query = select(*_columns).where(*conditions).order_by(_batches.first_id)
        for row in self._stream(query, audit_batches):
            yield AuditBatch(*row)

    def _stream(self, query: Select[Any], table: Table) -> Iterator[Any]:
        readable = self._without_malformed(query, table)
        return iter(self._connection.execute(readable.execution_options(yield_per=_AT_ONCE)))

    def _without_malformed(self, query: Select[Any], table: Table) -> Select[Any]:
        condition = self._conditions.get(table)
        return query if condition is None else query.where(condition)


def _read_nothing_else(connection: Connection) -> None:
    """Leave a connection to PostgreSQL as it is: its texts are UTF-8."""


def _read_any_text(connection: Connection) -> None:
    """Let SQLite return a text that is not UTF-8 as one that no program has written."""
    driver: Any = connection.connection.driver_connection
    driver.text_factory = lambda text: text.decode("utf-8", "surrogateescape")


def _sort(subjects: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return name, before and after of the subjects of an act, in the order of their leaves."""
    return sorted((tuple(each[1:]) for each in subjects), key=lambda each: str(each[0]))


def _names(subjects: Iterable[tuple[Any, ...]]) -> list[str]:
    return [str(each[0]) for each in subjects]
