"""Decide when a camera renews its certificate, in the manner of RFC 9773. PURE: no clock, no I/O.

The authority suggests a window for each certificate. The camera renews at a random time in it. The
random number is derived from a secret of the camera and its certificate, so it is the same after
each restart, nothing has to be stored, and it follows a window that moves. `renewer` calls this
module.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

ASK_SECONDS = 21_600.0
"""The pause between two requests for the window, if the authority names none."""
LONGEST_SECONDS = 86_400.0
"""The longest pause, whatever a server asks for: the window is asked for at least daily."""
SHORTEST_SECONDS = 30.0
_EARLIEST, _LATEST = 2 / 3, 5 / 6
"""The window without the authority's, as fractions of the validity."""
_LAST = 11 / 12
"""A camera renews after this fraction of the validity, whatever window the authority suggests."""
_SHARE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a certificate should be renewed (RFC 9773, section 4.2)."""

    start: datetime
    end: datetime


def default_window(begins: datetime, ends: datetime) -> Window:
    """Return the window for a certificate's validity if the authority suggests none."""
    validity = ends - begins
    return Window(begins + validity * _EARLIEST, begins + validity * _LATEST)


def parse_window(content: bytes) -> Window | None:
    """Return the window in a response, or None if it is not one (RFC 9773, section 4.2)."""
    try:
        fields = json.loads(content)["suggestedWindow"]
        start, end = (_utc(fields[name]) for name in ("start", "end"))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return Window(start, end) if start < end else None


def share_of(secret: bytes, certificate: bytes) -> float:
    """Return the camera's share of every window of a certificate: a number from 0 to 1.

    `secret` is known to the camera alone, so nobody else can predict the time.
    """
    digest = hmac.digest(secret, b"birthmark-renewal-time-v1" + certificate, hashlib.sha256)
    return int.from_bytes(digest[:_SHARE_BYTES], "big") / 256.0**_SHARE_BYTES


def renewal_time(window: Window, share: float, *, begins: datetime, ends: datetime) -> datetime:
    """Return the time at which the camera renews: its share of the window, or earlier.

    A window that is too late for the certificate's validity must not strand the camera.
    """
    return min(window.start + (window.end - window.start) * share, begins + (ends - begins) * _LAST)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step of the renewal, as the camera stores it. It is not secret.

    `certificate` is the SHA-256 of the certificate that it is for, in hex. `step_at` is the time of
    the next request by the camera's clock. `attempts` counts the requests without success.
    """

    certificate: str
    step_at: datetime
    attempts: int = 0
    window: Window | None = None

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the next step. A step that is too far away is due.

        No pause is so long. The camera's clock was ahead when it was planned.
        """
        left = (self.step_at - now).total_seconds()
        return left if 0 < left <= LONGEST_SECONDS else 0.0

    def to_json(self) -> bytes:
        """Return the content of the plan's file."""
        fields = {
            "certificate": self.certificate,
            "step_at": self.step_at.isoformat(),
            "attempts": self.attempts,
            "window": self.window and [self.window.start.isoformat(), self.window.end.isoformat()],
        }
        return json.dumps(fields).encode()


def parse_plan(content: bytes) -> Plan | None:
    """Return the plan in a file, or None if the file is damaged."""
    try:
        fields = json.loads(content)
        attempts, window = fields["attempts"], fields["window"]
        plan = Plan(
            certificate=fields["certificate"],
            step_at=_utc(fields["step_at"]),
            attempts=attempts,
            window=None if window is None else Window(*map(_utc, window)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    # A file with another meaning of one value is as damaged as a torn one.
    return plan if plan.to_json() == content and type(attempts) is int else None


def later(now: datetime, seconds: float) -> datetime:
    """Return the time after a pause in seconds, within the bounds of this module."""
    bounded = min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
    try:
        return now + timedelta(seconds=bounded)
    except OverflowError:  # a clock in the year 9999
        return now


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(UTC)
