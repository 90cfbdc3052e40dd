"""SQL that coarsens audit rows: find those of a batch, and put the hour in place of their time.

Called by `coarsening` alone. A row has its commitment from the update that drops its time and
address. On PostgreSQL a partition has no index on ids, so rows are looked for by their time.
"""

import secrets
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, or_, select, update

from birthmark_sma.authority.audit_chain.batches import (
    EARLIER,
    SALT_BYTES,
    Kind,
    commit_to,
    floor_to_hour,
)
from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.audit_chain import audit_batches
from birthmark_sma.storage.schema.validations import validation_history as history

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_row = history.c
_batches = audit_batches.c
_is_exact = _row.time_and_ip_commitment.is_(None)


class SaltedBatch(NamedTuple):
    """A batch of audit rows whose salt is still there. Never log it: the salt is a secret."""

    writer: str
    sequence: int
    hour: datetime
    first_id: int
    rows: int
    salt: bytes

    @property
    def ends(self) -> datetime:
        """Return the end of the time of its rows."""
        return self.hour + (_DAY if self.writer == EARLIER else _HOUR)

    @property
    def last_id(self) -> int:
        """Return the id of its last row."""
        return self.first_id + self.rows - 1


_SALTED = [_batches[name] for name in SaltedBatch._fields]


class ExactRow(NamedTuple):
    """What is read of an audit row that has its time and address."""

    id: int
    validated_at: datetime
    request_ip: str | None
    token_digest: bytes | None


_EXACT = [_row[name] for name in ExactRow._fields]


def find_day(connection: Connection, since: datetime | None, before: datetime) -> datetime | None:
    """Return the midnight (UTC) of the first day with rows from `since` on and before a time."""
    query = select(func.min(_row.validated_at)).where(_row.validated_at < before)
    if since is not None:
        query = query.where(_row.validated_at >= since)
    first: datetime | None = connection.execute(query).scalar_one()
    return first and floor_to_hour(first).replace(hour=0)


def is_exact(connection: Connection, day: datetime) -> bool:
    """Return whether a day has a row with an exact time, by at most 25 look-ups in the index."""
    return _begins_exactly(connection, day) or _find_exact(connection, day) is not None


def _begins_exactly(connection: Connection, day: datetime) -> bool:
    """Return whether the first row of a day is exact. All its rows may be exactly on an hour."""
    first = select(_is_exact).where(*_of_day(day)).order_by(_row.validated_at).limit(1)
    return bool(connection.execute(first).scalar())


def _of_day(day: datetime) -> tuple[ColumnElement[bool], ...]:
    return _row.validated_at >= day, _row.validated_at < day + _DAY


def _find_exact(connection: Connection, day: datetime) -> datetime | None:
    """Return the first time of a day that is between two hours, or None."""
    moment = day
    while True:
        following = select(func.min(_row.validated_at)).where(
            _row.validated_at > moment, _row.validated_at < day + _DAY
        )
        found: datetime | None = connection.execute(following).scalar_one()
        if found is None or floor_to_hour(found) != found:
            return found
        moment = found


def read_salted(connection: Connection, day: datetime, *, limit: int) -> list[SaltedBatch]:
    """Return up to `limit` batches of a day that have their salt, by hour, chain and sequence."""
    query = (
        select(*_SALTED)
        .where(
            _batches.hour >= day,
            _batches.hour < day + _DAY,
            _batches.kind == Kind.VALIDATIONS.value,
            _batches.salt.is_not(None),
        )
        .order_by(_batches.hour, _batches.writer, _batches.sequence)
        .limit(limit)
    )
    return [SaltedBatch(*row) for row in connection.execute(query)]


def reread(connection: Connection, batches: Sequence[SaltedBatch]) -> list[SaltedBatch]:
    """Return those of the batches of one chain that still have their salt."""
    query = select(*_SALTED).where(*_among(batches), _batches.salt.is_not(None))
    there = {SaltedBatch(*row) for row in connection.execute(query)}
    return [each for each in batches if each in there]


def read_rows(
    connection: Connection, batches: Sequence[SaltedBatch], after: datetime | None
) -> list[ExactRow]:
    """Return the rows of batches of one chain and hour.

    `after` is a time before which there are none, if the clock did not go back.
    """
    expected = sum(each.rows for each in batches)
    found: list[ExactRow] = []
    if batches[0].writer != EARLIER:
        begins = _row.validated_at > batches[0].hour  # at it are those that were coarsened before
        if after is not None and after > batches[0].hour:
            begins = _row.validated_at >= after
        query = _of_batches(batches).where(begins).order_by(_row.validated_at).limit(expected)
        found = [ExactRow(*row) for row in connection.execute(query)]
    if len(found) < expected:  # one was deleted, or is exactly on the hour
        found = [ExactRow(*row) for row in connection.execute(_of_batches(batches))]
    return found


