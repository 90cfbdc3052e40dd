"""Search the audit trail, newest first, however long it is.

The trail has an index of times and no other, as each would cost every validation. So a search for
what is rare looks at a stretch of time after another, until it has found a page or its time is up,
and says how far back it has looked. The counters, which know what happened in each minute, say
which stretches are worth a look and how long they may be.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from birthmark_sma.authority.validation.audit_counters import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.schema import repeat_counters, validation_counters
from birthmark_sma.storage.schema import validation_history as history

SECONDS = 0.06
"""How long a search goes on looking, unless it is told otherwise."""

_ROWS = 20_000  # how many rows a stretch has at most, but for one busy minute
_MINUTES = 1_000
_MINUTE = timedelta(minutes=1)
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)

_counters = validation_counters.c


class AuditEntry(NamedTuple):
    """A row of the audit trail, but for the ciphertext."""

    id: int
    validated_at: datetime
    validation_result: str
    reason: str
    repeat: str | None
    device_serial: str | None
    table_id: int
    key_index: int
    caller: str | None
    request_ip: str | None


class Cursor(NamedTuple):
    """A place in the trail: what is older is behind it."""

    validated_at: datetime
    id: int


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows are looked for; None leaves all in. `since` is the first moment, `until` none."""

    result: Verdict | None = None
    reason: Reason | None = None
    repeat: Repeat | None = None
    device_serial: str | None = None
    table_id: int | None = None
    caller: str | None = None
    """The id of an access key, or the address of who showed none."""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def _reasons(self) -> set[Reason]:
        reasons = {self.reason} if self.reason is not None else set(Reason)
        return {each for each in reasons if self.result in {None, each.verdict}}

    @property
    def _is_narrow(self) -> bool:
        """Whether there may be long stretches without a row that is wanted."""
        return self != AuditFilter(since=self.since, until=self.until)


class AuditPage(NamedTuple):
    """Rows, newest first, and where to go on; None where nothing older is left.

    `looked_back_to` is set where time was up before the page was full.
    """

    rows: list[AuditEntry]
    older: Cursor | None
    looked_back_to: datetime | None


def search(
    connection: Connection,
    wanted: AuditFilter,
    *,
    limit: int,
    before: Cursor | None = None,
    seconds: float = SECONDS,
) -> AuditPage:
    """Return up to `limit` rows behind a place; it looks at one stretch at least."""
    deadline = time.monotonic() + seconds
    place = before or Cursor(wanted.until or _END_OF_TIME, 0)
    rows: list[AuditEntry] = []
    while True:
        stretch = _next(connection, wanted, place) if wanted._is_narrow else _Stretch(None, place)
        if stretch is None:
            return AuditPage(rows, None, None)
        rows += _select(connection, wanted, stretch, limit + 1 - len(rows))
        if len(rows) > limit:
            last = rows[limit - 1]
            return AuditPage(rows[:limit], Cursor(last.validated_at, last.id), None)
        if stretch.begins is None:
            return AuditPage(rows, None, None)
        place = Cursor(stretch.begins, 0)
        if time.monotonic() >= deadline:
            if _next_minute(connection, wanted, place) is None:
                return AuditPage(rows, None, None)
            return AuditPage(rows, place, stretch.begins)


class _Stretch(NamedTuple):
    """A stretch of time to look at: from a minute on, None for the beginning, up to a place."""

    begins: datetime | None
    ends: Cursor


def _next(connection: Connection, wanted: AuditFilter, place: Cursor) -> _Stretch | None:
    """Return the newest stretch behind a place that may have what is wanted."""
    minute = _next_minute(connection, wanted, place)
    if minute is None:
        return None
    ends = min(place, Cursor(minute + _MINUTE, 0))
    counted = connection.execute(
        select(_counters.minute, func.sum(_counters.times))
        .where(_counters.minute <= minute)
        .group_by(_counters.minute)
        .order_by(_counters.minute.desc())
        .limit(_MINUTES)
    )
    rows = 0
    begins = minute
    for begins, times in counted:  # noqa: B007  the last one is what it is about
        rows += times
        if rows >= _ROWS:
            break
    return _Stretch(begins, ends)


def _next_minute(connection: Connection, wanted: AuditFilter, place: Cursor) -> datetime | None:
    """Return the newest minute behind a place in which what is wanted may have happened."""
    if wanted.repeat is None:
        table, kind = validation_counters, _counters.reason
        kinds = [each.value for each in Reason if each in wanted._reasons]
    else:
        table, kind = repeat_counters, repeat_counters.c.repeat
        kinds = [wanted.repeat.value]
    # Of the minute that the place begins nothing is behind it.
    begun = floor_to_minute(place.validated_at)
    within = (
        table.c.minute <= begun
        if begun < place.validated_at or place.id
        else (table.c.minute < begun)
    )
    query = select(table.c.minute).where(within).order_by(table.c.minute.desc()).limit(1)
    if len(kinds) < len(Reason):
        query = query.where(kind.in_(kinds))
    if wanted.since is not None:
        query = query.where(table.c.minute >= floor_to_minute(wanted.since))
    return connection.execute(query).scalar()


def _select(
    connection: Connection, wanted: AuditFilter, stretch: _Stretch, limit: int
) -> Sequence[AuditEntry]:
    columns = history.c
    ends = stretch.ends
    conditions: list[ColumnElement[bool]] = [
        columns.validated_at <= ends.validated_at,
        or_(
            columns.validated_at < ends.validated_at,
            and_(columns.validated_at == ends.validated_at, columns.id < ends.id),
        ),
    ]
    for moment in (stretch.begins, wanted.since):
        if moment is not None:
            conditions.append(columns.validated_at >= moment)
    exactly = {
        columns.validation_result: wanted.result,
        columns.reason: wanted.reason,
        columns.repeat: wanted.repeat,
        columns.device_serial: wanted.device_serial,
        columns.table_id: wanted.table_id,
    }
    conditions += [column == value for column, value in exactly.items() if value is not None]
    if wanted.caller is not None:
        conditions.append(
            or_(
                columns.caller == wanted.caller,
                and_(columns.caller.is_(None), columns.request_ip == wanted.caller),
            )
        )
    rows = connection.execute(
        select(*(columns[name] for name in AuditEntry._fields))
        .where(*conditions)
        .order_by(columns.validated_at.desc(), columns.id.desc())
        .limit(limit)
    )
    return [AuditEntry(*row) for row in rows]
