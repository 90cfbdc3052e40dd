"""Bundles that wait on disk until somebody has taken them: nothing is lost, nothing goes twice.

A file a bundle, numbered in the order they came. A bundle that `put` returned for survives a power
cut. One that was acknowledged is removed, on disk, before the next is sent. A power cut between the
acknowledgement and the removal is the one case where a bundle goes out again, the very same bytes:
no sender can close that gap alone, so an aggregation server goes by the bundle's `bundle_id`.

A bundle that is put off keeps no other waiting: it gets a pause that grows with its attempts, and
the others go out meanwhile. Of those that are due, the bundles that were tried least go first. How
often one was tried stands in its file's name, so that a camera that is switched on for a minute at
a time also gets past it. The pauses themselves end with the process.
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
from birthmark_sma.protocol.bundle import Bundle, parse_bundle

MAX_BUNDLES = 10_000
"""How many a queue holds unless told otherwise: about 40 MB with the usual certificates."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""However long a server asks to be left alone, it is tried again once an hour."""
PUT_OFF_IN_A_ROW = 3
"""After so many the server itself is taken to be in trouble, and left alone for a while."""
_WAITING = ".json"
_REFUSED = ".refused"
_DAMAGED = ".damaged"

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class Delivery(Enum):
    """What became of a bundle that was sent."""

    TAKEN = "taken"
    """The aggregation server has it, and has said so."""
    LATER = "later"
    """It was not taken this time. It is tried again after a pause; others go out meanwhile."""
    REFUSED = "refused"
    """The server will never take this bundle. It is put aside, and the next one's turn comes."""


@dataclass(frozen=True, slots=True)
class Later:
    """Delivery.LATER from a server that asks to be left alone for `retry_after` seconds.

    Nothing is sent to it until then.
    """

    retry_after: float


Send = Callable[[Bundle], Delivery | Later]


@dataclass(order=True, slots=True)
class _Waiting:
    """A bundle on disk, with the time from which on it may be sent."""

    due: float
    attempts: int
    name: str
    """Of its file: the number, and from the first attempt on the number of attempts."""
    taken: bool = False
    """Acknowledged, and not yet removed: the disk did not let us."""

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]


