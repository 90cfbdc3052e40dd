"""Search the audit log, newest rows first, in a bounded time.

Called by the dashboard's page of validations and its export. The log has one index, on the time of
the row, because each further index would cost every validation. A search with a filter therefore
reads one time window after another, from new to old. It stops when the page is full or when its
time is up, and returns the time back to which it has searched. The per-minute counters tell which
windows can contain a match and how long a window may be. A search with a filter must never scan
the whole log.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.schema.validations import repeat_counters, validation_counters
from birthmark_sma.storage.schema.validations import validation_history as history

SECONDS = 0.06
"""The default time limit of a search, in seconds. It is checked after each time window."""

# A time window has up to this many rows, unless a single minute has more. It was 50,000 before each
# page was measured over 10,000,000 rows: the time limit is checked only between two windows.
_ROWS = 20_000
_MINUTES = 1_000  # a time window has up to this many minutes with rows
_MINUTE = timedelta(minutes=1)
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)  # later than every row: where a search starts

_counters = validation_counters.c


class AuditEntry(NamedTuple):
    """A row of the audit log, without the ciphertext.

    The field names are the column names: `_select` builds its query from them.
    """

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
    """A position in the audit log. A search continues with the rows older than this one."""

    validated_at: datetime
    id: int


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The rows to search for. None in a field means no restriction.

    `since` is inclusive, `until` is exclusive.
    """

    result: Verdict | None = None
    reason: Reason | None = None
    repeat: Repeat | None = None
    device_serial: str | None = None
    table_id: int | None = None
    caller: str | None = None
    """The id of an access key, or the address of a caller without an access key."""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def _reasons(self) -> set[Reason]:
        reasons = {self.reason} if self.reason is not None else set(Reason)
        return {each for each in reasons if self.result in {None, each.verdict}}

    @property
    def _is_narrow(self) -> bool:
        """Return True if the filter restricts more than the time.

        Long stretches of the log may then have no match, so the search reads window by window.
        """
        return self != AuditFilter(since=self.since, until=self.until)


class AuditPage(NamedTuple):
    """Rows, newest first, and the cursor of the next page; None if no older match is left.

    `looked_back_to` is set if the time limit was reached before the page was full.
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
    """Return up to `limit` matching rows that are older than `before`, newest first.

    `seconds` is the time limit. The search reads at least one time window, so that every call makes
    progress.
    """
    deadline = time.monotonic() + seconds
    place = before or Cursor(wanted.until or _END_OF_TIME, 0)
    rows: list[AuditEntry] = []
    while True:
        stretch = _next(connection, wanted, place) if wanted._is_narrow else _Stretch(None, place)
        if stretch is None:
            return AuditPage(rows, None, None)
        # One row more than the page: it shows whether a next page exists.
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
    """A time window: from the minute `begins` (None: the oldest row) up to the cursor `ends`."""

    begins: datetime | None
    ends: Cursor


def _next(connection: Connection, wanted: AuditFilter, place: Cursor) -> _Stretch | None:
    """Return the newest time window before `place` that may contain a match, or None."""
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
    for begins, times in counted:  # noqa: B007  the last minute read is the start of the window
        rows += times
        if rows >= _ROWS:
            break
    return _Stretch(begins, ends)


def _next_minute(connection: Connection, wanted: AuditFilter, place: Cursor) -> datetime | None:
    """Return the newest minute before `place` that may contain a match, or None.

    Only the counters are read. They know reasons and repeats, not devices, tables or callers.
    """
    if wanted.repeat is None:
        table, kind = validation_counters, _counters.reason
        kinds = [each.value for each in Reason if each in wanted._reasons]
    else:
        table, kind = repeat_counters, repeat_counters.c.repeat
        kinds = [wanted.repeat.value]
    # If the cursor is the very start of a minute, no row of that minute is older than the cursor.
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
    # The first condition follows from the second, but only a plain comparison can use the index.
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
        # A row with an access key belongs to that key, whatever address it came from.
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
