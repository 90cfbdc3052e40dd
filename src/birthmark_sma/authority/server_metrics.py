"""Metrics of the authority in shared memory: batches, provisioning, key tables, rate limits, OCSP.

Those parts count, `web.api.prometheus` reads. Events of every token are counted directly in shared
memory. Other parts count in plain numbers, which are copied once a second: a process that is killed
loses up to a second of them. Counting must never take a lock.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from birthmark_sma.authority.rate_limits.limiter import RateLimitFigures
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.errors import DatabaseFault
from birthmark_sma.pki.ocsp.responses import ResponseStatus, Status
from birthmark_sma.runtime import metrics
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Gauge,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.storage.group_commit import Batch, GroupCommit

MILLISECOND = 1_000_000  # in nanoseconds
# The upper bounds of the histograms: times in nanoseconds, and items in a batch.
_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_TIMES = tuple(each * MILLISECOND for each in _MILLISECONDS)
_ITEMS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_RANGES = 25  # the maximum number of ranges of key tables, each a label value in Prometheus


class Outcome(StrEnum):
    """The outcome of a request to provision a device, as a label of the metric."""

    PROVISIONED = "provisioned"
    RE_ENROLLED = "re_enrolled"
    CONFLICT = "conflict"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class RenewalOutcome(StrEnum):
    """The outcome of a request to renew a certificate, as a label of the metric."""

    RENEWED = "renewed"
    REPEATED = "repeated"
    UNPROVEN = "unproven"
    """The certificate is unknown, revoked or expired, or the signature is wrong."""
    WRONG_TIME = "wrong_time"
    NOT_ACTIVE = "not_active"
    RATE_LIMITED = "rate_limited"
    CONFLICT = "conflict"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class OcspSource(StrEnum):
    """The source of the OCSP response about a certificate, as a label of the metric."""

    CACHED = "cached"
    SIGNED = "signed"


class BatchInstruments:
    """The metrics of one writer: items in a commit, and durations in nanoseconds."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.items = Histogram(LAYOUT, metrics.BATCH_ITEMS, _ITEMS, (writer,))
        self.settling = Histogram(LAYOUT, metrics.BATCH_WORK, _TIMES, (writer,))
        self.committing = Histogram(LAYOUT, metrics.BATCH_COMMIT, _TIMES, (writer,))
        self.waiting = Gauge(LAYOUT, metrics.QUEUE_ITEMS, (writer,))
        self.oldest = Gauge(LAYOUT, metrics.OLDEST_ITEM, (writer,), highest=True)
        self.last_commit = Gauge(LAYOUT, metrics.LAST_COMMIT, (writer,), highest=True)
        self.failing = Gauge(LAYOUT, metrics.FAILING_WORKERS, (writer,))
        self.refused = Counter(LAYOUT, metrics.POOL_REFUSALS, [(writer,)])
        faults = [(writer, fault.value) for fault in DatabaseFault]
        self.failed = Counter(LAYOUT, metrics.BATCH_FAILURES, faults)


def _label(status: ResponseStatus) -> str:
    return status.name.lower()


# Memory layout: each metric takes the next slots of a process's row, in the order of these lines.
# All processes of a server run the same lines, so the slots agree.
LAYOUT = SlotAllocator()
VALIDATIONS = BatchInstruments("validation")
PROVISIONINGS = BatchInstruments("provisioning")
OUTCOMES = Counter(LAYOUT, metrics.PROVISIONINGS, [(outcome.value,) for outcome in Outcome])
RENEWALS = Counter(LAYOUT, metrics.RENEWALS, [(each.value,) for each in RenewalOutcome])
TABLE_RANGES = Counter(LAYOUT, metrics.KEY_TABLE_TOKENS, [(str(each),) for each in range(_RANGES)])
"""Camera tokens by key table, in up to 25 ranges of equal size. Their slots are adjacent."""
RATE_REFUSALS = Counter(LAYOUT, metrics.RATE_LIMIT_REFUSALS, [(kind.value,) for kind in Kind])
OCSP_CERTIFICATES = Counter(
    LAYOUT,
    metrics.OCSP_CERTIFICATES,
    [(status.value, source.value) for status in Status for source in OcspSource],
)
OCSP_ERRORS = Counter(
    LAYOUT,
    metrics.OCSP_ERRORS,
    [(_label(status),) for status in ResponseStatus if status is not ResponseStatus.SUCCESSFUL],
)
OCSP_EXPIRY = Gauge(LAYOUT, metrics.OCSP_RESPONDER_EXPIRY, lowest=True)
STORE_AWAY = Gauge(LAYOUT, metrics.RATE_STORE_AWAY_WORKERS)
STORE_LOST = Counter(LAYOUT, metrics.RATE_STORE_LOSSES)


