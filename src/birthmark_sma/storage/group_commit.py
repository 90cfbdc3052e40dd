"""One writer thread, one transaction for all that waits, answers only after the commit.

The contract of this room: an item that was accepted gets exactly one answer, and an answer that is
no exception means that its transaction is durable. A full pool raises PoolFullError at once. Many
callers share one commit, which is where the speed comes from.

An item whose caller left before its transaction began is not settled. Where the caller left later,
or the commit ended in an error and may have happened, the answer is lost: `note_lost` is told, in
the same transaction where possible, else in the next one.
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
"""Does the work of a batch inside a transaction; one answer an item, in their order. An error that
stands in an item's place is raised to its caller alone, and undoes nothing."""

Answers: TypeAlias = Sequence[Answer | BirthmarkError]
"""What items that came together get: an answer or an error each, in their order."""


class Batch(NamedTuple):
    """A batch that is durable. Moments are those of `perf_counter_ns`."""

    items: int
    origins: Callable[[], Sequence[LoggedRequest]]
    """The requests that its items came with, where they came with any."""
    began: int
    settled: int
    committed: int


Note: TypeAlias = Callable[[Batch], None]
"""Is told of each batch once it is durable, in the writer thread, before the answers leave."""

NoteLost: TypeAlias = Callable[[Connection, Sequence[tuple[Item, Answer]]], None]
"""Writes down items whose answers did not reach their callers. Harmless if done twice."""