class BundleQueue:
    """A bounded queue in a directory of its own. Threads may share it; processes may not."""

    def __init__(
        self,
        directory: PrivateDirectory,
        held: DirectoryLock,
        max_bundles: int = MAX_BUNDLES,
        *,
        seconds: Callable[[], float] = seconds_since_boot,
        chance: Callable[[], float] = _chance,
    ) -> None:
        """Find what an earlier process left. `held` is the camera's. Raises DeviceStorageError.

        `seconds` is a clock that never goes back; `chance` draws from 0 to 1.
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
        """Those whose time has come: who was tried less, and then who came first, goes first."""
        self._aside = [name for name in names if name.endswith((_REFUSED, _DAMAGED))]
        self._last = max((_number(name) for name in names), default=0)
        self._under_way = 0
        """1 while a bundle is out of the heap to be sent."""
        self._left_alone_until = now
        self._rounds_in_vain = 0
        self._lock = threading.Lock()
        self._draining = threading.Lock()

    def __len__(self) -> int:
        """How many bundles wait."""
        return len(self._waiting) + len(self._ready) + self._under_way

    @property
    def put_aside(self) -> int:
        """How many bundles were refused, or were found damaged. They count against the bound."""
        return len(self._aside)

    @property
    def seconds_to_next_attempt(self) -> float | None:
        """In how many seconds `drain` has something to send; 0 for now, None for an empty queue."""
        with self._lock:
            if not self._ready and not self._waiting:
                return None
            due = self._waiting[0].due if not self._ready else 0.0
            return max(0.0, max(due, self._left_alone_until) - self._seconds())

    def put_aside_files(self) -> list[Path]:
        """Return the files of bundles that were refused (`.refused`) or found damaged."""
        with self._lock:
            return [self._directory.path / name for name in self._aside]

    def put(self, bundle: Bundle) -> None:
        """Add a bundle; when this returns, it is on disk.

        Raises QueueFullError, DeviceStorageError where the disk takes no more or the camera is
        closed, DeviceBusyError in a process that was forked.
        """
        with self._held.in_use(), self._lock:
            if len(self) + len(self._aside) >= self._max:
                raise QueueFullError
            # A number is used once, even where writing failed: the file may be there after all.
            self._last += 1
            waiting = _Waiting(self._seconds(), 0, f"{self._last:020}{_WAITING}")
            self._directory.create(waiting.name, bundle.to_json())
            heapq.heappush(self._waiting, waiting)

    def drain(self, send: Send) -> int:
        """Send all bundles that are due, those that were tried least first. Return how many went.

        It ends early where `send` says `Later`, and after three in a row that were put off; then
        the server is left alone for a while, in which `drain` sends nothing. Call it as often as
        you like.

        What `send` raises goes through, and the bundle is put off; so it is where `send` returns no
        Delivery, which is a TypeError. Raises DeviceStorageError where an acknowledged bundle
        cannot be removed, and in this process it is not sent again all the same; also where the
        camera is closed, and DeviceBusyError in a process that was forked.
        """
        taken, put_off = 0, 0
        with self._held.in_use():
            pass  # before the lock, which a forked process may find taken for ever
        with self._draining:  # two drains at once would send the first bundle twice
            while (waiting := self._next_due()) is not None:
                known = waiting.taken  # and counted, when it was acknowledged
                delivery = self._settle(waiting, send)
                if isinstance(delivery, Later):
                    self._leave_alone(_bounded(delivery.retry_after), "The server asks for it")
                    break
                if delivery is not Delivery.LATER:
                    taken += delivery is Delivery.TAKEN and not known
                    put_off = self._rounds_in_vain = 0
                elif (put_off := put_off + 1) >= PUT_OFF_IN_A_ROW:
                    self._rounds_in_vain += 1
                    why = f"{put_off} bundles in a row were put off"
                    self._leave_alone(self._pause(self._rounds_in_vain), why)
                    break
        return taken

    def discard_put_aside(self) -> None:
        """Remove what was refused or damaged. Raises as `put` does."""
        with self._held.in_use(), self._lock:
            while self._aside:
                self._directory.remove(self._aside[-1])
                self._aside.pop()

    # --- one bundle

    def _next_due(self) -> _Waiting | None:
        """Take the next bundle out of the heaps, if its time has come."""
        with self._lock:
            now = self._seconds()
            if now < self._left_alone_until:
                return None
            while self._waiting and self._waiting[0].due <= now:
                due = heapq.heappop(self._waiting)
                heapq.heappush(self._ready, (due.attempts, due.name, due))
            if not self._ready:
                return None
            self._under_way = 1
            return heapq.heappop(self._ready)[2]

    def _settle(self, waiting: _Waiting, send: Send) -> Delivery | Later:
        """Send a bundle, and do on disk what that calls for; it is back in the heap if it stays."""
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
                self._put_off(waiting)  # else one that always ends so would hold up all others
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
            _log.warning("Somebody removed the bundle %s from the queue", waiting.stem)
            return Delivery.REFUSED
        try:
            bundle = parse_bundle(text)
        except MalformedBundleError as error:
            _log.warning("The bundle %s is damaged, and is put aside: %s", waiting.stem, error)
            self._put_aside(waiting, _DAMAGED)
            return Delivery.REFUSED
        delivery = send(bundle)
        if not isinstance(delivery, Delivery | Later):
            raise TypeError(f"send returns a Delivery, not {type(delivery).__name__}.")
        if delivery is Delivery.REFUSED:
            _log.info("The bundle %s is put aside", waiting.stem)
            self._put_aside(waiting, _REFUSED)
        return delivery

    def _put_aside(self, waiting: _Waiting, ending: str) -> None:
        aside = waiting.stem + ending
        with self._held.in_use(), self._lock:
            self._directory.rename(waiting.name, aside)
            self._aside.append(aside)

    def _put_off(self, waiting: _Waiting) -> None:
        """Give a bundle its next time, and note on disk how often it was tried."""
        waiting.attempts += 1
        pause = self._pause(waiting.attempts)
        waiting.due = self._seconds() + pause
        _log.info("The bundle %s is put off: the next attempt in %.0f s", waiting.stem, pause)
        name = f"{waiting.stem}.{waiting.attempts}{_WAITING}"
        try:
            with self._held.in_use():
                self._directory.rename(waiting.name, name)
            waiting.name = name
        except DeviceStorageError as error:  # the pause holds all the same, for this process
            _log.info("The attempt at the bundle %s is not noted: %s", waiting.stem, error)
            with contextlib.suppress(DeviceStorageError):
                # A rename may have happened although it was not synced.
                waiting.name = name if name in self._directory.names() else waiting.name

    # --- pauses

    def _pause(self, number: int) -> float:
        """Return the n-th pause. Half of it is chance: cameras that woke together part ways."""
        whole = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(number - 1, 30))
        return whole * (0.5 + 0.5 * self._chance())

    def _leave_alone(self, pause: float, why: str) -> None:
        self._left_alone_until = self._seconds() + pause
        _log.info("Nothing is sent for %.0f s: %s", pause, why)


def bundle_id(bundle: Bundle) -> str:
    """Return what an aggregation server knows the bundle by, however often it is sent."""
    return bundle.bundle_id


def _bounded(retry_after: float) -> float:
    """Return a wait that a server asked for, as far as it is reasonable."""
    return min(max(retry_after, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _number(name: str) -> int:
    return _digits(name.partition(".")[0])


def _attempts(name: str) -> int:
    parts = name.split(".")
    return _digits(parts[1]) if len(parts) == 3 else 0


def _digits(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
