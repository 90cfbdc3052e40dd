"""Group commit: one writer thread settles all waiting items in one transaction (docs/adr/0002).

A durable commit takes milliseconds. Many callers share one commit; this makes a server fast.
Validation and provisioning each have a writer.

The contract: an accepted item gets exactly one answer, and an answer that is not an exception means
that its transaction is durable. Nothing is answered before the commit. A full pool raises
PoolFullError at once.

An item whose caller left before its transaction began is not settled. If the caller left later, or
if the commit raised an error and may have happened, the answer is lost (docs/adr/0009). Then
`note_lost` records it, in the same transaction if possible, else in the next one.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection

from birthmark_sma.errors import (
    BirthmarkError,
    CallerLeftError,
    DatabaseFault,
    DatabaseUnavailableError,
    PoolFullError,
    ShuttingDownError,
)
from birthmark_sma.runtime.log_context import UNANSWERED, WORKING_FOR, LoggedRequest
from birthmark_sma.storage.engine import Database

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Settle: TypeAlias = Callable[[Connection, Sequence[Item]], Sequence[Answer | BirthmarkError]]
"""Does the work of a batch inside a transaction. It returns one answer for each item, in the order
of the items. An error in an item's place is raised to its caller alone and rolls nothing back."""

Answers: TypeAlias = Sequence[Answer | BirthmarkError]
"""An answer or an error for each item of one call, in the order of the items."""


class Batch(NamedTuple):
    """A batch that was committed. Times are in nanoseconds of `perf_counter_ns`."""

    items: int
    origins: Callable[[], Sequence[LoggedRequest]]
    """Returns the requests to which the items belong; items without a request are left out."""
    began: int
    settled: int
    committed: int


Note: TypeAlias = Callable[[Batch], None]
"""Called for each batch after its commit and before its answers, in the writer thread."""

NoteLost: TypeAlias = Callable[[Connection, Sequence[tuple[Item, Answer]]], None]
"""Records items whose answers did not reach their callers. Must be idempotent."""

_MOST_LOST = 100_000  # lost answers kept while the database is away; then the oldest are dropped
_LOST_AGAIN_SECONDS = 1.0  # between two attempts to record lost answers
_TROUBLE_SECONDS = 10.0  # how long `failure` reports a failed batch

_log = logging.getLogger(__name__)


class Waiting(Generic[Item, Answer]):
    """The items of one call, and the future that gets their answers.

    `loop` is the event loop of the waiting coroutine, or None if a thread waits. `origin` is the
    request of the items, or None. With `alone` the future gets the answer of the single item
    instead of a list. `lose` is called with answers that cannot be delivered. `noted` is True once
    the answers are lost and this is recorded, or is about to be. If the future is done before the
    answer arrives, the caller has left or has got another response, such as a timeout.
    """

    __slots__ = ("alone", "future", "items", "loop", "lose", "noted", "origin")

    def __init__(
        self,
        items: Sequence[Item],
        future: "asyncio.Future[Any] | Future[Any]",
        loop: asyncio.AbstractEventLoop | None,
        origin: LoggedRequest | None,
        lose: "Callable[[Waiting[Item, Answer], Answers[Answer]], None]",
        *,
        alone: bool,
    ) -> None:
        self.items = items
        self.origin = origin
        self.future = future
        self.loop = loop
        self.lose = lose
        self.alone = alone
        self.noted = False

    def leave(self) -> None:
        """Handle that the caller's connection was closed before the response was sent completely.

        Without an answer yet, the future raises CallerLeftError. Otherwise the answer is lost.
        Called in the event loop of the future.
        """
        if not self.future.done():
            self.future.set_exception(CallerLeftError())
        elif not self.future.cancelled() and self.future.exception() is None:
            answered = self.future.result()
            self.lose(self, [answered] if self.alone else answered)

    def resolve(self, outcome: "Answers[Answer] | Exception") -> None:
        """Set the future's result, or lose the answers if the caller has left.

        Called in the event loop of the future, or in the writer thread if a thread waits.
        """
        self.origin = None  # breaks the reference cycle with origin[UNANSWERED]
        if self.future.done():
            if not isinstance(outcome, Exception):
                self.lose(self, outcome)
            return
        told = outcome[0] if self.alone and not isinstance(outcome, Exception) else outcome
        if isinstance(told, Exception):
            self.future.set_exception(told)
        else:
            self.future.set_result(told)


