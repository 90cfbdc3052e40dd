"""Group commit: one writer thread handles all waiting items in one transaction (docs/adr/0002).

A durable commit takes milliseconds. Many callers share one commit; this makes a server fast.
Validation and provisioning each have a writer.

The contract: an accepted item gets exactly one answer, and an answer that is not an exception means
that its transaction is durable. Nothing is answered before the commit. A full pool raises
PoolFullError at once.

An item whose caller left before its transaction began is not handled. If the caller left later, or
the end of the transaction stays unknown, the answer is lost (docs/adr/0009). Then `record_lost`
records it, in the same transaction if possible, else in the next one.

Lock order: `_changed` is the only lock here. It is never held during a transaction or a callback,
and nothing else is locked while it is held. The handler's statements decide the order of row locks.
After a deadlock with another process the batch is tried again (`storage.outages.retries`).
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from operator import attrgetter
from time import monotonic, perf_counter_ns, time
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection

from birthmark_sma.errors import (
    BirthmarkError,
    DatabaseFault,
    DatabaseUnavailableError,
    ShuttingDownError,
)
from birthmark_sma.runtime.log_context import WORKING_FOR, LoggedRequest
from birthmark_sma.runtime.submission import (
    Answers,
    Submission,
    deliver,
    remove_who_left,
    requests_of,
    share_out,
)
from birthmark_sma.runtime.writer_health import Outcome, WriterHealth
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.outages.writer_commits import WriterCommits
from birthmark_sma.storage.pool.pool import Pool, Reservation

Item = TypeVar("Item")
Answer = TypeVar("Answer")
BatchHandler: TypeAlias = Callable[[Connection, Sequence[Item]], Sequence[Answer | BirthmarkError]]
"""Does the work of a batch inside a transaction. It returns one answer for each item, in the order
of the items. An error in an item's place is raised to its caller alone and rolls nothing back."""

RecordLost: TypeAlias = Callable[[Connection, Sequence[tuple[Item, Answer]]], None]
"""Records items whose answers did not reach their callers. Must be idempotent."""


class Batch(NamedTuple):
    """A batch that was committed. Times are in nanoseconds of `perf_counter_ns`."""

    items: int
    requests: Callable[[], Sequence[LoggedRequest]]
    """Returns the requests to which the items belong; items without a request are left out."""
    began: int
    settled: int
    """The work was done, apart from what goes with the commit, and the commit began."""
    committed: int


_MOST_LOST = 100_000  # lost answers kept while the database is away; then the oldest are dropped
_LOST_AGAIN_SECONDS = 1.0  # between two attempts to record lost answers

_since = attrgetter("since")  # a call's time
_log = logging.getLogger(__name__)


