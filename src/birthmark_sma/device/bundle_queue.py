"""Queue bundles on disk until an aggregation server has acknowledged them.

Each bundle is one file, numbered in the order of arrival. A bundle for which `put` returned
survives a power cut. An acknowledged bundle is removed from the disk before the next one is sent.
If the process ends or the camera is closed between acknowledgement and removal, the bundle is sent
again, with the same bytes. A sender alone cannot close that gap, so aggregation servers deduplicate
by `bundle_id`.

A bundle that is postponed never blocks the others. It gets a pause that grows with its attempts.
Among the bundles that are due, those with the fewest attempts go first. The number of attempts is
part of the file name, so a camera that runs for one minute at a time also makes progress. The
pauses are in memory only.
"""

import contextlib
import heapq
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.elapsed import seconds_since_boot
from birthmark_sma.errors import DeviceStorageError, MalformedBundleError, QueueFullError
from birthmark_sma.http_requests import draw_pause
from birthmark_sma.protocol.bundle import Bundle, parse_bundle

MAX_BUNDLES = 10_000
"""The default capacity: about 40 MB with the usual certificates."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""The longest Retry-After that is obeyed. A server is tried again after one hour at the latest."""
PUT_OFF_IN_A_ROW = 3
"""After this many postponed bundles in a row, the queue assumes that the server has a problem.

It then sends nothing for a while.
"""
_WAITING = ".json"
_REFUSED = ".refused"
_DAMAGED = ".damaged"

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class Delivery(Enum):
    """The result of sending a bundle."""

    TAKEN = "taken"
    """The aggregation server acknowledged the bundle."""
    LATER = "later"
    """The server did not accept it this time. It is tried again after a pause.

    Other bundles are sent meanwhile.
    """
    REFUSED = "refused"
    """The server will never accept this bundle. It is set aside, and the next bundle is sent."""


@dataclass(frozen=True, slots=True)
class Later:
    """Delivery.LATER from a server that asks for a pause of `retry_after` seconds.

    The queue sends nothing to it until then.
    """

    retry_after: float


Send = Callable[[Bundle], Delivery | Later]


@dataclass(order=True, slots=True)
class _Waiting:
    """A bundle on disk, and the earliest time to send it."""

    due: float
    attempts: int
    name: str
    """The name of its file: the number and, after the first attempt, the number of attempts."""
    taken: bool = False
    """True if it is acknowledged but not yet removed, because the disk failed."""

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]


