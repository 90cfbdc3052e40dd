"""Read the trail from the database, for verification and export.

`sma audit verify` and `sma audit export` call it, in a transaction with one snapshot. It must read
each table a bounded number of rows at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, case, func, select, type_coerce

from birthmark_sma.authority.audit_chain.batches import AuditBatch, Kind
from birthmark_sma.authority.audit_chain.leaves import ROW_FIELDS, hash_act
from birthmark_sma.authority.audit_chain.verification import StoredAct, StoredRow
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_batches, audit_checkpoints
from birthmark_sma.storage.schema.validations import validation_history as history

_AT_ONCE = 5_000
_DAY = timedelta(days=1)
_FIRST_DAY = datetime(1, 1, 2, tzinfo=UTC)
_LAST_DAY = datetime(9999, 12, 30, tzinfo=UTC)
_NO_NUMBER = -1
_batches = audit_batches.c
_TIME = ROW_FIELDS.index("validated_at")


def _is_time(column: Any) -> ColumnElement[bool]:
    """Return the condition that a time is one that Python has. PostgreSQL has others, too."""
    is_time: ColumnElement[bool] = (column >= _FIRST_DAY) & (column < _LAST_DAY)
    return is_time


def _raw(column: Any) -> ColumnElement[Any]:
    """Return a time as the driver reads it. SQLite may have any value in its place."""
    return type_coerce(case((_is_time(column), column)), String)


def _read_time(raw: Any) -> Any:
    """Return the time of a raw value, or the value itself if it is none."""
    try:
        time = raw if isinstance(raw, datetime) else datetime.fromisoformat(raw)
        return time.astimezone(UTC) if time.tzinfo else raw
    except (TypeError, ValueError):
        return raw


def _read_number(value: Any) -> int:
    return value if isinstance(value, int) else _NO_NUMBER


def _read_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


class DatabaseReader:
    """The trail in a database, as `verification.AuditReader` wants it.

    Its methods may be called one after the other, never two at the same time but those of a day.
    SQLite and exports may have values of any type in a column: no such value raises an error, and
    each becomes one that no program has written.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._no_times: list[str] = []
        if connection.dialect.name == "sqlite":
            driver: Any = connection.connection.driver_connection
            driver.text_factory = lambda text: text.decode("utf-8", "surrogateescape")

    def notes(self) -> Iterator[tuple[int, str]]:
        """Yield the checkpoints by number."""
        of = audit_checkpoints.c
        for number, note in self._stream(select(of.number, of.note).order_by(of.number)):
            yield _read_number(number), note if isinstance(note, str) else ""

    def chains(self) -> Iterator[AuditBatch]:
        """Yield all batches by writer and sequence, without their leaves."""
        query = _select_batches(with_leaves=False).order_by(_batches.writer, _batches.sequence)
        yield from map(_read_batch, self._stream(query))

    def days(self) -> Iterator[datetime]:
        """Yield the days that have rows or batches of validations."""
        after = _FIRST_DAY
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

    def _next_day(self, column: Any, after: datetime, *conditions: Any) -> datetime | None:
        query = select(type_coerce(func.min(column), String)).where(
            *conditions, column >= after, column < _LAST_DAY
        )
        first = self._connection.execute(query).scalar_one()
        while isinstance(first, str):
            try:  # the rest of the text is read with the row
                return datetime.fromisoformat(first[:10]).replace(tzinfo=UTC)
            except ValueError:
                if column is history.c.validated_at:
                    self._no_times.append(first)
                later = query.where(type_coerce(column, String) > first)
                first = self._connection.execute(later).scalar_one()
        day: datetime | None = first and first.astimezone(UTC)
        return day and day.replace(hour=0, minute=0, second=0, microsecond=0)

    def batches_of(self, day: datetime) -> Iterator[AuditBatch]:
        """Yield the batches of validations of a day by first id."""
        of_day = (_batches.hour >= day, _batches.hour < day + _DAY)
        return self._batches(*of_day, _batches.kind == Kind.VALIDATIONS.value)

    def rows_of(self, day: datetime) -> Iterator[StoredRow]:
        """Yield the audit rows of a day by id."""
        row = history.c
        columns = [row[name] for name in ROW_FIELDS]
        columns[_TIME] = type_coerce(row.validated_at, String)  # type: ignore[call-overload]
        query = (
            select(row.id, row.time_and_ip_commitment, *columns)
            .where(row.validated_at >= day, row.validated_at < day + _DAY)
            .order_by(row.id)
        )
        for number, kept, *values in self._stream(query):
            values[_TIME] = _read_time(values[_TIME])
            yield StoredRow(_read_number(number), kept, tuple(values))

    def rows_of_no_day(self) -> Iterator[int]:
        """Yield the ids of the rows whose time is none, once `days` has ended."""
        column = history.c.validated_at
        for which in (
            column.is_(None) | (column < _FIRST_DAY) | (column >= _LAST_DAY),
            *(type_coerce(column, String) == each for each in set(self._no_times)),
        ):
            for (number,) in self._stream(select(history.c.id).where(which)):
                yield _read_number(number)

    def batches_of_acts(self) -> Iterator[AuditBatch]:
        """Yield the batches of acts by first id."""
        return self._batches(_batches.kind == Kind.ACTS.value)

    def acts(self) -> Iterator[StoredAct]:
        """Yield the acts by id, and subjects of no act as such without a leaf."""
        of, acts = act_subjects.c, administrative_acts.c
        subjects = groupby(
            self._stream(
                select(of.act_id, of.subject, of.before, of.after).order_by(of.act_id, of.subject)
            ),
            lambda row: _read_number(row[0]),
        )
        pending = next(subjects, None)
        columns = [_raw(each) if each is acts.acted_at else each for each in acts]
        at = list(acts).index(acts.acted_at)
        for row in self._stream(select(*columns).order_by(acts.id)):
            values = list(row)
            values[at] = _read_time(values[at])
            number = values[0] = _read_number(values[0])
            while pending is not None and pending[0] < number:
                yield _make_act(pending[0], None, pending[1])
                pending = next(subjects, None)
            has_subjects = pending is not None and pending[0] == number
            yield _make_act(number, values, pending[1] if pending and has_subjects else ())
            if has_subjects:
                pending = next(subjects, None)
        while pending is not None:
            yield _make_act(pending[0], None, pending[1])
            pending = next(subjects, None)

    def _batches(self, *conditions: Any) -> Iterator[AuditBatch]:
        query = _select_batches(with_leaves=True).where(*conditions).order_by(_batches.first_id)
        yield from map(_read_batch, self._stream(query))

    def _stream(self, query: Select[Any]) -> Iterator[Any]:
        return iter(self._connection.execute(query.execution_options(yield_per=_AT_ONCE)))


