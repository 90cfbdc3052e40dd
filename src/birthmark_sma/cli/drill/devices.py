"""The simulated devices of a drill: provision them, and let them renew when their windows say so.

`run` calls it. The devices run the real code of `birthmark_sma.device` over HTTP. Time is
compressed: a device asks for its window 1/28 as often as the order lasts, as a device in the field
asks every 6 hours during an order of 7 days.
"""

import heapq
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from birthmark_sma.device import Enrolment, Renewal
from birthmark_sma.simulation.fleet import PlayedCamera, provision

ASKS = 28
"""The number of times that a device asks for its window during an order."""
_AT_ONCE = 8  # devices that send a request at the same time
_QUEUE = 1  # bundles; a drill sends them itself
_LATE_SECONDS = 2.0
"""The time after the order's time at which an offline device comes back."""
_SHORT_SECONDS = 3_600.0
"""A device that has nothing left to do pauses for longer."""
_chance = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device to provision."""

    device_serial: str
    device_family: str
    app_version: str


@dataclass(slots=True, eq=False)
class DrillDevice:
    """A device of the drill. Two are equal if they are the same object, so a set can hold them.

    An offline device takes no pictures and renews only when the order's time is over. `renewed_at`
    is the Unix time of its renewal, by the clock of this process.
    """

    new: NewDevice
    played: PlayedCamera
    first_serial: int
    is_offline: bool = False
    renewed_at: float | None = None
    seconds: float = 0.0
    """The duration of the step that renewed the certificate."""

    @property
    def certificate_serial(self) -> str:
        """The serial number of the certificate that the device was provisioned with, in hex."""
        return f"{self.first_serial:x}"

    @property
    def tables(self) -> set[int]:
        """The ids of the device's key tables."""
        return set(map(int, self.played.identity.table_keys))


@dataclass(slots=True)
class Answers:
    """Counts the responses that the devices get, by status. Threads share it."""

    by_status: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, response: httpx2.Response) -> None:
        """Count a response. It is an event hook of the HTTP client."""
        with self._lock:
            status = response.status_code
            self.by_status[status] = self.by_status.get(status, 0) + 1


def provision_devices(
    url: str,
    devices: Sequence[NewDevice],
    directory: Path,
    *,
    keys_per_table: int,
    client: httpx2.Client,
    progress: Callable[[int, int | None], None],
) -> list[DrillDevice]:
    """Provision devices, each with a state directory of its own, and return them in this order.

    Raises the errors of `start_camera`.
    """
    made, lock = 0, threading.Lock()

    def one_more() -> None:
        nonlocal made
        with lock:
            made += 1
            progress(made, len(devices))

    cameras = provision(
        [
            Enrolment(
                url,
                each.device_serial,
                each.device_family,
                app_version=each.app_version,
                keys_per_table=keys_per_table,
            )
            for each in devices
        ],
        [_now] * len(devices),
        directory,
        max_bundles=_QUEUE,
        client=client,
        done=one_more,
        renewal=Renewal(automatic=False, supersede=True),
    )
    return [
        DrillDevice(new, played, played.camera.certificate.serial_number)
        for new, played in zip(devices, cameras, strict=True)
    ]


def _now() -> datetime:
    return datetime.now(UTC)


def renew_all(
    devices: Sequence[DrillDevice],
    seconds: float,
    *,
    limit: float,
    progress: Callable[[int, int | None], None],
    stop: threading.Event,
) -> None:
    """Let the devices ask for their windows and renew, until all have renewed.

    `seconds` is the time of the order. After `limit` seconds, or when `stop` is set, the rest stays
    as it is. Offline devices begin after the order's time.
    """
    begun = time.monotonic()

    def first_step(device: DrillDevice) -> float:
        asleep = seconds + _LATE_SECONDS if device.is_offline else 0.0
        return begun + asleep + seconds / ASKS * _chance()

    due = [(first_step(each), n) for n, each in enumerate(devices)]
    heapq.heapify(due)
    lock = threading.Condition()
    left = len(devices)

    def work() -> None:
        nonlocal left
        while not stop.is_set():
            with lock:
                now = time.monotonic()
                if not left or now > begun + limit:
                    lock.notify_all()
                    return
                if not due or due[0][0] > now:
                    lock.wait(min(0.2, due[0][0] - now) if due else 0.2)
                    continue
                _, n = heapq.heappop(due)
            pause = _step(devices[n])
            with lock:
                if pause is None:
                    left -= 1
                    progress(len(devices) - left, len(devices))
                else:
                    heapq.heappush(due, (time.monotonic() + pause, n))
                lock.notify_all()

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="renewal") as threads:
        for each in [threads.submit(work) for _ in range(_AT_ONCE)]:
            each.result()


def _step(device: DrillDevice) -> float | None:
    """Do what is due for a device. Return the pause until the next step, or None if it is done.

    After the renewal the old certificate may still have to be superseded: then the pause is short.
    """
    before = time.monotonic()
    pause = device.played.camera.renew_if_due()
    is_new = device.played.camera.certificate.serial_number != device.first_serial
    if is_new and device.renewed_at is None:
        device.renewed_at = time.time()
        device.seconds = time.monotonic() - before
    if is_new and (pause is None or pause > _SHORT_SECONDS):
        return None
    return pause or 0.0
