"""A bounded pool of threads that nobody waits for at the end of the process.

`concurrent.futures.ThreadPoolExecutor` takes in any amount of work, and the interpreter waits at
its exit for all its threads, however long a database takes to answer one of them.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, ParamSpec, TypeVar

from birthmark_sma.errors import PoolFullError, ShuttingDownError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class _Work(NamedTuple):
    future: "Future[Any]"
    call: Callable[[], Any]


class WorkerPool(Executor):
    """So many threads, and at most so much work that waits for one of them."""

    def __init__(self, threads: int, name: str, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        fn: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> "Future[Result]":
        """Take work in. Raises PoolFullError, or ShuttingDownError."""
        if self._closed:
            raise ShuttingDownError
        if self._waiting.qsize() >= self._most_waiting:
            raise PoolFullError
        future: Future[Result] = Future()
        self._waiting.put(_Work(future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Take no more work in, and end each thread after the work that waits; do not wait."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                result = work.call()
            except BaseException as error:
                work.future.set_exception(error)
            else:
                work.future.set_result(result)
            del work
