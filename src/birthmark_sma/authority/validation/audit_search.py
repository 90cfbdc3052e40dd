"""Search the audit log, newest rows first, in a bounded time.

Called by `sma validations`, and by the dashboard's pages of validations and their export. The log
has an index on the time of the row. Each further index would cost every validation, so PostgreSQL
alone has another one, a coarse one of the request ids. A search with a filter therefore reads one
time window after another, from new to old. It stops when the page is full or when its time is up,
and returns the time back to which it has searched. The per-minute counters tell which windows can
contain a match and how long a window may be. The rows of an hour that was coarsened are all at its
beginning, so it belongs to one window. A search with a filter must never scan the whole log.

On PostgreSQL a search for a request id reads a day at a time (docs/adr/0018). A search for a token
digest reads the replay ledger first, which says when the token was seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from birthmark_sma.authority.audit_chain.batches import floor_to_hour
from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.authority.validation.store_postgresql import prefer_bitmap_scans
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import choose
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    resubmitted_tokens,
    sighted_tokens,
    validation_counters,
)
from birthmark_sma.storage.schema.validations import validation_history as history

SECONDS = 0.06
"""The default time limit of a search, in seconds. It is checked after each time window."""
LOOK_UP_SECONDS = 2.0
"""The time limit of a page that looks up a request id or a token digest."""
_SECONDS_A_PART = 1.0  # of each transaction of a search without a time limit

# A time window has up to this many rows, unless a single minute has more. It was 50,000 before each
# page was measured over 10,000,000 rows: the time limit is checked only between two windows.
_ROWS = 20_000
_MINUTES = 1_000  # a time window has up to this many minutes with rows
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_MOST_OF_A_REQUEST = 5_000
"""If a day has more rows of a request id than this, they are so many that time windows find them.
A batch has up to 1,000 rows, and a caller may give all its requests the same id."""
_LEDGER_ERROR = timedelta(seconds=15)
"""How far the times of ledger and audit row may differ. Of two transactions with one token, the one
that judged it first may write its ledger row second."""
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)  # later than every row: where a search starts

_counters = validation_counters.c


class AuditEntry(NamedTuple):
    """A row of the audit log, without the ciphertext.

    The field names are the column names, apart from `is_coarse`: see `COLUMNS`.
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
    request_id: str | None
    batch_position: int | None
    token_digest: bytes | None
    waited_us: int | None
    is_coarse: bool
    """True if `validated_at` is only the hour, and the address was dropped (docs/adr/0019)."""

    @property
    def cursor(self) -> "Cursor":
        """Return the position of this row."""
        return Cursor(self.validated_at, self.id)


COLUMNS = (
    *(history.c[name] for name in AuditEntry._fields if name != "is_coarse"),
    history.c.time_and_ip_commitment.is_not(None),
)
"""What a SELECT of AuditEntry reads."""


class Cursor(NamedTuple):
    """A position in the audit log. A search continues with the rows older than this one."""

    validated_at: datetime
    id: int

    def __str__(self) -> str:
        """Return the position as a text for URLs and command lines."""
        return f"{self.validated_at.astimezone(UTC).isoformat()}_{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the position of a text. Raises ValueError if it is none."""
        moment, _, number = text.partition("_")
        fault = ValueError(f"{text!r} is no place in the audit log")
        try:
            at = datetime.fromisoformat(moment)
            place = cls(at.astimezone(UTC), int(number))
        except (ValueError, OverflowError):
            raise fault from None
        if at.tzinfo is None or not 0 <= place.id < 2**63:
            raise fault
        return place


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
    request_id: str | None = None
    token_digest: bytes | None = None
    """The digest in the replay ledger (`protocol.camera_token.token_digest`): 16 bytes."""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def looks_up(self) -> bool:
        """Return True if few rows can match: those of a request or of a token."""
        return self.request_id is not None or self.token_digest is not None

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
    if wanted.token_digest is not None:
        wanted = _narrow_by_ledger(connection, wanted, wanted.token_digest)
    place = before or Cursor(_END_OF_TIME, 0)
    if wanted.until is not None:
        place = min(place, Cursor(wanted.until, 0))
    by_request = wanted.request_id is not None and _has_index_of_requests(connection)
    rows: list[AuditEntry] = []
    while True:
        stretch: _Stretch | None = _Stretch(None, place)
        if wanted._is_narrow:
            stretch = _next(connection, wanted, place, whole_days=by_request)
        if stretch is None:
            return AuditPage(rows, None, None)
        # One row more than the page: it shows whether a next page exists.
        left = limit + 1 - len(rows)
        if by_request:
            found = _select_of_request(connection, wanted, stretch)
            if found is None:
                by_request = False  # from now on by time windows
                continue
            rows += found[:left]
        else:
            rows += _select(connection, wanted, stretch, left)
        if len(rows) > limit:
            return AuditPage(rows[:limit], rows[limit - 1].cursor, None)
        if stretch.begins is None:
            return AuditPage(rows, None, None)
        place = Cursor(stretch.begins, 0)
        if time.monotonic() >= deadline:
            if _next_minute(connection, wanted, place) is None:
                return AuditPage(rows, None, None)
            return AuditPage(rows, place, stretch.begins)