class GroupCommit(Generic[Item, Answer]):
    """A queue of items and the thread that handles them in batches.

    Safe to use from any thread and any event loop. `pool_limit` is the number of items that may
    wait, and `storage.pool` shares it between the callers. `batch_limit` is the number of
    items after which a batch takes no further call. `on_commit` is
    called for each batch after its commit and before its answers, `on_failure` with the kind of
    fault of each batch that failed; both in the writer thread.
    """

    def __init__(
        self,
        database: Database,
        handler: "BatchHandler[Item, Answer]",
        *,
        name: str,
        pool_limit: int,
        batch_limit: int,
        on_commit: Callable[[Batch], None] | None = None,
        record_lost: "RecordLost[Item, Answer] | None" = None,
        on_failure: Callable[[DatabaseFault], None] | None = None,
    ) -> None:
        # Never changed after this.
        self._database = database
        self._handler = handler
        self.name = name
        self._batch_limit = batch_limit
        self._on_commit = on_commit
        self._record_lost = record_lost
        self._on_failure = on_failure
        self._lose_later = self._lose  # one bound method for all calls instead of one for each
        # Guarded by _changed.
        self._changed = threading.Condition()
        self.pool: Pool[Submission[Item, Answer]] = Pool(self._changed, pool_limit)
        self._closing = False
        self._lost: deque[tuple[Item, Answer]] = deque()
        self._dropped = 0  # lost answers that were dropped and not yet logged
        # Owned by the writer thread; others only read `_taken` and `began`.
        self._commits = WriterCommits(database)
        self._try_lost_at = 0.0
        self._taken: Submission[Item, Answer] | None = None  # the oldest of the current batch
        self.health = WriterHealth()
        self.began = 0
        """The start of the current transaction, in nanoseconds of `perf_counter_ns`."""
        self._writer = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()

    @property
    def next_mark(self) -> CommitMark:
        """Return the mark of the current transaction. Call it in the handler."""
        return self._commits.next_mark

    def submit(
        self, item: Item, request: LoggedRequest | None = None, caller: str | None = None
    ) -> "Future[Answer]":
        """Submit an item from a thread; return the future of its answer.

        Raises PoolFullError or ShuttingDownError at once. The future cannot be cancelled: the item
        is handled in any case.
        """
        future: Future[Answer] = self._accept((item,), request, caller, loop=None)
        return future

    def submit_async(
        self, item: Item, request: LoggedRequest | None = None, caller: str | None = None
    ) -> "asyncio.Future[Answer]":
        """Submit an item from a coroutine; return the future of its answer.

        Raises PoolFullError or ShuttingDownError at once. The future raises
        DatabaseUnavailableError if the batch failed, or the error in the item's place. If the
        future is done before the item's transaction begins, such as after a cancellation, the item
        is not handled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = self._accept((item,), request, caller, loop=loop)
        return future

    def submit_together(
        self,
        items: Sequence[Item],
        request: LoggedRequest | None = None,
        caller: str | None = None,
        reservation: Reservation | None = None,
    ) -> "asyncio.Future[Answers[Answer]]":
        """Submit items that are handled in one transaction; return the future of their answers.

        The result has an answer or an error for each item. Raises as `submit_async` does, except
        that errors of single items are returned. With a reservation the pool is never full.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers[Answer]] = self._accept(
            items, request, caller, single=False, loop=loop, reservation=reservation
        )
        return future

    @property
    def waiting(self) -> int:
        """The number of items that wait for the writer."""
        return self.pool.waiting

    @property
    def refused(self) -> int:
        """The number of items that were refused because the pool was full."""
        return self.pool.refused

    @property
    def running(self) -> bool:
        """True while items are accepted and handled."""
        return self._writer.is_alive() and not self._closing

    @property
    def oldest_seconds(self) -> float:
        """The age in seconds of the oldest item that has no answer yet; 0 if there is none."""
        with self._changed:
            both = [each for each in (self._taken, self.pool.oldest()) if each is not None]
        oldest = min(both, key=_since, default=None)
        return 0.0 if oldest is None else monotonic() - oldest.since

    @property
    def fault(self) -> DatabaseUnavailableError | None:
        """The reason why this writer cannot write, or None if it can (`runtime.writer_health`)."""
        return self.health.fault(self.oldest_seconds)

    def close(self) -> None:
        """Accept no more items, handle those that wait, then stop the writer thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join()

    def _accept(
        self,
        items: Sequence[Item],
        request: LoggedRequest | None,
        caller: str | None,
        *,
        single: bool = True,
        loop: asyncio.AbstractEventLoop | None,
        reservation: Reservation | None = None,
    ) -> Any:
        waiting = Submission(items, request, self._lose_later, single=single, loop=loop)
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            self.pool.add(caller, waiting, len(items), reservation)
            self._changed.notify()
        # For the HTTP protocol, which calls `leave` when the connection closes. Only after the item
        # was accepted, so that a refused item is never reported as lost.
        if loop is not None and request is not None:
            request.awaited_answer = waiting
        return waiting.future

    def _lose(self, waiting: Submission[Item, Answer]) -> None:
        """Queue for `record_lost` that the answers to these items did not reach their caller."""
        if waiting.is_recorded or self._record_lost is None:
            return
        waiting.is_recorded = True
        with self._changed:
            self._lost.extend(waiting.answered_items())
            self._drop_oldest_lost()
            self._changed.notify()

    def _drop_oldest_lost(self) -> None:
        """Drop the oldest lost answers beyond the limit. Call it with `_changed` held."""
        # No maxlen: it drops without a count, and `extendleft` would drop the newest.
        while len(self._lost) > _MOST_LOST:
            self._lost.popleft()
            self._dropped += 1

    # --- the methods below run in the writer thread only

    def _run(self) -> None:
        while self._has_work():
            if self._record_lost is not None and self._lost_are_due:
                # First, so that a retry of a caller whose answer was lost finds the record.
                self._write_lost(self._record_lost)
            if batch := self._take():
                self._handle_batch(batch)
                self._taken = None
        with self._changed:
            self._dropped += len(self._lost)
            self._lost.clear()
        self._log_dropped()

    def _has_work(self) -> bool:
        """Wait for work. Return False if the writer is closing and has nothing left to do."""
        with self._changed:
            while not self.pool and not self._closing:
                if self._lost_are_due:
                    return True
                self._changed.wait(self._try_lost_at - monotonic() if self._lost else None)
            return bool(self.pool) or self._lost_are_due

    @property
    def _lost_are_due(self) -> bool:
        return bool(self._lost) and self._try_lost_at <= monotonic()

    def _write_lost(self, record_lost: "RecordLost[Item, Answer]") -> None:
        """Record lost answers, in a transaction of their own; try again later if that fails."""
        with self._changed:
            lost = list(self._lost)
            self._lost.clear()
        try:
            with self._database.write(QUICK_SECONDS) as transaction:
                record_lost(transaction, lost)
        except DatabaseUnavailableError:
            self._try_lost_at = monotonic() + _LOST_AGAIN_SECONDS
            with self._changed:
                self._lost.extendleft(reversed(lost))
                self._drop_oldest_lost()
        except Exception:  # an error must not end the thread: callers wait for it
            _log.exception("%d lost answers could not be noted", len(lost))
        else:
            self._log_dropped()

    def _log_dropped(self) -> None:
        """Log once how many lost answers were dropped: when an outage ends, or at the end."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            why = "are in no record: the database was away for too long"
            _log.warning("%s: %d lost answers were dropped and %s", self.name, dropped, why)

    def _take(self) -> list[Submission[Item, Answer]]:
        """Remove and return the calls of the next batch."""
        with self._changed:
            batch = self.pool.take(self._batch_limit)
            self._taken = min(batch, key=_since, default=None)
            return batch

    def _handle_batch(self, batch: list[Submission[Item, Answer]]) -> None:
        """Commit a batch and deliver its answers, or an error to each of its calls."""
        # Log lines of this thread now name the requests of the batch (`runtime.log_context`).
        before = WORKING_FOR.set(partial(requests_of, batch))
        try:
            self._commit(batch)
        except DatabaseUnavailableError as error:
            self._report_failure(sum(len(waiting.items) for waiting in batch), error)
            for waiting in batch:
                # A copy for each: callers must not share an exception and its traceback.
                waiting.outcome = error.again()
            deliver(batch)
        except Exception as error:
            # A bug that one item triggers must not fail the others: try each call on its own.
            if len(batch) > 1:
                for waiting in batch:
                    self._handle_batch([waiting])
            else:
                _log.exception("an item could not be settled")
                batch[0].outcome = error
                deliver(batch)
        else:
            deliver(batch)
        finally:
            WORKING_FOR.reset(before)

    def _report_failure(self, items: int, error: DatabaseUnavailableError) -> None:
        advice = f": {error.advice}" if error.advice else ""
        _log.warning("%s: %d items failed: %s%s", self.name, items, error, advice)
        self.health.failed(monotonic(), error)
        if self._on_failure is not None:
            self._on_failure(error.fault)

    def _commit(self, batch: list[Submission[Item, Answer]]) -> None:
        """Handle a batch in one transaction, and again as `storage.outages.retries` says."""
        try:
            settled = retry(partial(self._attempt, batch))
        except DatabaseUnavailableError as error:
            if error.may_have_committed:  # and the callers get an error
                for waiting in batch:
                    waiting.is_recorded = False  # the record of it may be rolled back
                    self._lose(waiting)
            raise
        if batch:
            self._after_commit(batch, settled)

    def _attempt(self, batch: list[Submission[Item, Answer]]) -> int:
        """Commit a batch; return when its work was done, in nanoseconds.

        Calls whose callers have left before this are removed from the batch.
        """
        remove_who_left(batch)
        if not batch:
            return 0
        items = [item for waiting in batch for item in waiting.items]
        self.began = perf_counter_ns()
        with self._commits.write(QUICK_SECONDS) as transaction:
            share_out(batch, self._handler(transaction, items))
            if self._record_lost is not None:
                self._record_who_left(transaction, batch)
            return perf_counter_ns()

    def _record_who_left(
        self, transaction: Connection, batch: list[Submission[Item, Answer]]
    ) -> None:
        """Record, in the transaction of the batch, the answers whose callers have left."""
        left = [waiting for waiting in batch if waiting.future.done()]
        lost = [pair for waiting in left for pair in waiting.answered_items()]
        if lost and self._record_lost is not None:
            self._record_lost(transaction, lost)
        for waiting in left:
            waiting.is_recorded = True

    def _after_commit(self, batch: list[Submission[Item, Answer]], settled: int) -> None:
        committed = perf_counter_ns()
        items = sum(len(waiting.items) for waiting in batch)
        self.health.last_commit = time()
        self.health.last = Outcome(monotonic(), None, (committed - self.began) / 1e9)
        if self._on_commit is not None:
            requests = partial(requests_of, batch)
            self._on_commit(Batch(items, requests, self.began, settled, committed))
        if _log.isEnabledFor(logging.DEBUG):
            times = (settled - self.began) / 1e6, (committed - settled) / 1e6
            _log.debug("%s: %d items, %.1f ms of work, %.1f ms to commit", self.name, items, *times)
        for waiting in batch:
            if waiting.future.done():
                self._lose(waiting)