def _of_batches(batches: Sequence[SaltedBatch]) -> Select[Any]:
    return select(*_EXACT).where(
        _row.validated_at >= batches[0].hour,
        _row.validated_at < batches[0].ends,
        or_(*(_row.id.between(*span) for span in _spans(batches))),
        _is_exact,
    )


def _spans(batches: Sequence[SaltedBatch]) -> list[tuple[int, int]]:
    """Return the first and last ids of batches, those that follow each other as one."""
    spans: list[tuple[int, int]] = []
    for first_id, last_id in sorted((each.first_id, each.last_id) for each in batches):
        if spans and spans[-1][1] + 1 == first_id:
            first_id = spans.pop()[0]  # noqa: PLW2901
        spans.append((first_id, last_id))
    return spans


def coarsen_rows(
    transaction: Connection, batches: Sequence[SaltedBatch], rows: Iterable[ExactRow]
) -> None:
    """Put the hour and the commitment in place of time and address, in the rows of batches.

    A row between the ids of two batches is in neither, and stays as it is.
    """
    in_order = sorted(batches, key=attrgetter("first_id"))
    first_ids = [each.first_id for each in in_order]
    # The rows of a batch share one time and few addresses, so few statements change them all.
    alike: dict[tuple[int, datetime, str | None], SaltedBatch] = {}
    for row in rows:
        batch = in_order[max(bisect_right(first_ids, row.id) - 1, 0)]
        if batch.first_id <= row.id <= batch.last_id:
            alike[batch.first_id, row.validated_at, row.request_ip] = batch
    _change(
        transaction,
        [
            _Change(
                time, address, batch.first_id, batch.last_id, commit_to(batch.salt, time, address)
            )
            for (_, time, address), batch in alike.items()
        ],
    )


def read_exact(connection: Connection, day: datetime, *, limit: int) -> list[ExactRow]:
    """Return up to `limit` exact rows of the first hour of a day that has some."""
    moment = _find_exact(connection, day)
    if moment is not None:
        ends = floor_to_hour(moment) + _HOUR
        query = select(*_EXACT).where(_row.validated_at >= moment, _row.validated_at < ends)
        query = query.order_by(_row.validated_at)
    elif _begins_exactly(connection, day):
        query = select(*_EXACT).where(*_of_day(day), _is_exact)
    else:
        return []
    return [ExactRow(*row) for row in connection.execute(query.limit(limit))]


def coarsen_strangers(transaction: Connection, rows: Iterable[ExactRow]) -> None:
    """Coarsen rows that are in no batch. Nobody can open their commitments: their salt is lost."""
    salt = secrets.token_bytes(SALT_BYTES)
    _change(
        transaction,
        [
            _Change(time, address, number, number, commit_to(salt, time, address))
            for number, time, address, _ in rows
        ],
    )


class _Change(NamedTuple):
    """The rows of a time and an address between two ids, and their commitment."""

    time: datetime
    address: str | None
    first_id: int
    last_id: int
    commitment: bytes


_CHANGE = (
    update(history)
    .where(
        _row.validated_at == bindparam("time", type_=UtcDateTime()),
        _row.id.between(bindparam("first_id"), bindparam("last_id")),
        _row.request_ip.is_not_distinct_from(bindparam("address", type_=_row.request_ip.type)),
        _is_exact,
    )
    .values(
        validated_at=bindparam("hour", type_=UtcDateTime()),
        request_ip=None,
        time_and_ip_commitment=bindparam("commitment"),
    )
)


def _change(transaction: Connection, changes: Iterable[_Change]) -> None:
    values = [each._asdict() | {"hour": floor_to_hour(each.time)} for each in changes]
    if values:
        transaction.execute(_CHANGE, values)


def drop_salts(transaction: Connection, batches: Sequence[SaltedBatch]) -> None:
    """Drop the salts of batches of one chain, in the transaction that coarsens their rows."""
    transaction.execute(update(audit_batches).where(*_among(batches)).values(salt=None))


def _among(batches: Sequence[SaltedBatch]) -> tuple[ColumnElement[bool], ...]:
    sequences = [each.sequence for each in batches]
    return _batches.writer == batches[0].writer, _batches.sequence.in_(sequences)