def _select_batches(*, with_leaves: bool) -> Select[Any]:
    columns: list[Any] = [_batches[name] for name in AuditBatch._fields]
    columns[columns.index(_batches.hour)] = _raw(_batches.hour)
    return select(*columns if with_leaves else columns[:-1])


def _read_batch(row: Sequence[Any]) -> AuditBatch:
    writer, sequence, kind, hour, first_id, rows, root, head, salt, *leaves = row
    return AuditBatch(
        writer,
        _read_number(sequence),
        kind,
        _read_time(hour),
        _read_number(first_id),
        _read_number(rows),
        _read_bytes(root),
        _read_bytes(head),
        None if salt is None else _read_bytes(salt),
        None if not leaves or leaves[0] is None else _read_bytes(leaves[0]),
    )


def _make_act(number: int, values: list[Any] | None, subjects: Iterable[Any]) -> StoredAct:
    named = sorted((tuple(each[1:]) for each in subjects), key=lambda each: str(each[0]))
    leaves = [] if values is None else [_hash(values), *(_hash([number, *each]) for each in named)]
    return StoredAct(number, leaves, [str(each[0]) for each in named])


def _hash(values: list[Any]) -> bytes:
    try:
        return hash_act(values)
    except (TypeError, AttributeError, ValueError):
        return b"no program has written this act"
