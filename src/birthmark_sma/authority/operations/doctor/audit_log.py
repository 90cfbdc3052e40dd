"""Compare the audit log with its counters, to detect rows that were deleted, changed or added.

The check goes back from the newest day, and reads a bounded number of rows unless the operator
asks for all of them. `runner` calls it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.background.retention import midnight
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.doctor import audit_comparison
from birthmark_sma.authority.operations.doctor.audit_comparison import Span, Tally
from birthmark_sma.authority.operations.doctor.findings import Finding, critical, info, ok
from birthmark_sma.counts import counted
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import hold_snapshot
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

ROWS = 5_000_000
"""The number of rows that `sma doctor` reads at most; this takes some seconds."""
_LISTED = 5  # differences that are listed one by one
_DAY = timedelta(days=1)
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_REMEDY = (
    "Another program changed the database. Do not change it further, and compare these days with a"
    " later backup"
)


def check_audit_log(database: Database, rows: int | None) -> Iterator[Finding]:
    """Compare rows with counters by day, reason, repeat and device. A difference is critical.

    At most `rows` rows are read, all with None. A sandbox is not compared: it deletes what is older
    than an hour.
    """
    with database.read(LONG_SECONDS) as connection:
        hold_snapshot(connection)
        if key_table_store.was_created_as_sandbox(connection):
            yield info("A sandbox deletes its audit rows after an hour, so they are not compared")
            return
        comparison = _Comparison(connection, rows)
        comparison.run()
    yield from comparison.findings()


class _Comparison:
    """One comparison, in one transaction. `budget` is the number of rows to read, None for all."""

    def __init__(self, connection: Connection, budget: int | None) -> None:
        self._connection = connection
        self._budget = budget
        self._differences: list[str] = []
        self._rows = self._days = 0
        self._uncounted_before: datetime | None = None
        self._left_before: datetime | None = None

    def run(self) -> None:
        """Compare day by day, from the newest back, until the budget or the counters end."""
        oldest = audit_comparison.oldest_counted(self._connection)
        # Pruning deletes counters before rows. So if there are rows older than the oldest counter,
        # the counters of that day are incomplete.
        pruned = oldest is not None and audit_comparison.is_any_row_before(self._connection, oldest)
        before = _END_OF_TIME
        while (newest := audit_comparison.newest_before(self._connection, before)) is not None:
            begins = midnight(newest)
            if oldest is None or begins < midnight(oldest):
                self._uncounted_before = oldest or newest
                return
            # On the last day of the calendar, where `begins + _DAY` would overflow, take `before`.
            span = Span(begins, before if before - begins < _DAY else begins + _DAY)
            tally = audit_comparison.read_counters(self._connection, span)
            if self._budget is not None and self._rows + tally.reasons.total() > self._budget:
                self._left_before = span.ends
                return
            self._compare(span, tally, partial=pruned and begins == midnight(oldest))
            before = begins

    def findings(self) -> Iterator[Finding]:
        """Return the differences, and what was not compared."""
        for difference in self._differences[:_LISTED]:
            yield critical(difference, _REMEDY)
        if len(self._differences) > _LISTED:
            more = len(self._differences) - _LISTED
            yield critical(f"Not listed: {counted(more, 'more difference')}", _REMEDY)
        if not self._differences:
            yield ok(
                f"{counted(self._rows, 'row')} of {counted(self._days, 'day')} agree with their"
                " counters",
            )
        if self._uncounted_before is not None:
            yield info(
                f"Rows from before {self._uncounted_before:%Y-%m-%d %H:%M} UTC have no counters and"
                " cannot be compared",
                "Pruning deletes counters first. If it was interrupted, a server completes it",
            )
        if self._left_before is not None:
            yield info(
                f"Rows from before {self._left_before:%Y-%m-%d} were not compared",
                "To compare all rows, type sma doctor --whole-trail. It takes about a minute for"
                " 10 million rows",
            )

    def _compare(self, span: Span, tally: Tally, *, partial: bool) -> None:
        """Compare a day. `partial` means that pruning has deleted some counters, but no rows."""
        found = audit_comparison.count_rows(self._connection, span, Reason.GENUINE.value)
        self._rows += found.reasons.total()
        self._days += 1
        day = f"{span.day:%Y-%m-%d} (UTC)"
        before = len(self._differences)
        for what, rows, counters in (
            ("reason", found.reasons, tally.reasons),
            ("repeat", found.repeats, tally.repeats),
        ):
            for name in sorted(rows.keys() | counters.keys()):
                if rows[name] < counters[name] or (rows[name] > counters[name] and not partial):
                    self._differences.append(
                        f"On {day} there are {rows[name]:,} audit rows of {what} {name}, but"
                        f" {counters[name]:,} were counted"
                    )
        if found.misjudged:
            self._differences.append(
                f"On {day} the verdict does not match the reason in"
                f" {counted(found.misjudged, 'audit row')}"
            )
        if partial or len(self._differences) > before:
            return
        devices = audit_comparison.count_devices_with_missing_rows(self._connection, span)
        if devices:
            self._differences.append(
                f"On {day} {counted(devices, 'device has', 'devices have')} fewer audit rows of"
                f" reason {Reason.GENUINE.value} than were counted"
            )
