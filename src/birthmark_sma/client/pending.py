"""Keep bundles without a verdict in memory, and validate them again later.

    pending = PendingBundles()
    ...
    match authority.validate_bundle(bundle):
        case Indeterminate() as outcome:
            pending.add(bundle, outcome)
    ...
    for bundle, outcome in pending.ask(authority):  # every second, say
        ...  # Pass, Fail, or Indeterminate because of Cause.ALREADY_SUBMITTED: it is settled

Each bundle has a pause that grows with its attempts, and is never shorter than the `retry_after` of
the authority. The queue is bounded, and in memory only. To survive a restart, store the bundles
yourself until they are settled, and add the unsettled ones again at the start.
"""

import heapq
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from birthmark_sma.client.async_client import AsyncAuthorityClient
from birthmark_sma.client.bundle_verification import VerifiedBundle, of_the_same_device
from birthmark_sma.client.outcome import Cause, Indeterminate, Outcome
from birthmark_sma.client.sync_client import AuthorityClient
from birthmark_sma.errors import TooManyPendingError
from birthmark_sma.http_requests import draw_pause
from birthmark_sma.protocol.camera_token import CameraToken

MAX_PENDING = 10_000
AT_ONCE = 500
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0

_chance = secrets.SystemRandom().random

Settled: TypeAlias = tuple[VerifiedBundle, Outcome]


@dataclass(order=True, slots=True)
class _Pending:
    """A bundle in the heap. It is ordered by due time, then by order of arrival."""

    due: float
    number: int
    attempts: int = field(compare=False)
    bundle: VerifiedBundle = field(compare=False)
    outcome: Indeterminate = field(compare=False)


class PendingBundles:
    """A bounded queue of bundles in memory. Threads and tasks may share it."""

    def __init__(
        self,
        max_bundles: int = MAX_PENDING,
        *,
        seconds: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _chance,
    ) -> None:
        """Create an empty queue.

        `seconds` is a monotonic clock. `chance` returns a random number from 0 to 1.
        """
        self._max = max_bundles
        self._seconds = seconds
        self._chance = chance
        self._last = 0
        self._heap: list[_Pending] = []
        self._known: dict[bytes, _Pending] = {}
        """All bundles by their id, including those that are being validated."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of bundles without a verdict."""
        return len(self._known)

    @property
    def seconds_to_next_attempt(self) -> float | None:
        """Return the seconds until `ask` has a bundle to send, or None if the queue is empty."""
        with self._lock:
            return max(0.0, self._heap[0].due - self._seconds()) if self._heap else None

    def bundles(self) -> list[tuple[VerifiedBundle, Indeterminate]]:
        """Return all bundles, each with the reason why there is no verdict."""
        with self._lock:
            return [(each.bundle, each.outcome) for each in self._known.values()]

    def add(self, bundle: VerifiedBundle, outcome: Indeterminate) -> None:
        """Add a bundle without a verdict. A bundle that is already in the queue is ignored.

        Raises TooManyPendingError if the queue is full, and TypeError if the outcome is a verdict.
        """
        if not isinstance(outcome, Indeterminate):
            raise TypeError(
                f"{outcome} is a verdict, so the bundle need not be validated again. Add bundles"
                " without a verdict only."
            )
        with self._lock:
            if bundle.bundle_id in self._known:
                return
            if len(self._known) >= self._max:
                raise TooManyPendingError
            self._last += 1
            pending = _Pending(0.0, self._last, 0, bundle, outcome)
            self._known[bundle.bundle_id] = pending
            self._put_off(pending, outcome)

    def ask(
        self, authority: AuthorityClient, *, at_most: int = AT_ONCE, deadline: float | None = None
    ) -> list[Settled]:
        """Validate up to `at_most` bundles that are due, and return those that are settled.

        Raises ClientMisuseError if the client is closed. No bundle is lost then.
        """
        due = self._take_due(at_most)
        outcomes: Sequence[Outcome] = ()
        try:
            if due:
                outcomes = authority.validate_many(map(_token, due), deadline=deadline)
        finally:
            # Also after an error, with no outcomes: all bundles go back into the queue.
            settled = self._settle(due, outcomes)
        return settled

    async def ask_async(
        self,
        authority: AsyncAuthorityClient,
        *,
        at_most: int = AT_ONCE,
        deadline: float | None = None,
    ) -> list[Settled]:
        """Do the same as `ask`, for asyncio."""
        due = self._take_due(at_most)
        outcomes: Sequence[Outcome] = ()
        try:
            if due:
                outcomes = await authority.validate_many(map(_token, due), deadline=deadline)
        finally:
            settled = self._settle(due, outcomes)
        return settled

    def _take_due(self, at_most: int) -> list[_Pending]:
        with self._lock:
            now = self._seconds()
            taken: list[_Pending] = []
            while self._heap and self._heap[0].due <= now and len(taken) < at_most:
                taken.append(heapq.heappop(self._heap))
            return taken

    def _settle(self, asked: Sequence[_Pending], outcomes: Sequence[Outcome]) -> list[Settled]:
        """Remove settled bundles from the queue, and reschedule the others.

        A bundle without an outcome, because the request failed, is rescheduled too.
        """
        settled: list[Settled] = []
        with self._lock:
            for pending in asked[len(outcomes) :]:
                self._put_off(pending, pending.outcome)
            for pending, found in zip(asked, outcomes, strict=False):
                outcome = of_the_same_device(pending.bundle, found)
                # ALREADY_SUBMITTED never changes: each caller gets one answer for a token.
                if (
                    isinstance(outcome, Indeterminate)
                    and outcome.cause is not Cause.ALREADY_SUBMITTED
                ):
                    self._put_off(pending, outcome)
                else:
                    del self._known[pending.bundle.bundle_id]
                    settled.append((pending.bundle, outcome))
        return settled

    def _put_off(self, pending: _Pending, outcome: Indeterminate) -> None:
        pending.outcome = outcome
        # If someone must repair something first, such as an access key, use the longest pause at
        # once.
        first = FIRST_PAUSE_SECONDS if outcome.cause.passes else LONGEST_PAUSE_SECONDS
        pause = draw_pause(
            pending.attempts, first=first, longest=LONGEST_PAUSE_SECONDS, chance=self._chance
        )
        asked_for = min(outcome.retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        pending.attempts += 1
        pending.due = self._seconds() + max(pause, asked_for)
        heapq.heappush(self._heap, pending)


def _token(pending: _Pending) -> CameraToken:
    return pending.bundle.camera_token