def create_shared_counters(processes: int) -> SharedCounters:
    """Create the shared memory for the metrics of a server with this number of processes."""
    return SharedCounters(processes, LAYOUT.size)


def tables_a_range(tables: int) -> int:
    """Return the number of key tables in one range."""
    # Division rounded up, so that there are at most _RANGES ranges.
    return -(-tables // _RANGES)


class ServerMetrics:
    """The metrics of one process, in its own row (worker slot) of the shared memory."""

    def __init__(self, shared_counters: SharedCounters | None = None) -> None:
        self.shared_counters = shared_counters or create_shared_counters(1)
        self.own_counters = self.shared_counters.take_one()
        self._copied: dict[int, int] = {}

    def batch(self, writer: BatchInstruments, batch: Batch) -> None:
        """Record a committed batch. Call this in the writer thread only."""
        writer.items.observe(self.own_counters, batch.items)
        writer.settling.observe(self.own_counters, batch.settled - batch.began)
        writer.committing.observe(self.own_counters, batch.committed - batch.settled)

    def batch_failed(self, writer: BatchInstruments, fault: DatabaseFault) -> None:
        """Count a batch that failed with a database error. Call this in the writer thread only."""
        writer.failed.add(self.own_counters, (writer.writer, fault.value))

    def provisioned(self, outcome: Outcome) -> None:
        """Count a request to provision a device. Call this in the event loop only."""
        OUTCOMES.add(self.own_counters, (outcome.value,))

    def renewed(self, outcome: RenewalOutcome) -> None:
        """Count a request to renew a certificate. Call this in the event loop only."""
        RENEWALS.add(self.own_counters, (outcome.value,))

    def copy_writer(
        self, writer: BatchInstruments, commits: "GroupCommit[Any, Any]", *, waiting: int
    ) -> None:
        """Copy the state of a writer. `waiting` is the number of items that wait for it."""
        row = self.own_counters
        writer.waiting.set(row, waiting)
        writer.oldest.set(row, int(commits.oldest_seconds * metrics.NANOSECONDS))
        writer.last_commit.set(row, int(commits.health.last_commit * metrics.NANOSECONDS))
        writer.failing.set(row, commits.fault is not None)
        self._copy(writer.refused, {(writer.writer,): commits.refused})

    def count_others_failing(self) -> int:
        """Return the number of writers in other processes that cannot write, as of a second ago."""
        alive, own = self.shared_counters.alive(), [self.own_counters]
        writers = (VALIDATIONS.failing, PROVISIONINGS.failing)
        return sum(each.total(alive) - each.total(own) for each in writers)

    def waiting(self, writer: BatchInstruments) -> tuple[int, int]:
        """Return the number of items that wait in all processes, and the number of processes."""
        alive = self.shared_counters.alive()
        return writer.waiting.total(alive), len(alive)

    def copy_rate_limits(self, limits: RateLimitFigures) -> None:
        """Copy the counters of the rate limits."""
        self._copy(RATE_REFUSALS, {(kind.value,): limits.refused[kind] for kind in Kind})
        STORE_AWAY.set(self.own_counters, int(limits.store.away))
        self._copy(STORE_LOST, {(): limits.store.times_lost})

    def ocsp_answered(self, status: Status, source: OcspSource) -> None:
        """Count a certificate whose status was told. Call this in the event loop only."""
        OCSP_CERTIFICATES.add(self.own_counters, (status.value, source.value))

    def ocsp_refused(self, status: ResponseStatus) -> None:
        """Count an OCSP response that is an error. Call this in the event loop only."""
        OCSP_ERRORS.add(self.own_counters, (_label(status),))

    def copy_ocsp_expiry(self, end: datetime | None) -> None:
        """Copy when the first of this process's OCSP responder certificates ends."""
        OCSP_EXPIRY.set(self.own_counters, 0 if end is None else int(end.timestamp()))

    def _copy(self, counter: Counter, counted: Mapping[tuple[str, ...], int]) -> None:
        """Add the counts since the last copy to the row.

        They are added, not set: the row may be one of a dead process, whose counts must stay.
        """
        for labels, times in counted.items():
            place = counter.place[labels]
            self.own_counters[place] += times - self._copied.get(place, 0)
            self._copied[place] = times
