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
from typing import Generic, TypeAlias, TypeVar

from sqlalchemy import Connection

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

_log = logging.getLogger(__name__)


class _Waiting(Generic[Item, Answer]):
    """An item, and who wants its answer: a coroutine of `loop`, or a thread where that is None."""

    __slots__ = ("future", "item", "loop")

    def __init__(
        self,
        item: Item,
        future: "asyncio.Future[Answer] | Future[Answer]",
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.item = item
        self.future = future
        self.loop = loop


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
    ) -> None:
        self._database = database
        self._work = settle
        self._pool_limit = pool_limit
        self._batch_limit = batch_limit
        self._changed = threading.Condition()
        self._pool: deque[_Waiting[Item, Answer]] = deque()  # guarded by _changed
        self._closing = False  # guarded by _changed
        self._writer = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()

    def submit(self, item: Item) -> "Future[Answer]":
        """Hand in an item from a thread. Raises PoolFullError or ShuttingDownError at once.

        The future cannot be cancelled: the item is settled in any case.
        """
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()
        self._accept(_Waiting(item, future, None))
        return future

    async def settle(self, item: Item) -> Answer:
        """Hand in an item from a coroutine and wait for its answer.

        Raises PoolFullError or ShuttingDownError at once, DatabaseUnavailableError where the batch
        failed, or the error that stood in the item's place. A caller that gives up changes nothing:
        the item is settled all the same.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._accept(_Waiting(item, future, loop))
        return await future

    @property
    def waiting(self) -> int:
        """How many items wait for the writer."""
        return len(self._pool)

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
            if len(self._pool) >= self._pool_limit:
                raise PoolFullError
            self._pool.append(waiting)
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
            return [self._pool.popleft() for _ in range(min(len(self._pool), self._batch_limit))]

    def _settle_batch(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = self._commit([waiting.item for waiting in batch])
        except DatabaseUnavailableError as error:
            _deliver(batch, [DatabaseUnavailableError(*error.args) for _ in batch])
        except Exception as error:
            # A fault in one item must not spoil the others: each gets a transaction of its own.
            if len(batch) > 1:
                for waiting in batch:
                    self._settle_batch([waiting])
            else:
                _log.exception("an item could not be settled")
                _deliver(batch, [error])
        else:
            _deliver(batch, answers)

    def _commit(self, items: list[Item]) -> Sequence[Answer | BirthmarkError]:
        """Settle items in one transaction; try again once where nothing can have been committed.

        The second try is for a connection that went stale, and for deadlocks between programs.
        """
        committing = False
        try:
            with self._database.write() as transaction:
                answers = self._work(transaction, items)
                committing = True
        except DatabaseUnavailableError:
            if committing:
                raise
            with self._database.write() as transaction:
                answers = self._work(transaction, items)
        if len(answers) != len(items):
            raise RuntimeError(f"{len(items)} items were settled with {len(answers)} answers")
        return answers


def _deliver(
    batch: Sequence[_Waiting[Item, Answer]], answers: "Sequence[Answer | BaseException]"
) -> None:
    """Give everybody their answer, waking each event loop once for all of its callers."""
    by_loop: dict[
        asyncio.AbstractEventLoop,
        list[tuple[asyncio.Future[Answer] | Future[Answer], Answer | BaseException]],
    ] = {}
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.loop is None:
            _resolve([(waiting.future, answer)])
        else:
            by_loop.setdefault(waiting.loop, []).append((waiting.future, answer))
    for loop, resolved in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, resolved)
        except RuntimeError:
            _log.warning("%d callers left before their answer came", len(resolved))


def _resolve(
    resolved: "list[tuple[asyncio.Future[Answer] | Future[Answer], Answer | BaseException]]",
) -> None:
    for future, answer in resolved:
        if future.done():  # its caller gave up
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