_MOST_LOST = 100_000  # in memory, until they can be written down
_LOST_AGAIN_SECONDS = 1.0
_TROUBLE_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Waiting(Generic[Item, Answer]):
    """Items that came together, and who wants their answers.

    `alone` says that the future gets the one item's answer, and not a list. `loop` is that of the
    waiting coroutine, or None where a thread waits. `origin` is the request that they came with.
    `noted` says that their answers are lost, and that this is written down. The future is done
    before the answer comes where the caller left, or was told something else meanwhile.
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
        """Say that the connection is gone on which the answer was to be sent, whole or at all."""
        if not self.future.done():
            self.future.set_exception(CallerLeftError())
        elif not self.future.cancelled() and self.future.exception() is None:
            answered = self.future.result()
            self.lose(self, [answered] if self.alone else answered)

    def resolve(self, outcome: "Answers[Answer] | Exception") -> None:
        """Give the answers, unless whoever waited has left. Runs where the future lives."""
        self.origin = None  # which leads back here
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
    """Settles items in batches. Safe to use from any thread and any event loop."""

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
        self._pooled = 0  # how many items that is; guarded by _changed
        self._closing = False  # guarded by _changed
        self._refused = 0  # how many items the full pool turned away; guarded by _changed
        self._lost: deque[tuple[Item, Answer]] = deque(maxlen=_MOST_LOST)  # guarded by _changed
        self._try_lost_at = 0.0  # the writer thread's, as is what follows
        self._failure: tuple[float, DatabaseUnavailableError] | None = None
        self.began = 0
        """The start of the transaction under way, by `perf_counter_ns`."""
        self._losing = self._lose  # made once
        self._writer = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()

    def submit(self, item: Item, origin: LoggedRequest | None = None) -> "Future[Answer]":
        """Hand in an item from a thread. Raises PoolFullError or ShuttingDownError at once.

        The future cannot be cancelled: the item is settled in any case.
        """
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()
        self._accept(Waiting((item,), future, None, origin, self._losing, alone=True))
        return future

    def submit_async(
        self, item: Item, origin: LoggedRequest | None = None
    ) -> "asyncio.Future[Answer]":
        """Hand in an item from a coroutine; the future gets its answer.

        Raises PoolFullError or ShuttingDownError at once. The future raises
        DatabaseUnavailableError where the batch failed, or the error that stood in the item's
        place. Once it is done, however that came about, the item is no longer settled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._accept(Waiting((item,), future, loop, origin, self._losing, alone=True))
        return future

    def offer_together(
        self, items: Sequence[Item], origin: LoggedRequest | None = None
    ) -> "asyncio.Future[Answers[Answer]]":
        """Hand in items that are settled in one transaction; get an answer or an error for each.

        Raises as `submit_async` does, but for the errors that stand in the items' places.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers[Answer]] = loop.create_future()
        self._accept(Waiting(items, future, loop, origin, self._losing, alone=False))
        return future

    async def submit_and_wait(self, item: Item) -> Answer:
        """Submit an item from a coroutine and wait for its answer. Raises as `submit_async`."""
        return await self.submit_async(item)

    @property
    def waiting(self) -> int:
        """How many items wait for the writer."""
        return self._pooled

    @property
    def refused(self) -> int:
        """How many items found the pool full."""
        return self._refused

    @property
    def running(self) -> bool:
        """Whether items are accepted and settled."""
        return self._writer.is_alive() and not self._closing

    @property
    def failure(self) -> DatabaseUnavailableError | None:
        """Return why the last batch failed, if it did and that was within ten seconds."""
        failure = self._failure
        if failure is None or monotonic() - failure[0] > _TROUBLE_SECONDS:
            return None
        return failure[1]

    def close(self) -> None:
        """Accept nothing more, settle everything that waits, then stop the writer."""
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
        if waiting.loop is not None and waiting.origin is not None:
            waiting.origin[UNANSWERED] = waiting

    def _lose(self, waiting: Waiting[Item, Answer], answers: "Answers[Answer]") -> None:
        """Have it written down that the answers to these items did not reach their caller."""
        if waiting.noted or self._note_lost is None:
            return
        waiting.noted = True
        with self._changed:
            for item, answer in zip(waiting.items, answers, strict=True):
                if not isinstance(answer, BirthmarkError):
                    self._lost.append((item, answer))
            self._changed.notify()

    # --- below: the writer thread

    def _run(self) -> None:
        while self._has_work():
            self._write_lost()
            if batch := self._take():
                self._settle_batch(batch)

    def _has_work(self) -> bool:
        """Wait for work. False says that there will be none."""
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
        """Return what has gathered."""
        with self._changed:
            batch: list[Waiting[Item, Answer]] = []
            taken = 0
            while self._pool and taken < self._batch_limit:
                batch.append(self._pool.popleft())
                taken += len(batch[-1].items)
            self._pooled -= taken
            return batch

    def _write_lost(self) -> None:
        """Write down which answers were lost, before anybody asks for them again."""
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
        except Exception:  # it must not end the thread: others wait for it
            _log.exception("%d lost answers could not be noted", len(lost))

    def _settle_batch(self, batch: list[Waiting[Item, Answer]]) -> None:
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
            _deliver([(waiting, error.again()) for waiting in batch])
        except Exception as error:
            # A fault in one item must not spoil what others brought: each gets its own transaction.
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
        """Settle a batch in one transaction; try again once where nothing can have been committed.

        The second try is for a connection that went stale, and for deadlocks between programs.
        Whoever has left before a try begins is left out of the batch.
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
                    committing = True
            except DatabaseUnavailableError:
                if committing:  # it may have happened, and nobody will be told
                    for waiting, _ in outcomes:
                        waiting.noted = False
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
        """Write down in their own transaction which answers nobody waits for any more."""
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
                waiting.origin = None  # which leads back to it
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
    """Give each waiting party the answers to its own items."""
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
    """Tell everybody, waking each event loop once for all of its callers."""
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
        try:
            loop.call_soon_threadsafe(_resolve, resolved)
        except RuntimeError:
            _log.warning("%d callers left before their answer came", len(resolved))


def _resolve(
    outcomes: "Sequence[tuple[Waiting[Item, Answer], Answers[Answer] | Exception]]",
) -> None:
    for waiting, outcome in outcomes:
        waiting.resolve(outcome)
