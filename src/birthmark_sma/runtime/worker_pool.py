"""A thread pool with a bounded queue and daemon threads, for work of the web server.

`concurrent.futures.ThreadPoolExecutor` does not fit, for two reasons: its queue is unbounded, and
the interpreter waits for all its threads at exit, even if the database never answers one of them.
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
    """An executor with `threads` threads and a queue of at most `most_waiting` calls."""

    def __init__(self, threads: int, name: str, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = False
        # A call that is queued behind the threads' end marks would never be answered.
        self._lock = threading.Lock()
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
        """Queue a call and return its future. Raises PoolFullError or ShuttingDownError at once."""
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise ShuttingDownError
            if self._waiting.qsize() >= self._most_waiting:
                raise PoolFullError
            self._waiting.put(_Work(future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Accept no more calls; the threads end after the queued calls. Never waits.

        Overrides Executor's method, and ignores its arguments.
        """
        with self._lock:
            self._closed = True
            # The queue is FIFO, so each thread meets its None after all queued calls.
            for _ in self._threads:
                self._waiting.put(None)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                result = work.call()
            except BaseException as error:  # the caller gets every error, as in ThreadPoolExecutor
                work.future.set_exception(error)
            else:
                work.future.set_result(result)
            del work  # so that an idle thread does not keep the last call and its result in memory
