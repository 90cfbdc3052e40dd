"""Store the usage statistics of key tables: devices, and camera tokens that named each table.

The background task `key_tables.usage` updates them from the audit log, the dashboard reads them. So
no page scans the audit log, and no validation writes a further row. Counts must never decrease when
the audit log is pruned.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, func, select, update
from sqlalchemy.sql.dml import Insert

from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.portable_sql import choose, insert_or_skip, insert_or_update
from birthmark_sma.storage.schema.devices import registered_devices
from birthmark_sma.storage.schema.key_tables import (
    key_table_counting,
    key_table_figures,
    key_tables,
)
from birthmark_sma.storage.schema.validations import validation_counters, validation_history

_counting = key_table_counting.c
_figures = key_table_figures.c
_MINUTE = timedelta(minutes=1)
_MOST_MINUTES = 1_500  # minutes with tokens that one step reads from the counters


@dataclass(frozen=True, slots=True)
class TableFigures:
    """The statistics of a key table: its devices, and the verdicts on tokens that named it.

    The number of devices that use a table is the anonymity set of its tokens.
    """

    table_id: int
    devices: int
    passes: int
    fails: int

    @property
    def tokens(self) -> int:
        """Return the number of camera tokens that named this table."""
        return self.passes + self.fails


@dataclass(frozen=True, slots=True)
class Counting:
    """The progress of counting: tokens before `counted_until`, and all devices at `devices_at`.

    `devices_seconds` is the duration of the last count of devices. None means: never counted.
    """

    counted_until: datetime | None = None
    devices_at: datetime | None = None
    devices_seconds: float | None = None


def list_figures(connection: Connection) -> list[TableFigures]:
    """Return the statistics of all key tables, by id. Tables that were not counted have zeros."""
    rows = connection.execute(
        select(
            key_tables.c.table_id,
            func.coalesce(_figures.devices, 0),
            func.coalesce(_figures.passes, 0),
            func.coalesce(_figures.fails, 0),
        )
        .outerjoin_from(key_tables, key_table_figures, _figures.table_id == key_tables.c.table_id)
        .order_by(key_tables.c.table_id)
    )
    return [TableFigures(*row) for row in rows]


def find_counting(connection: Connection) -> Counting:
    """Return the progress of counting."""
    row = connection.execute(
        select(_counting.counted_until, _counting.devices_at, _counting.devices_seconds)
    ).one_or_none()
    return Counting() if row is None else Counting(*row)


def count_assigned(connection: Connection) -> int:
    """Return the number of counted assignments: three for each device, one for each table."""
    return int(
        connection.execute(select(func.coalesce(func.sum(_figures.devices), 0))).scalar_one()
    )


# --- tokens


def next_minutes(
    connection: Connection, counting: Counting, before: datetime, rows: int
) -> tuple[datetime, datetime] | None:
    """Return the next range of whole minutes to count, from the first time up to the second.

    The range ends before `before`, and has up to `rows` audit rows by the counters, unless a single
    minute has more. Return None if all minutes before `before` are counted.
    """
    minute, times = validation_counters.c.minute, validation_counters.c.times
    query = select(minute, func.sum(times)).where(minute < before).group_by(minute).order_by(minute)
    if counting.counted_until is not None:
        query = query.where(minute >= counting.counted_until)
    begins: datetime | None = None
    ends = before
    total = 0
    for each, number in connection.execute(query.limit(_MOST_MINUTES)):
        if begins is None:
            begins = counting.counted_until or each
        elif total + number > rows:
            return begins, each
        total += number
        ends = each + _MINUTE
    return None if begins is None else (begins, ends)


def count_tokens(
    connection: Connection, begins: datetime, ends: datetime
) -> dict[int, tuple[int, int]]:
    """Return the numbers of PASS and FAIL by existing table, from the audit log.

    Rows from `begins` (inclusive) to `ends` (exclusive) are counted. Tokens that named a table that
    does not exist are left out.
    """
    history = validation_history.c
    passes = func.sum(case((history.validation_result == Verdict.PASS.value, 1), else_=0))
    rows = connection.execute(
        select(history.table_id, passes, func.count())
        .where(history.validated_at >= begins, history.validated_at < ends)
        .group_by(history.table_id)
    ).all()
    known = set(connection.execute(select(key_tables.c.table_id)).scalars())
    return {
        table_id: (int(passed), total - int(passed))
        for table_id, passed, total in rows
        if table_id in known
    }


def add_tokens(
    transaction: Connection,
    counted: Mapping[int, tuple[int, int]],
    *,
    before: Counting,
    until: datetime,
) -> bool:
    """Add the counts of tokens up to `until`; return False if another process did it meanwhile.

    `before` is the progress that the count started from.
    """
    # Claim and counts in one transaction, so that no token is counted twice.
    if not _claim(transaction, before, counted_until=until):
        return False
    rows = [
        {"table_id": table_id, "passes": passes, "fails": fails}
        for table_id, (passes, fails) in sorted(counted.items())
    ]
    if rows:
        adding = [_figures.passes, _figures.fails]
        transaction.execute(insert_or_update(transaction, key_table_figures, add=adding), rows)
    return True


# --- devices


def claim_devices(transaction: Connection, before: Counting, now: datetime) -> bool:
    """Claim the count of devices for this process; return False if another process has it."""
    return _claim(transaction, before, devices_at=now)


def count_assignments(connection: Connection) -> dict[int, int]:
    """Return the number of devices by table id. This reads the whole register of devices."""
    tables = registered_devices.c.table_assignments
    unnested, parsed = func.unnest(tables), func.json_each(tables)
    each = choose(
        connection,
        postgresql=unnested.table_valued("value", joins_implicitly=True).render_derived(),
        sqlite=parsed.table_valued("value", joins_implicitly=True),
    ).c.value
    rows = connection.execute(
        select(each, func.count()).select_from(registered_devices).group_by(each)
    )
    return {int(table_id): devices for table_id, devices in rows}


def put_devices(
    transaction: Connection, table_ids: Iterable[int], counted: Mapping[int, int], seconds: float
) -> None:
    """Replace the number of devices of each table. `seconds` is the duration of the count."""
    # Lock order: the row of key_table_counting first, then the tables by id, as in `add_tokens`.
    # This prevents a deadlock.
    transaction.execute(update(key_table_counting).values(devices_seconds=seconds))
    rows = [{"table_id": each, "devices": counted.get(each, 0)} for each in sorted(table_ids)]
    if rows:
        replacing = [_figures.devices]
        transaction.execute(
            insert_or_update(transaction, key_table_figures, replace=replacing), rows
        )


def _claim(transaction: Connection, before: Counting, **values: datetime) -> bool:
    """Set one progress column to a new value; return False if it is no longer as in `before`."""
    # Compare and set: the UPDATE changes no row if another process has changed the column.
    adding: Insert = insert_or_skip(transaction, key_table_counting)
    transaction.execute(adding.values(id=1))
    [(name, _)] = values.items()
    known = getattr(before, name)
    column = _counting[name]
    same = column.is_(None) if known is None else column == known
    return (
        transaction.execute(update(key_table_counting).where(same).values(**values)).rowcount == 1
    )