class GroupCommit(Generic[Item, Answer]):
    """A queue of items and the thread that settles them in batches.

    Safe to use from any thread and any event loop. `pool_limit` is the number of items that may
    wait: a call is refused once so many wait, so the items of the last call may exceed it.
    `batch_limit` is the number of items after which a batch takes no further call. `note_failure`
    is called with the kind of fault of each batch that failed.
    """

    def __init__(
        self,
        database: Database,
        settle: "Settle[Item, Answer]",
        *,
        name: str,
        pool_limit: int,
        batch_limit: int,
        note: Note | None = None,
        note_lost: "NoteLost[Item, Answer] | None" = None,
        note_failure: Callable[[DatabaseFault], None] | None = None,
    ) -> None:
        self._database = database
        self._name = name
        self._note = note
        self._note_lost = note_lost
        self._note_failure = note_failure
        self._work = settle
        self._pool_limit = pool_limit
        self._batch_limit = batch_limit
        self._changed = threading.Condition()
        self._pool: deque[Waiting[Item, Answer]] = deque()  # guarded by _changed
        self._pooled = 0  # number of items in _pool; guarded by _changed
        self._closing = False  # guarded by _changed
        self._refused = 0  # number of items refused by the full pool; guarded by _changed
        self._lost: deque[tuple[Item, Answer]] = deque()  # guarded by _changed
        self._dropped = 0  # lost answers that were dropped and not yet logged; guarded by _changed
        # The next three are written by the writer thread only.
        self._try_lost_at = 0.0
        self._failure: tuple[float, DatabaseUnavailableError] | None = None
        self.began = 0
        """The start of the current transaction, in nanoseconds of `perf_counter_ns`."""
        self._losing = self._lose  # one bound method for all calls instead of a new one for each
        self._writer = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()

    def submit(self, item: Item, origin: LoggedRequest | None = None) -> "Future[Answer]":
        """Submit an item from a thread; return the future of its answer.

        Raises PoolFullError or ShuttingDownError at once. The future cannot be cancelled: the item
        is settled in any case.
        """
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()  # a running future cannot be cancelled
        self._accept(Waiting((item,), future, None, origin, self._losing, alone=True))
        return future

    def submit_async(
        self, item: Item, origin: LoggedRequest | None = None
    ) -> "asyncio.Future[Answer]":
        """Submit an item from a coroutine; return the future of its answer.

        Raises PoolFullError or ShuttingDownError at once. The future raises
        DatabaseUnavailableError if the batch failed, or the error in the item's place. If the
        future is done before the item's transaction begins, such as after a cancellation, the item
        is not settled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._accept(Waiting((item,), future, loop, origin, self._losing, alone=True))
        return future

    def offer_together(
        self, items: Sequence[Item], origin: LoggedRequest | None = None
    ) -> "asyncio.Future[Answers[Answer]]":
        """Submit items that are settled in one transaction; return the future of their answers.

        The result has an answer or an error for each item. Raises as `submit_async` does, except
        that errors of single items are returned.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers[Answer]] = loop.create_future()
        self._accept(Waiting(items, future, loop, origin, self._losing, alone=False))
        return future

    @property
    def waiting(self) -> int:
        """The number of items that wait for the writer."""
        return self._pooled

    @property
    def refused(self) -> int:
        """The number of items that were refused because the pool was full."""
        return self._refused

    @property
    def running(self) -> bool:
        """True while items are accepted and settled."""
        return self._writer.is_alive() and not self._closing

    @property
    def failure(self) -> DatabaseUnavailableError | None:
        """The error of the last batch if it failed within the last 10 seconds, else None."""
        failure = self._failure
        if failure is None or monotonic() - failure[0] > _TROUBLE_SECONDS:
            return None
        return failure[1]

    def close(self) -> None:
        """Accept no more items, settle those that wait, then stop the writer thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join()

    def _accept(self, waiting: Waiting[Item, Answer]) -> None:
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            if self._pooled >= self._pool_limit:
                self._refused += len(waiting.items)
                raise PoolFullError
            self._pool.append(waiting)
            self._pooled += len(waiting.items)
            self._changed.notify()
        # For the HTTP protocol, which calls `leave` when the connection closes. Only after the item
        # was accepted, so that a refused item is never reported as lost.
        if waiting.loop is not None and waiting.origin is not None:
            waiting.origin[UNANSWERED] = waiting

    def _lose(self, waiting: Waiting[Item, Answer], answers: "Answers[Answer]") -> None:
        """Queue for `note_lost` that the answers to these items did not reach their caller.

        Items whose result is an error are left out.
        """
        if waiting.noted or self._note_lost is None:
            return
        waiting.noted = True
        with self._changed:
            for item, answer in zip(waiting.items, answers, strict=True):
                if not isinstance(answer, BirthmarkError):
                    self._lost.append((item, answer))
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
            # First, so that a retry of a caller whose answer was lost finds the record.
            self._write_lost()
            if batch := self._take():
                self._settle_batch(batch)
        with self._changed:
            self._dropped += len(self._lost)
            self._lost.clear()
        self._log_dropped()

    def _has_work(self) -> bool:
        """Wait for work. Return False if the writer is closing and has nothing left to do."""
        with self._changed:
            while not self._pool and not self._closing:
                if not self._lost:
                    self._changed.wait()
                elif (pause := self._try_lost_at - monotonic()) > 0:
                    self._changed.wait(pause)
                else:
                    return True
            return bool(self._pool) or bool(self._lost and self._try_lost_at <= monotonic())

    def _take(self) -> list[Waiting[Item, Answer]]:
        """Remove and return what waits, up to `batch_limit` items.

        The items of one call stay together, so the last call may exceed the limit.
        """
        with self._changed:
            batch: list[Waiting[Item, Answer]] = []
            taken = 0
            while self._pool and taken < self._batch_limit:
                batch.append(self._pool.popleft())
                taken += len(batch[-1].items)
            self._pooled -= taken
            return batch

    def _write_lost(self) -> None:
        """Record lost answers, in a transaction of their own; try again later if that fails."""
        if not self._lost or self._note_lost is None or self._try_lost_at > monotonic():
            return
        with self._changed:
            lost = list(self._lost)
            self._lost.clear()
        try:
            with self._database.write() as transaction:
                self._note_lost(transaction, lost)
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
            _log.warning(
                "%s: %d lost answers were dropped and are in no record: the database was away for"
                " too long",
                self._name,
                dropped,
            )

    def _settle_batch(self, batch: list[Waiting[Item, Answer]]) -> None:
        # Log lines of this thread now name the requests of the batch (`runtime.log_context`).
        before = WORKING_FOR.set(partial(_origins_of, batch))
        try:
            self._settle_and_deliver(batch)
        finally:
            WORKING_FOR.reset(before)

    def _settle_and_deliver(self, batch: list[Waiting[Item, Answer]]) -> None:
        try:
            outcomes = self._commit(batch)
        except DatabaseUnavailableError as error:
            self._failed(batch, error)
            # A copy for each: callers must not share an exception and its traceback.
            _deliver([(waiting, error.again()) for waiting in batch])
        except Exception as error:
            # A bug that one item triggers must not fail the others: try each call on its own.
            if len(batch) > 1:
                for waiting in batch:
                    self._settle_batch([waiting])
            else:
                _log.exception("an item could not be settled")
                _deliver([(batch[0], error)])
        else:
            if outcomes:
                self._failure = None
            _deliver(outcomes)

    def _failed(self, batch: list[Waiting[Item, Answer]], error: DatabaseUnavailableError) -> None:
        items = sum(len(waiting.items) for waiting in batch)
        _log.warning(
            "%s: %d items failed: %s%s",
            self._name,
            items,
            error,
            f": {error.advice}" if error.advice else "",
        )
        self._failure = (monotonic(), error)
        if self._note_failure is not None:
            self._note_failure(error.fault)

    def _commit(self, batch: list[Waiting[Item, Answer]]) -> "list[_Outcome[Item, Answer]]":
        """Settle a batch in one transaction; retry once if nothing can have been committed.

        The retry is for a stale connection and for a deadlock with another process. Items whose
        callers have left before a try begins are removed from the batch. Raises
        DatabaseUnavailableError, or any other error of the work itself.
        """
        outcomes: list[_Outcome[Item, Answer]] = []
        committing = False
        for last_try in (False, True):
            _drop_who_left(batch)
            if not batch:
                break
            items = [item for waiting in batch for item in waiting.items]
            self.began = perf_counter_ns()
            try:
                with self._database.write() as transaction:
                    outcomes = _shared_out(batch, self._work(transaction, items))
                    self._note_who_left(transaction, outcomes)
                    settled = perf_counter_ns()
                    # Last in the block: an error from here on comes from the commit itself.
                    committing = True
            except DatabaseUnavailableError:
                if committing:  # the commit may have happened, and its callers get an error
                    for waiting, _ in outcomes:
                        waiting.noted = False  # the record of it may be rolled back
                    self._lose_all(outcomes)
                if committing or last_try:
                    raise
            else:
                self._committed(batch, len(items), settled)
                self._lose_all(_who_left(outcomes))
                break
        return outcomes

    def _committed(self, batch: list[Waiting[Item, Answer]], items: int, settled: int) -> None:
        committed = perf_counter_ns()
        if self._note is not None:
            self._note(Batch(items, partial(_origins_of, batch), self.began, settled, committed))
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s: %d items, %.1f ms of work, %.1f ms to commit",
                self._name,
                items,
                (settled - self.began) / 1e6,
                (committed - settled) / 1e6,
            )

    def _note_who_left(
        self, transaction: Connection, outcomes: "Sequence[_Outcome[Item, Answer]]"
    ) -> None:
        """Record, in the transaction of the batch, the answers whose callers have left."""
        if self._note_lost is None:
            return
        left = _who_left(outcomes)
        lost = [
            (item, answer)
            for waiting, answers in left
            for item, answer in zip(waiting.items, answers, strict=True)
            if not isinstance(answer, BirthmarkError)
        ]
        if lost:
            self._note_lost(transaction, lost)
        for waiting, _ in left:
            waiting.noted = True

    def _lose_all(self, outcomes: "Sequence[_Outcome[Item, Answer]]") -> None:
        for waiting, answers in outcomes:
            self._lose(waiting, answers)


_Outcome: TypeAlias = "tuple[Waiting[Item, Answer], Answers[Answer]]"


def _drop_who_left(batch: "list[Waiting[Item, Answer]]") -> None:
    staying = [waiting for waiting in batch if not waiting.future.done()]
    if len(staying) < len(batch):
        for waiting in batch:
            if waiting.future.done():
                waiting.origin = None  # breaks the reference cycle with origin[UNANSWERED]
        batch[:] = staying


def _who_left(
    outcomes: "Sequence[tuple[Waiting[Item, Answer], Answers[Answer]]]",
) -> "list[tuple[Waiting[Item, Answer], Answers[Answer]]]":
    return [each for each in outcomes if each[0].future.done()]


def _origins_of(batch: "Sequence[Waiting[Item, Answer]]") -> list[LoggedRequest]:
    return [waiting.origin for waiting in batch if waiting.origin is not None]


def _shared_out(
    batch: "Sequence[Waiting[Item, Answer]]", answers: "Answers[Answer]"
) -> "list[tuple[Waiting[Item, Answer], Answers[Answer]]]":
    """Pair each call with the answers to its own items.

    Raises RuntimeError if there is not exactly one answer for each item.
    """
    outcomes: list[tuple[Waiting[Item, Answer], Answers[Answer]]] = []
    start = 0
    for waiting in batch:
        end = start + len(waiting.items)
        outcomes.append((waiting, answers[start:end]))
        start = end
    if len(answers) != start:
        raise RuntimeError(f"{start} items were settled with {len(answers)} answers")
    return outcomes


def _deliver(
    outcomes: "Sequence[tuple[Waiting[Item, Answer], Answers[Answer] | Exception]]",
) -> None:
    """Deliver all answers. Each event loop is woken once for all of its callers."""
    by_loop: dict[
        asyncio.AbstractEventLoop,
        list[tuple[Waiting[Item, Answer], Answers[Answer] | Exception]],
    ] = {}
    for waiting, outcome in outcomes:
        if waiting.loop is None:
            waiting.resolve(outcome)
        else:
            by_loop.setdefault(waiting.loop, []).append((waiting, outcome))
    for loop, resolved in by_loop.items():
        # A future of asyncio may only be touched in its own event loop.
        try:
            loop.call_soon_threadsafe(_resolve, resolved)
        except RuntimeError:  # the event loop is closed
            _log.warning("%d callers left before their answer came", len(resolved))


def _resolve(
    outcomes: "Sequence[tuple[Waiting[Item, Answer], Answers[Answer] | Exception]]",
) -> None:
    for waiting, outcome in outcomes:
        waiting.resolve(outcome)
