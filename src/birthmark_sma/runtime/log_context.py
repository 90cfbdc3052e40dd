"""The requests that the current thread or task works for, so that log lines can name them.

Context variables are not passed to other threads. So each item submitted to a writer thread carries
its request, and the writer sets WORKING_FOR once for each batch (`storage.group_commit`). The log
formatter (`web.logs`) and tracing read it.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Protocol


class AwaitedAnswer(Protocol):
    """The object that waits for the answer of a request (`runtime.submission`)."""

    def leave(self) -> None:
        """Handle that the caller's connection was closed before the response was sent."""


class LoggedRequest(Protocol):
    """A request as `web` represents it (`RequestContext`). Other packages only pass it on."""

    awaited_answer: AwaitedAnswer | None
    """`storage.group_commit` sets it. The HTTP protocol calls its `leave` method when the
    connection closes."""
    request_id: str
    began: int
    """The start of the request, in nanoseconds of `perf_counter_ns`."""


WORKING_FOR: ContextVar[Callable[[], Sequence[LoggedRequest]] | None] = ContextVar(
    "working_for", default=None
)
"""A function that returns the requests. It is called only when a line is logged, which is rare."""


def current_requests() -> Sequence[LoggedRequest]:
    """Return the requests that this thread or task works for."""
    tell = WORKING_FOR.get()
    return () if tell is None else tell()


def current_request() -> LoggedRequest | None:
    """Return the request that this thread or task works for; None if there is not exactly one."""
    origins = current_requests()
    return origins[0] if len(origins) == 1 else None