def search_whole(
    database: Database, wanted: AuditFilter, *, limit: int, before: Cursor | None = None
) -> AuditPage:
    """Return a page as `search` does, however long it takes.

    No transaction is open for long, because an old snapshot keeps the database from cleaning up.
    """
    rows: list[AuditEntry] = []
    while True:
        with database.read(LONG_SECONDS) as connection:
            page = search(
                connection, wanted, limit=limit - len(rows), before=before, seconds=_SECONDS_A_PART
            )
        rows += page.rows
        if page.looked_back_to is None:
            return page._replace(rows=rows)
        if len(rows) == limit:
            return page._replace(rows=rows, looked_back_to=None)
        before = page.older


class _Stretch(NamedTuple):
    """A time window: from the minute `begins` (None: the oldest row) up to the cursor `ends`."""

    begins: datetime | None
    ends: Cursor


def _narrow_by_ledger(connection: Connection, wanted: AuditFilter, digest: bytes) -> AuditFilter:
    """Return the filter for the time between the first and the last submission of a token.

    A token that the ledger does not know is searched for like anything else.
    """
    again = resubmitted_tokens.c
    first, last = connection.execute(
        select(
            select(sighted_tokens.c.first_seen_at)
            .where(sighted_tokens.c.digest == digest)
            .scalar_subquery(),
            select(func.max(again.last_seen_at)).where(again.digest == digest).scalar_subquery(),
        )
    ).one()
    if first is None:
        return wanted
    latest = max(first, last or first)
    if floor_to_hour(latest) == latest:
        latest += _HOUR  # the ledger has only the hour, and a row may have its time still
    since, until = floor_to_hour(first) - _LEDGER_ERROR, latest + _LEDGER_ERROR
    return replace(
        wanted, since=max(since, wanted.since or since), until=min(until, wanted.until or until)
    )


def _has_index_of_requests(connection: Connection) -> bool:
    return choose(connection, postgresql=True, sqlite=False)


def _next(
    connection: Connection, wanted: AuditFilter, place: Cursor, *, whole_days: bool
) -> _Stretch | None:
    """Return the newest time window before `place` that may contain a match, or None.

    With `whole_days` it begins at midnight, however many rows the day has.
    """
    minute = _next_minute(connection, wanted, place)
    if minute is None:
        return None
    ends = min(place, Cursor(minute + _MINUTE, 0))
    if whole_days:
        return _Stretch(minute.replace(hour=0, minute=0), ends)
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
    hour = floor_to_hour(begins)
    if begins > ends.validated_at or _is_coarse(connection, hour):
        begins = hour
    return _Stretch(begins, ends)


def _is_coarse(connection: Connection, hour: datetime) -> bool:
    """Return whether rows of an hour were coarsened, by one look-up in the index on the time."""
    first = select(COLUMNS[-1]).where(history.c.validated_at == hour).limit(1)
    return bool(connection.execute(first).scalar())


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
    within = table.c.minute < begun
    if begun < place.validated_at or place.id:
        within = table.c.minute <= begun
    if place.id and floor_to_hour(begun) == place.validated_at:
        # The rows of an hour that was coarsened are all at its start, and are counted later.
        within = table.c.minute < begun + _HOUR
    query = select(table.c.minute).where(within).order_by(table.c.minute.desc()).limit(1)
    if len(kinds) < len(Reason):
        query = query.where(kind.in_(kinds))
    if wanted.since is not None:
        query = query.where(table.c.minute >= floor_to_minute(wanted.since))
    return connection.execute(query).scalar()


def _select(
    connection: Connection, wanted: AuditFilter, stretch: _Stretch, limit: int
) -> Sequence[AuditEntry]:
    """Return up to `limit` rows of a time window, newest first, by the index on the time."""
    newest = _matching(wanted, stretch).order_by(history.c.validated_at.desc(), history.c.id.desc())
    return [AuditEntry(*row) for row in connection.execute(newest.limit(limit))]


def _select_of_request(
    connection: Connection, wanted: AuditFilter, stretch: _Stretch
) -> Sequence[AuditEntry] | None:
    """Return all rows of a time window, newest first, by the index on the request id.

    Return None if there are more than `_MOST_OF_A_REQUEST`.
    """
    # No ORDER BY: the index on the time must not be read instead.
    query = _matching(wanted, stretch).limit(_MOST_OF_A_REQUEST + 1)
    with prefer_bitmap_scans(connection):
        rows = [AuditEntry(*row) for row in connection.execute(query)]
    if len(rows) > _MOST_OF_A_REQUEST:
        return None
    return sorted(rows, key=lambda row: row.cursor, reverse=True)


def _matching(wanted: AuditFilter, stretch: _Stretch) -> Select[Any]:
    """Return the query of the rows of a time window that match the filter."""
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
        columns.request_id: wanted.request_id,
        columns.token_digest: wanted.token_digest,
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
    return select(*COLUMNS).where(*conditions)
