"""Detect that a camera's clock is wrong.

Aggregation servers reject a picture forever if its time is before the certificate's validity, or
more than one hour in the future. A camera cannot set its clock, but it can detect these faults:

* **The time is before the certificate's validity**, which the authority signed.
* **The time is more than one hour before the latest time seen**, which `clock.json` stores. The
  stored time never decreases. It advances only when two sources agree: a server that answered over
  TLS, and this clock. A server alone therefore cannot move it into the future. Together with a
  clock that is already wrong, it can move it to the certificate's end at most.
* **The time is after the certificate's end.** Either the clock is wrong or the certificate has
  expired. A server that agrees with the clock shows that it has expired.
* **The time differs by more than one hour from the servers' times**, in this process and within
  the last day. One server that agrees with the clock is enough. A camera that sends to two servers
  therefore works even if one of them has a wrong clock.

`Camera` calls it. It must never stop a capture by itself.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.elapsed import seconds_since_boot
from birthmark_sma.errors import DeviceStorageError
from birthmark_sma.pki.profiles import CLOCK_SKEW

FILE = "clock.json"
Clock = Callable[[], datetime]
_STEP = timedelta(hours=1)
"""The minimum advance of the stored time, so that the file is rewritten at most once an hour."""
_EVIDENCE_SECONDS = 86_400.0
"""The age, in seconds, at which a server's time no longer counts."""
_MAX_SOURCES = 16
"""The largest number of servers whose time is kept."""
_FIRST_YEAR, _LAST_YEAR = 1970, 9999

_log = logging.getLogger(__name__)


class CameraClock:
    """The clock of one camera. The directory must be locked. Threads may share it."""

    def __init__(
        self,
        directory: PrivateDirectory,
        held: DirectoryLock,
        read: Clock,
        *,
        begins: datetime,
        ends: datetime,
        seconds: Callable[[], float] = seconds_since_boot,
    ) -> None:
        """Load the stored time. `begins` and `ends` are the validity of the certificate.

        `read` returns the time of the camera's clock. `seconds` is a monotonic clock.
        """
        self._directory = directory
        self._held = held
        self._read = read
        self._begins, self._ends = begins, ends
        self._seconds = seconds
        self._seen = _load(directory)
        self._heard: dict[str, tuple[datetime, float]] = {}
        """Each server's time, and the monotonic time at which it was received."""
        self._told: str | None = None

    def renewed(self, begins: datetime, ends: datetime) -> None:
        """Continue with the validity of a renewed certificate."""
        self._begins, self._ends = begins, ends
        self.fault()

    def now(self) -> datetime:
        """Return the time of this clock, in UTC."""
        return self._read().astimezone(UTC)

    def fault(self, now: datetime | None = None) -> str | None:
        """Return a sentence that describes the clock's fault, or None. Log each change."""
        found = self._fault(now or self.now())
        kind = found and found[0]
        if kind != self._told:
            self._told = kind
            if found is None:
                _log.info("The camera's clock is right again")
            else:
                _log.warning(
                    "%s Pictures that are signed now may be rejected permanently.", found[1]
                )
        return found and found[1]

    def hear(self, time: datetime, source: str) -> None:
        """Compare the clock with the time that an authenticated server just sent.

        Never raises: a time that cannot be stored on disk still counts in this process.
        """
        # Bound the memory and the work of `_differences`, however many names a caller passes.
        if source not in self._heard and len(self._heard) >= _MAX_SOURCES:
            return
        if not _FIRST_YEAR <= time.year < _LAST_YEAR:
            return  # no real clock has this year, and arithmetic with it could overflow
        self._heard[source] = time, self._seconds()
        now = self.now()
        if abs(now - time) <= CLOCK_SKEW:
            # The earlier of the two times, so that neither source alone advances the stored time.
            self._see(min(now, time, self._ends))
        self.fault()

    def _fault(self, now: datetime) -> tuple[str, str] | None:
        """Return the kind of fault and a sentence about it, or None."""
        says = f"The camera's clock says {now:%Y-%m-%dT%H:%M:%SZ}"
        if now < self._begins:
            return "early", (
                f"{says}, but its certificate is not valid before"
                f" {self._begins:%Y-%m-%dT%H:%M:%SZ}: set the clock."
            )
        if self._seen is not None and now < self._seen - CLOCK_SKEW:
            return "back", (
                f"{says}, but it showed {self._seen:%Y-%m-%dT%H:%M:%SZ} before: set the clock."
            )
        differences = self._differences(now)
        agrees = any(abs(each) <= CLOCK_SKEW for each in differences)
        if differences and not agrees:
            least = min(differences, key=abs)
            return "differs", (
                f"{says}, but the servers' clocks say {now - least:%Y-%m-%dT%H:%M:%SZ}: set"
                " the clock."
            )
        if now > self._ends and not agrees:
            return "late", (
                f"{says}, but its certificate expired at {self._ends:%Y-%m-%dT%H:%M:%SZ}: set"
                " the clock. If the clock is right, see the log of the renewal."
            )
        return None

    def _differences(self, now: datetime) -> list[timedelta]:
        """Return by how much the clock is ahead of each server heard within the last day."""
        found = []
        # Copy the values: another thread may add a server meanwhile.
        for time, at in [*self._heard.values()]:
            elapsed = self._seconds() - at
            if elapsed < _EVIDENCE_SECONDS:
                found.append(now - time - timedelta(seconds=elapsed))
        return found

    def _see(self, time: datetime) -> None:
        """Store the latest time seen, if it is at least one step later than the stored one."""
        if time < (self._seen or self._begins) + _STEP:
            return
        self._seen = time
        try:
            with self._held.in_use():
                self._directory.write(FILE, _to_json(time))
        except DeviceStorageError as error:
            _log.info("The latest time could not be stored: %s", error)


def _load(directory: PrivateDirectory) -> datetime | None:
    """Return the stored time, or None if there is none or the file is damaged."""
    text = directory.read(FILE)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        seen = datetime.fromisoformat(fields["seen"])
        if _to_json(seen) != text:
            raise ValueError
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
        _log.warning("%s is damaged or altered, so it is replaced", directory.path / FILE)
        return None
    return seen


def _to_json(seen: datetime) -> bytes:
    text = seen.astimezone(UTC).isoformat()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"seen": text, "sha256": digest}).encode()