class BundleQueue:
    """A bounded queue in a directory of its own. Threads may share it; processes must not."""

    def __init__(
        self,
        directory: PrivateDirectory,
        held: DirectoryLock,
        max_bundles: int = MAX_BUNDLES,
        *,
        seconds: Callable[[], float] = seconds_since_boot,
        chance: Callable[[], float] = _chance,
    ) -> None:
        """Load the bundles that an earlier process left.

        `held` is the camera's lock. `seconds` is a monotonic clock. `chance` returns a random
        number from 0 to 1.

        Raises DeviceStorageError.
        """
        self._directory = directory
        self._held = held
        self._max = max_bundles
        self._seconds = seconds
        self._chance = chance
        names = directory.names()
        now = seconds()
        self._waiting = [
            _Waiting(now, _attempts(name), name) for name in names if name.endswith(_WAITING)
        ]
        heapq.heapify(self._waiting)
        self._ready: list[tuple[int, str, _Waiting]] = []
        """Bundles that are due, as a heap: fewest attempts first, then oldest first."""
        self._aside = [name for name in names if name.endswith((_REFUSED, _DAMAGED))]
        self._last = max((_number(name) for name in names), default=0)
        self._under_way = 0
        """1 while a bundle is outside the heaps because it is being sent, else 0."""
        self._left_alone_until = now
        self._rounds_in_vain = 0
        self._lock = threading.Lock()
        # Lock order: `_draining`, then `held.in_use()`, then `_lock`. `_lock` is never held while
        # sending.
        self._draining = threading.Lock()

    def __len__(self) -> int:
        """Return the number of waiting bundles."""
        return len(self._waiting) + len(self._ready) + self._under_way

    @property
    def put_aside(self) -> int:
        """Return the number of refused and damaged bundles. They count against the capacity."""
        return len(self._aside)

    @property
    def seconds_to_next_attempt(self) -> float | None:
        """Return the seconds until `drain` has a bundle to send, or None if the queue is empty."""
        with self._lock:
            if not self._ready and not self._waiting:
                return None
            due = self._waiting[0].due if not self._ready else 0.0
            return max(0.0, max(due, self._left_alone_until) - self._seconds())

    def put_aside_files(self) -> list[Path]:
        """Return the files of refused (`.refused`) and damaged (`.damaged`) bundles."""
        with self._lock:
            return [self._directory.path / name for name in self._aside]

    def put(self, bundle: Bundle) -> None:
        """Add a bundle. It is on disk when this returns.

        Raises QueueFullError, DeviceStorageError if the disk is full or the camera is closed, and
        DeviceBusyError in a forked process.
        """
        with self._held.in_use(), self._lock:
            if len(self) + len(self._aside) >= self._max:
                raise QueueFullError
            # Use each number once, even if writing fails: the file may exist all the same.
            self._last += 1
            waiting = _Waiting(self._seconds(), 0, f"{self._last:020}{_WAITING}")
            self._directory.create(waiting.name, bundle.to_json())
            heapq.heappush(self._waiting, waiting)

    def drain(self, send: Send) -> int:
        """Send all bundles that are due, and return the number of acknowledged ones.

        Bundles with the fewest attempts go first. `drain` stops early if `send` returns `Later`,
        and after three postponed bundles in a row; then it sends nothing for a while. You can call
        it as often as you like.

        An exception from `send` passes through, and the bundle is postponed. The same holds for the
        TypeError that is raised if `send` returns no Delivery.

        Raises DeviceStorageError if an acknowledged bundle cannot be removed; this process still
        does not send it again. Raises DeviceStorageError also if the camera is closed, and
        DeviceBusyError in a forked process.
        """
        taken, put_off = 0, 0
        with self._held.in_use():
            pass  # before `_draining`, which may be locked forever in a forked process
        with self._draining:  # two concurrent drains would send the first bundle twice
            while (waiting := self._next_due()) is not None:
                known = waiting.taken  # already counted when it was acknowledged
                delivery = self._settle(waiting, send)
                if isinstance(delivery, Later):
                    self._leave_alone(_bounded(delivery.retry_after), "The server sent Retry-After")
                    break
                if delivery is not Delivery.LATER:
                    taken += delivery is Delivery.TAKEN and not known
                    put_off = self._rounds_in_vain = 0
                elif (put_off := put_off + 1) >= PUT_OFF_IN_A_ROW:
                    self._rounds_in_vain += 1
                    why = f"{put_off} bundles in a row were postponed"
                    self._leave_alone(self._pause(self._rounds_in_vain), why)
                    break
        return taken

    def discard_put_aside(self) -> None:
        """Remove refused and damaged bundles.

        Raises DeviceStorageError if the disk fails or the camera is closed, and DeviceBusyError in
        a forked process.
        """
        with self._held.in_use(), self._lock:
            while self._aside:
                self._directory.remove(self._aside[-1])
                self._aside.pop()

    # --- one bundle

    def _next_due(self) -> _Waiting | None:
        """Take the next due bundle out of the heaps, or return None."""
        with self._lock:
            now = self._seconds()
            if now < self._left_alone_until:
                return None
            while self._waiting and self._waiting[0].due <= now:
                due = heapq.heappop(self._waiting)
                # Once due, bundles are ordered by attempts and age, and no longer by due time.
                heapq.heappush(self._ready, (due.attempts, due.name, due))
            if not self._ready:
                return None
            self._under_way = 1
            return heapq.heappop(self._ready)[2]

    def _settle(self, waiting: _Waiting, send: Send) -> Delivery | Later:
        """Send one bundle, update its file, and put it back into the heap if it stays."""
        stays = True
        try:
            delivery = self._send(waiting, send)
            if delivery is Delivery.LATER or isinstance(delivery, Later):
                self._put_off(waiting)
                return delivery
            if delivery is Delivery.TAKEN:
                waiting.taken = True
                with self._held.in_use():
                    self._directory.remove(waiting.name)
            stays = False
            return delivery
        except Exception:
            if not waiting.taken:
                self._put_off(waiting)  # without a pause, this bundle would block all others
            raise
        finally:
            with self._lock:
                self._under_way = 0
                if stays:
                    heapq.heappush(self._waiting, waiting)

    def _send(self, waiting: _Waiting, send: Send) -> Delivery | Later:
        if waiting.taken:
            return Delivery.TAKEN
        with self._held.in_use():
            text = self._directory.read(waiting.name)
        if text is None:
            _log.warning(
                "The file of bundle %s is missing, so it was removed from the queue", waiting.stem
            )
            return Delivery.REFUSED
        try:
            bundle = parse_bundle(text)
        except MalformedBundleError as error:
            _log.warning("Bundle %s is damaged, so it was set aside: %s", waiting.stem, error)
            self._put_aside(waiting, _DAMAGED)
            return Delivery.REFUSED
        delivery = send(bundle)
        # A `send` without a return value must not count as an acknowledgement.
        if not isinstance(delivery, Delivery | Later):
            raise TypeError(f"send must return a Delivery or Later, not {type(delivery).__name__}.")
        if delivery is Delivery.REFUSED:
            _log.info("The server refused bundle %s, so it was set aside", waiting.stem)
            self._put_aside(waiting, _REFUSED)
        return delivery

    def _put_aside(self, waiting: _Waiting, ending: str) -> None:
        aside = waiting.stem + ending
        with self._held.in_use(), self._lock:
            self._directory.rename(waiting.name, aside)
            self._aside.append(aside)

    def _put_off(self, waiting: _Waiting) -> None:
        """Schedule the next attempt, and record the number of attempts in the file name."""
        waiting.attempts += 1
        pause = self._pause(waiting.attempts)
        waiting.due = self._seconds() + pause
        _log.info("Bundle %s was postponed. The next attempt is in %.0f s", waiting.stem, pause)
        name = f"{waiting.stem}.{waiting.attempts}{_WAITING}"
        try:
            with self._held.in_use():
                self._directory.rename(waiting.name, name)
            waiting.name = name
        except DeviceStorageError as error:  # the pause still applies in this process
            _log.info(
                "The attempt to send bundle %s could not be recorded: %s", waiting.stem, error
            )
            with contextlib.suppress(DeviceStorageError):
                # The rename may have happened although the directory could not be synced.
                waiting.name = name if name in self._directory.names() else waiting.name

    # --- pauses

    def _pause(self, number: int) -> float:
        """Return the n-th pause in seconds, counted from 1."""
        return draw_pause(
            number - 1,
            first=FIRST_PAUSE_SECONDS,
            longest=LONGEST_PAUSE_SECONDS,
            chance=self._chance,
        )

    def _leave_alone(self, pause: float, why: str) -> None:
        self._left_alone_until = self._seconds() + pause
        _log.info("Nothing is sent for %.0f s: %s", pause, why)


def bundle_id(bundle: Bundle) -> str:
    """Return the id by which an aggregation server recognises a bundle that is sent again."""
    return bundle.bundle_id


def _bounded(retry_after: float) -> float:
    """Return the wait that a server asked for, limited to 0 to 3,600 seconds."""
    return min(max(retry_after, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _number(name: str) -> int:
    return _digits(name.partition(".")[0])


def _attempts(name: str) -> int:
    parts = name.split(".")
    return _digits(parts[1]) if len(parts) == 3 else 0


def _digits(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
