"""Metrics of the authority in shared memory: batches, provisioning, key tables, rate limits.

Validation, provisioning and rate limits count, `web.api.prometheus` reads. Events of every token
are counted directly in shared memory. Other parts count in plain numbers, which are copied once a
second: a process that is killed loses up to a second of them. Counting must never take a lock.
"""

from collections.abc import Mapping
from enum import StrEnum

from birthmark_sma.authority.rate_limits.limiter import Kind, RateLimitFigures
from birthmark_sma.errors import DatabaseFault
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Gauge,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.storage.group_commit import Batch

MILLISECOND = 1_000_000  # in nanoseconds
# The upper bounds of the histograms: times in nanoseconds, and items in a batch.
_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_TIMES = tuple(each * MILLISECOND for each in _MILLISECONDS)
_ITEMS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_RANGES = 25  # the maximum number of ranges of key tables, each a label value in Prometheus


class Outcome(StrEnum):
    """The outcome of a request to provision a device, as a label of the metric."""

    PROVISIONED = "provisioned"
    CONFLICT = "conflict"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class BatchInstruments:
    """The metrics of one writer: items in a commit, and durations in nanoseconds."""

    def __init__(self, layout: SlotAllocator) -> None:
        self.items = Histogram(layout, _ITEMS)
        self.settling = Histogram(layout, _TIMES)
        self.committing = Histogram(layout, _TIMES)
        self.waiting = Gauge(layout)
        self.refused = Counter(layout, [()])
        self.failed = Counter(layout, [(fault.value,) for fault in DatabaseFault])


# Memory layout: each metric takes the next slots of a process's sheet, in the order of these lines.
# All processes of a server run the same lines, so the slots agree.
_layout = SlotAllocator()
VALIDATIONS = BatchInstruments(_layout)
PROVISIONINGS = BatchInstruments(_layout)
OUTCOMES = Counter(_layout, [(outcome.value,) for outcome in Outcome])
TABLE_RANGES = Counter(_layout, [(str(each),) for each in range(_RANGES)])
"""Camera tokens by key table, in up to 25 ranges of equal size. Their slots are adjacent."""
RATE_REFUSALS = Counter(_layout, [(kind.value,) for kind in Kind])
STORE_AWAY = Gauge(_layout)
STORE_LOST = Counter(_layout, [()])


def new_sheets(processes: int) -> SharedCounters:
    """Create the shared memory for the metrics of a server with this number of processes."""
    return SharedCounters(processes, _layout.size)


def tables_a_range(tables: int) -> int:
    """Return the number of key tables in one range."""
    # Division rounded up, so that there are at most _RANGES ranges.
    return -(-tables // _RANGES)


class Figures:
    """The metrics of one process, in its own sheet (worker slot) of the shared memory."""

    def __init__(self, sheets: SharedCounters | None = None) -> None:
        self.sheets = sheets or new_sheets(1)
        self.sheet = self.sheets.take_one()
        self._copied: dict[int, int] = {}

    def batch(self, writer: BatchInstruments, batch: Batch) -> None:
        """Record a committed batch. Call this in the writer thread only."""
        writer.items.observe(self.sheet, batch.items)
        writer.settling.observe(self.sheet, batch.settled - batch.began)
        writer.committing.observe(self.sheet, batch.committed - batch.settled)

    def batch_failed(self, writer: BatchInstruments, fault: DatabaseFault) -> None:
        """Count a batch that failed with a database error. Call this in the writer thread only."""
        writer.failed.add(self.sheet, (fault.value,))

    def provisioned(self, outcome: Outcome) -> None:
        """Count a request to provision a device. Call this in the event loop only."""
        OUTCOMES.add(self.sheet, (outcome.value,))

    def copy_writer(self, writer: BatchInstruments, *, waiting: int, refused: int) -> None:
        """Copy the number of items that wait for a writer, and the number that its pool refused."""
        writer.waiting.set(self.sheet, waiting)
        self._copy(writer.refused, {(): refused})

    def waiting(self, writer: BatchInstruments) -> tuple[int, int]:
        """Return the number of items that wait in all processes, and the number of processes."""
        alive = self.sheets.alive()
        return writer.waiting.total(alive), len(alive)

    def copy_rate_limits(self, limits: RateLimitFigures) -> None:
        """Copy the counters of the rate limits."""
        self._copy(RATE_REFUSALS, {(kind.value,): limits.refused[kind] for kind in Kind})
        STORE_AWAY.set(self.sheet, int(limits.store.away))
        self._copy(STORE_LOST, {(): limits.store.times_lost})

    def _copy(self, counter: Counter, counted: Mapping[tuple[str, ...], int]) -> None:
        """Add the counts since the last copy to the sheet.

        They are added, not set: the sheet may be one of a dead process, whose counts must stay.
        """
        for labels, times in counted.items():
            place = counter.place[labels]
            self.sheet[place] += times - self._copied.get(place, 0)
            self._copied[place] = times
