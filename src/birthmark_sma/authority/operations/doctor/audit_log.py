"""Compare the audit log with its counters, to detect rows that were deleted, changed or added.

The check goes back from the newest day, and reads at most `ROWS` rows unless the operator asks for
all of them. `runner` calls it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.background.retention import midnight
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.doctor import audit_comparison
from birthmark_sma.authority.operations.doctor.audit_comparison import Span, Tally
from birthmark_sma.authority.operations.doctor.findings import Finding, critical, info, ok
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database

ROWS = 5_000_000
"""The number of rows to read at most; this takes some seconds."""
_NAME = "audit trail"
_TOLD = 5  # differences that are listed one by one
_DAY = timedelta(days=1)
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_REMEDY = (
    "Somebody changed the database past this program. Keep it as it is, and compare these days with"
    " a backup from after them"
)


def look_at_audit_trail(database: Database, *, whole: bool) -> Iterator[Finding]:
    """Compare rows with counters by day, reason, repeat and device. A difference is critical.

    `whole` reads all days. A sandbox is not compared: it deletes what is older than an hour.
    """
    with database.read() as connection:
        audit_comparison.hold_still(connection)
        if key_table_store.was_founded_as_sandbox(connection):
            yield info(_NAME, "A sandbox forgets its own, and is not compared with its counters")
            return
        comparison = _Comparison(connection, None if whole else ROWS)
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
            counted = audit_comparison.read_counters(self._connection, span)
            if self._budget is not None and self._rows + counted.reasons.total() > self._budget:
                self._left_before = span.ends
                return
            self._compare(span, counted, partial=pruned and begins == midnight(oldest))
            before = begins

    def findings(self) -> Iterator[Finding]:
        """Return the differences, and what was not compared."""
        for difference in self._differences[:_TOLD]:
            yield critical(_NAME, difference, _REMEDY)
        if len(self._differences) > _TOLD:
            more = len(self._differences) - _TOLD
            yield critical(_NAME, f"{more:,} more differences like these were found", _REMEDY)
        if not self._differences:
            yield ok(
                _NAME,
                f"{self._rows:,} rows of {self._days:,} days agree with what was counted of each"
                " reason, repeat and device",
            )
        if self._uncounted_before is not None:
            yield info(
                _NAME,
                f"Rows from before {self._uncounted_before:%Y-%m-%d %H:%M} UTC have no counters, or"
                " none any more, to be compared with",
                "Pruning takes counters first: where it was cut off, a server goes on with it",
            )
        if self._left_before is not None:
            yield info(
                _NAME,
                f"Rows from before {self._left_before:%Y-%m-%d} were not looked at",
                "To compare all of them, which takes a minute for some ten million rows, type sma"
                " doctor --whole-trail",
            )

    def _compare(self, span: Span, counted: Tally, *, partial: bool) -> None:
        """Compare a day. `partial` means that pruning has deleted some counters, but no rows."""
        found = audit_comparison.count_rows(self._connection, span, Reason.GENUINE.value)
        self._rows += found.reasons.total()
        self._days += 1
        day = f"{span.day:%Y-%m-%d} (UTC)"
        before = len(self._differences)
        for what, rows, counters in (
            ("reason", found.reasons, counted.reasons),
            ("repeat", found.repeats, counted.repeats),
        ):
            for name in sorted(rows.keys() | counters.keys()):
                if rows[name] < counters[name] or (rows[name] > counters[name] and not partial):
                    self._differences.append(
                        f"On {day} there are {rows[name]:,} audit rows of {what} {name}, and"
                        f" {counters[name]:,} were counted"
                    )
        if found.misjudged:
            self._differences.append(
                f"On {day} {found.misjudged:,} audit rows have another verdict than their reason's"
            )
        if partial or len(self._differences) > before:
            return
        devices = audit_comparison.count_devices_that_differ(self._connection, span)
        if devices:
            self._differences.append(
                f"On {day} {devices:,} devices have another number of audit rows of reason"
                f" {Reason.GENUINE.value} than was counted for them"
            )
