"""A camera's clock, and what speaks against it.

A picture that is signed by a wrong clock is rejected for ever: before its certificate begins, or
more than an hour in the future. A camera cannot set its clock, but it can know that it is wrong:

* **It is before the certificate begins**, which the authority signed.
* **It is more than an hour before the latest time that was seen**, which `clock.json` keeps. That
  time only grows, and only where two agree: a server whose answer came over TLS, and this clock. A
  server alone cannot push it into the future; with the help of a clock that is wrong already it can
  as far as the certificate's end, and no farther.
* **It is after the certificate's end.** Then it is wrong, or the camera is at its end: a server
  that agrees with the clock tells the two apart.
* **It differs by more than an hour from what servers say**, in this process and within a day. One
  server that agrees with the clock is enough, so that a server with a wrong clock of its own stops
  nobody who sends to two.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.elapsed import seconds_since_boot
from birthmark_sma.errors import DeviceStorageError
from birthmark_sma.pki.profiles import CLOCK_SKEW

FILE = "clock.json"
Clock = Callable[[], datetime]
_STEP = timedelta(hours=1)
"""The file is written anew no more often than this."""
_EVIDENCE_SECONDS = 86_400.0
_MAX_SOURCES = 16
_FIRST_YEAR, _LAST_YEAR = 1970, 9999

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Heard:
    """A server's time, and when it was heard by a clock that nobody sets."""

    time: datetime
    at: float


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
        """Go on from what the file says. The certificate `begins` and `ends`."""
        self._directory = directory
        self._held = held
        self._read = read
        self._begins = begins
        self._ends = ends
        self._seconds = seconds
        self._seen = _load(directory)
        self._heard: dict[str, _Heard] = {}
        self._told: str | None = None

    def now(self) -> datetime:
        """Return the time by this clock, in UTC."""
        return self._read().astimezone(UTC)

    def fault(self, now: datetime | None = None) -> str | None:
        """Return what is wrong with the clock, as a sentence, or None. Each change is logged."""
        found = self._fault(now or self.now())
        kind = found and found[0]
        if kind != self._told:
            self._told = kind
            if found is None:
                _log.info("The camera's clock is right again")
            else:
                _log.warning("%s Pictures that are signed now may be rejected for ever.", found[1])
        return found and found[1]

    def hear(self, time: datetime, source: str) -> None:
        """Compare the clock with the time that a server just said, over an authenticated channel.

        Never raises: what cannot be kept on disk counts for this process.
        """
        if source not in self._heard and len(self._heard) >= _MAX_SOURCES:
            return
        if not _FIRST_YEAR <= time.year < _LAST_YEAR:
            return  # no clock says so, and what is computed of it could overflow
        self._heard[source] = _Heard(time, self._seconds())
        now = self.now()
        if abs(now - time) <= CLOCK_SKEW:
            self._see(min(now, time, self._ends))
        self.fault()

    def _fault(self, now: datetime) -> tuple[str, str] | None:
        """Return the kind of fault and a sentence about it."""
        says = f"The camera's clock says {now:%Y-%m-%dT%H:%M:%SZ}"
        if now < self._begins:
            return "early", (
                f"{says}, and its certificate begins only at {self._begins:%Y-%m-%dT%H:%M:%SZ}: set"
                " the clock."
            )
        if self._seen is not None and now < self._seen - CLOCK_SKEW:
            return "back", (
                f"{says}, and it was {self._seen:%Y-%m-%dT%H:%M:%SZ} already: set the clock."
            )
        differences = self._differences(now)
        agrees = any(abs(each) <= CLOCK_SKEW for each in differences)
        if differences and not agrees:
            least = min(differences, key=abs)
            return "differs", (
                f"{says}, and by the servers' clocks it is {now - least:%Y-%m-%dT%H:%M:%SZ}: set"
                " the clock."
            )
        if now > self._ends and not agrees:
            return "late", (
                f"{says}, and its certificate ended at {self._ends:%Y-%m-%dT%H:%M:%SZ}: set the"
                " clock, or have the camera provisioned anew."
            )
        return None

    def _differences(self, now: datetime) -> list[timedelta]:
        """Return by how much the clock is ahead of each server that was heard within a day."""
        found = []
        for heard in [*self._heard.values()]:
            elapsed = self._seconds() - heard.at
            if elapsed < _EVIDENCE_SECONDS:
                found.append(now - heard.time - timedelta(seconds=elapsed))
        return found

    def _see(self, time: datetime) -> None:
        """Keep the latest time that was seen, if that is news."""
        if time < (self._seen or self._begins) + _STEP:
            return
        self._seen = time
        try:
            with self._held.in_use():
                self._directory.write(FILE, _to_json(time))
        except DeviceStorageError as error:
            _log.info("The time that was seen is not on disk: %s", error)


def _load(directory: PrivateDirectory) -> datetime | None:
    """Return the latest time that was seen, or None where no file says it."""
    text = directory.read(FILE)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        seen = datetime.fromisoformat(fields["seen"])
        if _to_json(seen) != text:
            raise ValueError
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
        _log.warning("%s is torn or altered: it begins anew", directory.path / FILE)
        return None
    return seen


def _to_json(seen: datetime) -> bytes:
    text = seen.astimezone(UTC).isoformat()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"seen": text, "sha256": digest}).encode()
