"""For which requests a thread works at the moment, so that what it logs can name them.

Context variables do not cross into other threads by themselves. What is handed to a writer takes
its request along, and the writer says for whom it works once a batch, which costs a token nothing.
"""

from collections.abc import Callable, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

LoggedRequest: TypeAlias = MutableMapping[str, Any]
"""A request as the web has it: here nobody looks into it."""

UNANSWERED = "unanswered"
"""The key in a request of the object that waits for its answer (`group_commit.Waiting`). Whoever
owns the connection tells it that the caller left."""

WORKING_FOR: ContextVar[Callable[[], Sequence[LoggedRequest]] | None] = ContextVar(
    "working_for", default=None
)
"""Tells the requests when it is called, as hardly anybody ever asks."""


def current_requests() -> Sequence[LoggedRequest]:
    """Return the requests that this thread or task works for."""
    tell = WORKING_FOR.get()
    return () if tell is None else tell()


def current_request() -> LoggedRequest | None:
    """Return the request that this thread or task works for, if it is just one."""
    origins = current_requests()
    return origins[0] if len(origins) == 1 else None
