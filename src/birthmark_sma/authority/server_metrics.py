"""What an authority counts while it works: batches, provisioning, key tables, rate limits.

What happens with every token is counted where it happens. What other parts count in plain numbers
is copied once a second, so that a process that is killed takes a second of it along.
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
_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_TIMES = tuple(each * MILLISECOND for each in _MILLISECONDS)
_ITEMS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_RANGES = 25


class Outcome(StrEnum):
    """What becomes of a request to provision a device."""

    PROVISIONED = "provisioned"
    CONFLICT = "conflict"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class BatchInstruments:
    """What a writer does: items a commit, and how long work and commit take (nanoseconds)."""

    def __init__(self, layout: SlotAllocator) -> None:
        self.items = Histogram(layout, _ITEMS)
        self.settling = Histogram(layout, _TIMES)
        self.committing = Histogram(layout, _TIMES)
        self.waiting = Gauge(layout)
        self.refused = Counter(layout, [()])
        self.failed = Counter(layout, [(fault.value,) for fault in DatabaseFault])


_layout = SlotAllocator()
VALIDATIONS = BatchInstruments(_layout)
PROVISIONINGS = BatchInstruments(_layout)
OUTCOMES = Counter(_layout, [(outcome.value,) for outcome in Outcome])
TABLE_RANGES = Counter(_layout, [(str(each),) for each in range(_RANGES)])
"""Camera tokens by key table, in at most 25 ranges of tables of one size."""
RATE_REFUSALS = Counter(_layout, [(kind.value,) for kind in Kind])
STORE_AWAY = Gauge(_layout)
STORE_LOST = Counter(_layout, [()])


def new_sheets(processes: int) -> SharedCounters:
    """Make the shared memory for so many processes of a server."""
    return SharedCounters(processes, _layout.size)


def tables_a_range(tables: int) -> int:
    """Return how many key tables are counted together."""
    return -(-tables // _RANGES)


class Figures:
    """What one process has counted, and where: its own sheet among those that are shared."""

    def __init__(self, sheets: SharedCounters | None = None) -> None:
        self.sheets = sheets or new_sheets(1)
        self.sheet = self.sheets.take_one()
        self._copied: dict[int, int] = {}

    def batch(self, writer: BatchInstruments, batch: Batch) -> None:
        """Note a batch, from the writer's own thread."""
        writer.items.observe(self.sheet, batch.items)
        writer.settling.observe(self.sheet, batch.settled - batch.began)
        writer.committing.observe(self.sheet, batch.committed - batch.settled)

    def batch_failed(self, writer: BatchInstruments, fault: DatabaseFault) -> None:
        """Count a batch that the database did not take, from the writer's own thread."""
        writer.failed.add(self.sheet, (fault.value,))

    def provisioned(self, outcome: Outcome) -> None:
        """Count a request to provision a device, from the event loop."""
        OUTCOMES.add(self.sheet, (outcome.value,))

    def copy_writer(self, writer: BatchInstruments, *, waiting: int, refused: int) -> None:
        """Copy how many items wait for a writer now, and how many its pool has refused."""
        writer.waiting.set(self.sheet, waiting)
        self._copy(writer.refused, {(): refused})

    def waiting(self, writer: BatchInstruments) -> tuple[int, int]:
        """Return how many items wait for a writer in all processes, and how many processes run."""
        alive = self.sheets.alive()
        return writer.waiting.total(alive), len(alive)

    def copy_rate_limits(self, limits: RateLimitFigures) -> None:
        """Copy what rate limits have counted."""
        self._copy(RATE_REFUSALS, {(kind.value,): limits.refused[kind] for kind in Kind})
        STORE_AWAY.set(self.sheet, int(limits.store.away))
        self._copy(STORE_LOST, {(): limits.store.times_lost})

    def _copy(self, counter: Counter, counted: Mapping[tuple[str, ...], int]) -> None:
        """Add what has been counted since the last copy: the sheet may be one of a dead process."""
        for labels, times in counted.items():
            place = counter.place[labels]
            self.sheet[place] += times - self._copied.get(place, 0)
            self._copied[place] = times
