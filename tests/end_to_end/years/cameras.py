"""A process with several cameras of the SDK, which renew by themselves, for `world`.

The process serves a pipe: `tick` wakes the threads that renew, `settle` waits until they rest,
`picture` captures with every camera and sends all bundles that wait. Each bundle goes over the
pipe, and leaves the queue when "taken" comes back, so SIGKILL at any moment loses no picture.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2

from birthmark_sma.device import UNSEALED, Camera, Delivery, Enrolment, Renewal, start_camera
from birthmark_sma.protocol.bundle import Bundle
from tests.support import derivation_cost

TAKEN = "taken"
_SETTLE_SECONDS = 300.0


@dataclass(frozen=True)
class Cameras:
    """The cameras of one process: their folder, their serials, and what their app knows."""

    place: Path
    url: str
    serials: tuple[str, ...]
    root_fingerprints: tuple[str, ...]
    keys_per_table: int


class _Clock:
    """Waits by the wall clock for threads that renew, which each `tick` reads again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._until: dict[int, datetime] = {}
        """The end of each thread's wait."""

    def wait(self, seconds: float) -> None:
        """Return after `seconds` of the wall clock. It is read at each `tick`."""
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        me = threading.get_ident()
        with self._changed:
            self._until[me] = until
            self._changed.wait_for(lambda: datetime.now(UTC) >= until)
            del self._until[me]

    def tick(self) -> None:
        """Wake the threads whose wait is over."""
        with self._changed:
            self._changed.notify_all()

    def settle(self, threads: int) -> None:
        """Wait until each of the threads waits for a time to come."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not self._at_rest(threads):
            assert time.monotonic() < deadline, "the cameras came to no rest"
            self.tick()
            time.sleep(0.005)

    def _at_rest(self, threads: int) -> bool:
        with self._changed:
            now = datetime.now(UTC)
            return sum(until > now for until in self._until.values()) == threads


def live(pipe: Connection, cameras: Cameras) -> None:
    """Start the cameras, tell that they run, and obey the commands of the pipe until it ends."""
    derivation_cost.lower(derivation_cost.OF_CAMERAS)
    # The servers' times that a camera heard before a leap of the clock seem to be of today.
    logging.getLogger("birthmark_sma.device.clock").setLevel(logging.ERROR)
    clock = _Clock()
    limits = httpx2.Limits(max_keepalive_connections=0)
    with ExitStack() as stack:
        http = stack.enter_context(httpx2.Client(timeout=30, trust_env=False, limits=limits))
        started = [
            stack.enter_context(_start(serial, cameras, clock.wait, http, supersede=bool(n % 2)))
            for n, serial in enumerate(cameras.serials)
        ]
        pipe.send(_certificates(started))
        number = 0
        while True:
            try:
                command = pipe.recv()
            except EOFError:
                return
            match command:
                case "tick":
                    clock.tick()
                    continue
                case "settle":
                    clock.settle(len(started))
                case "picture":
                    number += 1
                    _take_pictures(started, number.to_bytes(4, "big"), pipe)
            pipe.send(_certificates(started))


def _start(
    serial: str,
    cameras: Cameras,
    wait: Callable[[float], object],
    http: httpx2.Client,
    *,
    supersede: bool,
) -> Camera:
    enrolment = Enrolment(
        cameras.url,
        serial,
        "Lasting",
        keys_per_table=cameras.keys_per_table,
        root_fingerprint=cameras.root_fingerprints,
    )
    return start_camera(
        cameras.place / serial,
        sealing=UNSEALED,
        enrolment=enrolment,
        client=http,
        renewal=Renewal(supersede=supersede, wait=wait),
    )


def _take_pictures(cameras: Sequence[Camera], picture: bytes, pipe: Connection) -> None:
    def send(bundle: Bundle) -> Delivery:
        pipe.send(bundle.to_json())
        assert pipe.recv() == TAKEN
        return Delivery.TAKEN

    for camera in cameras:
        camera.queue.put(camera.capture(camera.device_serial.encode() + picture))
    for camera in cameras:
        camera.queue.drain(send)


def _certificates(cameras: Sequence[Camera]) -> dict[str, int]:
    return {each.device_serial: each.certificate.serial_number for each in cameras}
