"""The items that one caller submitted together, and the delivery of the answers to the caller.

`storage.group_commit` makes a submission for each call and delivers its outcome after the commit.
The HTTP protocol calls `Submission.leave` when the connection closes. Nothing here may wait.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

from birthmark_sma.errors import BirthmarkError, CallerLeftError
from birthmark_sma.runtime.log_context import LoggedRequest

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Answers: TypeAlias = Sequence[Answer | BirthmarkError]
"""An answer or an error for each item of one call, in the order of the items."""

_MOST_IN_A_TURN = 64

_log = logging.getLogger(__name__)


class Submission(Generic[Item, Answer]):
    """The items of one call, and the future that gets their answers.

    If the future is done before the answers arrive, the caller has left or has got another
    response, such as a timeout.
    """

    __slots__ = (
        *("future", "is_recorded", "items", "loop", "lose"),
        *("outcome", "request", "since", "single"),
    )

    def __init__(
        self,
        items: Sequence[Item],
        request: LoggedRequest | None,
        lose: "Callable[[Submission[Item, Answer]], None]",
        *,
        single: bool,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.items = items
        self.single = single
        """True if the future gets the answer of the only item instead of a list."""
        self.loop = loop
        """The event loop of the waiting coroutine, or None if a thread waits."""
        self.since = monotonic()
        """The time of the call."""
        self.lose = lose
        """Called if the answers cannot be delivered."""
        # Changed in the event loop only, or in the writer thread if a thread waits.
        self.future: asyncio.Future[Any] | Future[Any]
        if loop is None:
            self.future = Future()
            self.future.set_running_or_notify_cancel()  # a running future cannot be cancelled
        else:
            self.future = loop.create_future()
        # Owned by the writer thread until it calls `resolve`, then by the future's thread.
        self.request = request
        self.outcome: Answers[Answer] | Exception = ()
        self.is_recorded = False
        """True once the answers are lost and this is recorded, or is about to be."""

    def leave(self) -> None:
        """Handle that the caller's connection was closed before the response was sent completely.

        Without an answer yet, the future raises CallerLeftError. Otherwise the answer is lost.
        Called in the event loop of the future.
        """
        if not self.future.done():
            self.future.set_exception(CallerLeftError())
        elif not self.future.cancelled() and self.future.exception() is None:
            self.lose(self)

    def resolve(self) -> None:
        """Set the future's result to the outcome, or lose the answers if the caller has left.

        Called in the event loop of the future, or in the writer thread if a thread waits.
        """
        self.request = None  # breaks the reference cycle with request.awaited_answer
        outcome = self.outcome
        if self.future.done():
            self.lose(self)
            return
        told = outcome[0] if self.single and not isinstance(outcome, Exception) else outcome
        if isinstance(told, Exception):
            self.future.set_exception(told)
        else:
            self.future.set_result(told)

    def answered_items(self) -> "Sequence[tuple[Item, Answer]]":
        """Return the items with their answers; items whose result is an error are left out."""
        if isinstance(self.outcome, Exception):
            return ()
        pairs = zip(self.items, self.outcome, strict=True)
        return [(item, answer) for item, answer in pairs if not isinstance(answer, BirthmarkError)]


def remove_who_left(batch: "list[Submission[Item, Answer]]") -> None:
    """Remove the submissions whose callers have left."""
    for submission in batch:
        if submission.future.done():
            submission.request = None  # breaks the reference cycle with request.awaited_answer
    batch[:] = [submission for submission in batch if not submission.future.done()]


def requests_of(batch: "Sequence[Submission[Item, Answer]]") -> list[LoggedRequest]:
    """Return the requests of the submissions that have one."""
    return [submission.request for submission in batch if submission.request is not None]


def share_out(batch: "Sequence[Submission[Item, Answer]]", answers: "Answers[Answer]") -> None:
    """Give each call the answers to its own items.

    Raises RuntimeError if there is not exactly one answer for each item.
    """
    start = 0
    for submission in batch:
        end = start + len(submission.items)
        submission.outcome = answers[start:end]
        start = end
    if len(answers) != start:
        raise RuntimeError(f"{start} items were settled with {len(answers)} answers")


def deliver(batch: "Sequence[Submission[Item, Answer]]") -> None:
    """Deliver the outcomes. Each event loop is woken once for all of its callers."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Submission[Item, Answer]]] = {}
    for submission in batch:
        if submission.loop is None:
            submission.resolve()
        else:
            by_loop.setdefault(submission.loop, []).append(submission)
    for loop, resolved in by_loop.items():
        # A future of asyncio may only be touched in its own event loop.
        try:
            loop.call_soon_threadsafe(_resolve, loop, resolved)
        except RuntimeError:  # the event loop is closed
            _log.warning("%d callers left before their answer came", len(resolved))


def _resolve(loop: asyncio.AbstractEventLoop, batch: "Sequence[Submission[Item, Answer]]") -> None:
    """Resolve the submissions, at most 64 in a turn of the loop.

    Each wakes a task, and most of the callers send their next request at once. With all of a batch
    in one turn, a probe waited for 1,000 requests, and then for 1,000 more.
    """
    for submission in batch[:_MOST_IN_A_TURN]:
        submission.resolve()
    if rest := batch[_MOST_IN_A_TURN:]:
        loop.call_soon(_resolve, loop, rest)
