"""Bundles that wait on disk until somebody has taken them: nothing is lost, nothing goes twice.

A file a bundle, numbered in the order they came. A bundle that `put` returned for survives a power
cut. One that was acknowledged is removed, on disk, before the next is sent. A power cut between the
acknowledgement and the removal is the one case where a bundle goes out again, the very same bytes:
no sender can close that gap alone, so an aggregation server goes by the bundle's `bundle_id`.
"""

import logging
import threading
from collections.abc import Callable
from enum import Enum

from birthmark_sma.device.private_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.errors import MalformedBundleError, QueueFullError
from birthmark_sma.protocol.bundle import Bundle, parse_bundle

MAX_BUNDLES = 10_000
"""How many a queue holds unless told otherwise: about 40 MB with the usual certificates."""
_WAITING = ".json"
_REFUSED = ".refused"
_DAMAGED = ".damaged"

_log = logging.getLogger(__name__)


class Delivery(Enum):
    """What became of a bundle that was sent."""

    TAKEN = "taken"
    """The aggregation server has it, and has said so."""
    LATER = "later"
    """It could not be asked, or asks to wait. The bundle stays first in the queue."""
    REFUSED = "refused"
    """It will never take this bundle. The bundle is put aside, and the next one's turn comes."""


Send = Callable[[Bundle], Delivery]


class BundleQueue:
    """A bounded queue in a directory of its own. Threads may share it; processes may not."""

    def __init__(
        self, directory: PrivateDirectory, held: DirectoryLock, max_bundles: int = MAX_BUNDLES
    ) -> None:
        """Find what an earlier process left. `held` is the camera's. Raises DeviceStorageError."""
        self._directory = directory
        self._held = held
        self._max = max_bundles
        names = directory.names()
        self._waiting = [name for name in names if name.endswith(_WAITING)]
        self._aside = [name for name in names if name.endswith((_REFUSED, _DAMAGED))]
        self._last = max((_number(name) for name in self._waiting + self._aside), default=0)
        self._taken: set[str] = set()
        """Acknowledged, and not yet removed: the disk did not let us."""
        self._lock = threading.Lock()
        self._draining = threading.Lock()

    def __len__(self) -> int:
        """How many bundles wait."""
        return len(self._waiting)

    @property
    def put_aside(self) -> int:
        """How many bundles were refused, or were found damaged. They count against the bound."""
        return len(self._aside)

    def put(self, bundle: Bundle) -> None:
        """Add a bundle; when this returns, it is on disk.

        Raises QueueFullError, DeviceStorageError where the disk takes no more or the camera is
        closed, DeviceBusyError in a process that was forked.
        """
        with self._held.in_use(), self._lock:
            if len(self._waiting) + len(self._aside) >= self._max:
                raise QueueFullError
            # A number is used once, even where writing failed: the file may be there after all.
            self._last += 1
            name = f"{self._last:020}{_WAITING}"
            self._directory.create(name, bundle.to_json())
            self._waiting.append(name)

    def drain(self, send: Send) -> int:
        """Send what waits, oldest first, until the queue is empty or `send` says LATER.

        Returns how many were taken. What `send` raises goes through, and the bundle stays; so it
        does where `send` returns no Delivery, which is a TypeError. Raises DeviceStorageError where
        an acknowledged bundle cannot be removed, and in this process it is not sent again all the
        same; also where the camera is closed, and DeviceBusyError in a process that was forked.
        """
        taken = 0
        with self._held.in_use():
            pass  # before the lock, which a forked process may find taken for ever
        with self._draining:  # two drains at once would send the first bundle twice
            while self._waiting:
                name = self._waiting[0]
                if name not in self._taken:
                    delivery = self._deliver(name, send)
                    if delivery is Delivery.LATER:
                        break
                    if delivery is Delivery.TAKEN:
                        self._taken.add(name)
                        taken += 1
                if name in self._taken:
                    with self._held.in_use():
                        self._directory.remove(name)
                    self._taken.discard(name)
                with self._lock:
                    self._waiting.remove(name)
        return taken

    def discard_put_aside(self) -> None:
        """Remove what was refused or damaged. Raises as `put` does."""
        with self._held.in_use(), self._lock:
            while self._aside:
                self._directory.remove(self._aside[-1])
                self._aside.pop()

    def _deliver(self, name: str, send: Send) -> Delivery:
        with self._held.in_use():
            text = self._directory.read(name)
        if text is None:
            _log.warning("Somebody removed the bundle %s from the queue", name)
            return Delivery.REFUSED
        try:
            bundle = parse_bundle(text)
        except MalformedBundleError as error:
            _log.warning("The bundle %s is damaged, and is put aside: %s", name, error)
            self._put_aside(name, _DAMAGED)
            return Delivery.REFUSED
        delivery = send(bundle)
        if not isinstance(delivery, Delivery):
            raise TypeError(f"send returns a Delivery, not {type(delivery).__name__}.")
        if delivery is Delivery.REFUSED:
            self._put_aside(name, _REFUSED)
        return delivery

    def _put_aside(self, name: str, ending: str) -> None:
        aside = name.removesuffix(_WAITING) + ending
        with self._held.in_use(), self._lock:
            self._directory.rename(name, aside)
            self._aside.append(aside)


def bundle_id(bundle: Bundle) -> str:
    """Return what an aggregation server knows the bundle by, however often it is sent."""
    return bundle.bundle_id


def _number(name: str) -> int:
    digits = name.partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
