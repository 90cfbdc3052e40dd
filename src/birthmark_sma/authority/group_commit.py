"""One writer thread, one transaction for all that waits, answers only after the commit.

The contract of this room: an item that was accepted gets exactly one answer, and an answer that is
no exception means that its transaction is durable. A full pool raises PoolFullError at once. Many
callers share one commit, which is where the speed comes from.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import perf_counter_ns
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection

from birthmark_sma.authority.origins import WORKING_FOR, Origin
from birthmark_sma.errors import (
    BirthmarkError,
    DatabaseUnavailableError,
    PoolFullError,
    ShuttingDownError,
)
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
    origins: Callable[[], Sequence[Origin]]
    """The requests that its items came with, where they came with any."""
    began: int
    settled: int
    committed: int


Note: TypeAlias = Callable[[Batch], None]
"""Is told of each batch once it is durable, in the writer thread, before the answers leave."""

_log = logging.getLogger(__name__)


class _Waiting(Generic[Item, Answer]):
    """Items that came together, and who wants their answers.

    `alone` says that the future gets the one item's answer, and not a list. `loop` is that of the
    waiting coroutine, or None where a thread waits. `origin` is the request that they came with.
    """

    __slots__ = ("alone", "future", "items", "loop", "origin")

    def __init__(
        self,
        items: Sequence[Item],
        future: "asyncio.Future[Any] | Future[Any]",
        loop: asyncio.AbstractEventLoop | None,
        origin: Origin | None,
        *,
        alone: bool,
    ) -> None:
        self.items = items
        self.origin = origin
        self.future = future
        self.loop = loop
        self.alone = alone

    def resolve(self, outcome: "Answers[Answer] | Exception") -> None:
        """Give the answers, unless whoever waited has left. Runs where the future lives."""
        if self.future.done():
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
    ) -> None:
        self._database = database
        self._name = name
        self._note = note
        self._work = settle
        self._pool_limit = pool_limit
        self._batch_limit = batch_limit
        self._changed = threading.Condition()
        self._pool: deque[_Waiting[Item, Answer]] = deque()  # guarded by _changed
        self._pooled = 0  # how many items that is; guarded by _changed
        self._closing = False  # guarded by _changed
        self._refused = 0  # how many items the full pool turned away; guarded by _changed
        self._writer = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()

    def submit(self, item: Item, origin: Origin | None = None) -> "Future[Answer]":
        """Hand in an item from a thread. Raises PoolFullError or ShuttingDownError at once.

        The future cannot be cancelled: the item is settled in any case.
        """
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()
        self._accept(_Waiting((item,), future, None, origin, alone=True))
        return future

    def offer(self, item: Item, origin: Origin | None = None) -> "asyncio.Future[Answer]":
        """Hand in an item from a coroutine; the future gets its answer.

        Raises PoolFullError or ShuttingDownError at once. The future raises
        DatabaseUnavailableError where the batch failed, or the error that stood in the item's
        place. A caller that gives up changes nothing: the item is settled all the same.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._accept(_Waiting((item,), future, loop, origin, alone=True))
        return future

    def offer_together(
        self, items: Sequence[Item], origin: Origin | None = None
    ) -> "asyncio.Future[Answers[Answer]]":
        """Hand in items that are settled in one transaction; get an answer or an error for each.

        Raises as `offer` does, but for the errors that stand in the items' places.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers[Answer]] = loop.create_future()
        self._accept(_Waiting(items, future, loop, origin, alone=False))
        return future

    async def settle(self, item: Item) -> Answer:
        """Hand in an item from a coroutine and wait for its answer. Raises as `offer` does."""
        return await self.offer(item)

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

    def close(self) -> None:
        """Accept nothing more, settle everything that waits, then stop the writer."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join()

    def _accept(self, waiting: _Waiting[Item, Answer]) -> None:
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            if self._pooled >= self._pool_limit:
                self._refused += len(waiting.items)
                raise PoolFullError
            self._pool.append(waiting)
            self._pooled += len(waiting.items)
            self._changed.notify()

    # --- below: the writer thread

    def _run(self) -> None:
        while batch := self._take():
            self._settle_batch(batch)

    def _take(self) -> list[_Waiting[Item, Answer]]:
        """Wait for items; return what has gathered, or nothing once closed and drained."""
        with self._changed:
            while not self._pool and not self._closing:
                self._changed.wait()
            batch: list[_Waiting[Item, Answer]] = []
            taken = 0
            while self._pool and taken < self._batch_limit:
                batch.append(self._pool.popleft())
                taken += len(batch[-1].items)
            self._pooled -= taken
            return batch

    def _settle_batch(self, batch: list[_Waiting[Item, Answer]]) -> None:
        before = WORKING_FOR.set(partial(_origins_of, batch))
        try:
            self._settle_and_deliver(batch)
        finally:
            WORKING_FOR.reset(before)

    def _settle_and_deliver(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = self._commit(batch)
        except DatabaseUnavailableError as error:
            _deliver([(w, DatabaseUnavailableError(str(error), error.advice)) for w in batch])
        except Exception as error:
            # A fault in one item must not spoil what others brought: each gets its own transaction.
            if len(batch) > 1:
                for waiting in batch:
                    self._settle_batch([waiting])
            else:
                _log.exception("an item could not be settled")
                _deliver([(batch[0], error)])
        else:
            _deliver(_shared_out(batch, answers))

    def _commit(self, batch: list[_Waiting[Item, Answer]]) -> Sequence[Answer | BirthmarkError]:
        """Settle items in one transaction; try again once where nothing can have been committed.

        The second try is for a connection that went stale, and for deadlocks between programs.
        """
        items = [item for waiting in batch for item in waiting.items]
        settled = 0
        began = perf_counter_ns()
        try:
            with self._database.write() as transaction:
                answers = self._work(transaction, items)
                settled = perf_counter_ns()
        except DatabaseUnavailableError:
            if settled:
                raise
            began = perf_counter_ns()
            with self._database.write() as transaction:
                answers = self._work(transaction, items)
                settled = perf_counter_ns()
        committed = perf_counter_ns()
        if self._note is not None:
            origins = partial(_origins_of, batch)
            self._note(Batch(len(items), origins, began, settled, committed))
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s: %d items, %.1f ms of work, %.1f ms to commit",
                self._name,
                len(items),
                (settled - began) / 1e6,
                (committed - settled) / 1e6,
            )
        if len(answers) != len(items):
            raise RuntimeError(f"{len(items)} items were settled with {len(answers)} answers")
        return answers


def _origins_of(batch: "Sequence[_Waiting[Item, Answer]]") -> list[Origin]:
    return [waiting.origin for waiting in batch if waiting.origin is not None]


def _shared_out(
    batch: "Sequence[_Waiting[Item, Answer]]", answers: "Answers[Answer]"
) -> "list[tuple[_Waiting[Item, Answer], Answers[Answer] | Exception]]":
    """Give each waiting party the answers to its own items."""
    outcomes: list[tuple[_Waiting[Item, Answer], Answers[Answer] | Exception]] = []
    start = 0
    for waiting in batch:
        end = start + len(waiting.items)
        outcomes.append((waiting, answers[start:end]))
        start = end
    return outcomes


def _deliver(
    outcomes: "Sequence[tuple[_Waiting[Item, Answer], Answers[Answer] | Exception]]",
) -> None:
    """Tell everybody, waking each event loop once for all of its callers."""
    by_loop: dict[
        asyncio.AbstractEventLoop,
        list[tuple[_Waiting[Item, Answer], Answers[Answer] | Exception]],
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
    outcomes: "Sequence[tuple[_Waiting[Item, Answer], Answers[Answer] | Exception]]",
) -> None:
    for waiting, outcome in outcomes:
        waiting.resolve(outcome)
