"""The calls of a client that wait for an outcome, and their outcome when the deadline passes.

`async_client` owns all of them, in its event loop. A repr must never show a camera token.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from birthmark_sma.client.outcome import Cause, Indeterminate, Outcome
from birthmark_sma.client.responses import TransportError
from birthmark_sma.client.retry import NOT_SENT
from birthmark_sma.protocol.camera_token import CameraToken


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait before the next attempt.

    `fault` is the reason; `until` is the loop time until which the authority asked for no requests.
    """

    fault: TransportError
    until: float

    def fault_at(self, now: float) -> TransportError:
        """Return the fault with the remaining `retry_after` in seconds."""
        left = max(0.0, self.until - now)
        return replace(self.fault, retry_after=left if self.fault.retry_after else None)


@dataclass(eq=False, slots=True)
class Call:
    """A camera token whose caller waits for the outcome."""

    camera_token: CameraToken = field(repr=False)
    future: "asyncio.Future[Outcome]"
    deadline: float
    attempts: int = 0
    request_id: str | None = None
    pause: Pause | None = None
    """The wait before its next attempt, or None while it is in flight."""
    last: TransportError | None = None
    """The result of the attempt before the present one."""

    def outcome_by_now(self, others: Iterable[Pause], now: float) -> Outcome:
        """Return the outcome of a call whose deadline has come.

        `others` are the waits of the requests in flight. They explain why this call was never sent.
        """
        if self.future.done():
            return self.future.result()
        pause = self.pause
        if pause is None and self.attempts == 0:
            # This call was never sent: the requests before it are waiting, and the longest wait is
            # the reason.
            pause = max(others, key=lambda each: each.until, default=None)
        if pause is not None:
            fault = pause.fault_at(now)
        elif self.attempts == 0:
            fault = NOT_SENT
        else:
            before = "" if self.last is None else f" The attempt before: {self.last.detail}"
            fault = TransportError(
                Cause.TIMED_OUT, f"The authority did not answer before the deadline.{before}"
            )
        return Indeterminate(
            fault.cause, fault.detail, self.attempts, fault.retry_after, self.request_id
        )
