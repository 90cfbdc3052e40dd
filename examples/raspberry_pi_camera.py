"""A camera service for a Raspberry Pi: authenticates every picture that appears in a folder.

The program that takes the pictures (rpicam-still, an app, a motion detector) moves finished
pictures into the folder. This service makes a bundle of each, moves the picture to
`authenticated/`, and sends the bundles to an aggregation server when it is reachable. The power may
fail at any moment. While the clock is wrong, pictures stay in the folder.
docs/integrate/camera-python.md has the systemd unit.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import httpx2

from birthmark_sma.device import (
    AuthorityAwayError,
    BirthmarkError,
    Bundle,
    Camera,
    Delivery,
    EmptyPictureError,
    Enrolment,
    Intake,
    Later,
    QueueFullError,
    WrongClockError,
    key_file,
    start_camera,
)
from birthmark_sma.device.bundle_queue import Send

SERIAL_NUMBER = Path("/sys/firmware/devicetree/base/serial-number")
SECONDS_BETWEEN_ROUNDS = 1.0
LONGEST_WAIT_SECONDS = 3600.0
"""Limit for the wait that the authority asks for. It repeats a lost response for only 24 hours."""

log = logging.getLogger("camera")
stopping = threading.Event()


class Sender:
    """Sends bundles to the aggregation server until this program has to stop."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def __call__(self, bundle: Bundle) -> Delivery | Later:
        """Send one bundle, or return Later if the program has to stop."""
        return Later(0) if stopping.is_set() else self._intake(bundle)


class Folder:
    """The folder of finished pictures. Those with a bundle are moved to `authenticated/` in it."""

    def __init__(self, pictures: Path) -> None:
        self._pictures = pictures
        self._done = pictures / "authenticated"
        self._left_alone: set[tuple[Path, int, int]] = set()
        """Files that cannot be read or moved, with inode and change time (ns).

        They are logged once and tried again when they change.
        """

    def authenticate(self, camera: Camera) -> None:
        """Queue a bundle for every picture and move the picture to `authenticated/`.

        Raises WrongClockError if the clock is wrong, and QueueFullError. The pictures then stay.
        """
        self._done.mkdir(exist_ok=True)
        for picture in sorted(self._pictures.glob("*.jpg")):
            try:
                status = picture.lstat()
            except FileNotFoundError:  # another program has removed it meanwhile
                continue
            if (picture, status.st_ino, status.st_ctime_ns) in self._left_alone:
                continue
            try:
                if not picture.is_file():
                    raise OSError("it is no file")
                with picture.open("rb") as file:
                    bundle = camera.capture(file, refuse_wrong_clock=True)
                camera.queue.put(bundle)
                # The bundle is queued first, so that no picture is moved without one. After a power
                # failure at this line the picture gets a second bundle, and both are valid.
                picture.rename(self._place_for(picture, bundle))
                log.info("%s is authenticated", picture.name)
            except (OSError, EmptyPictureError) as error:
                self._left_alone.add((picture, status.st_ino, status.st_ctime_ns))
                log.error("%s is left alone as it is: %s", picture.name, error)

    def _place_for(self, picture: Path, bundle: Bundle) -> Path:
        """Return the path that a picture is moved to, without overwriting another picture.

        Cameras reuse names: they count from IMG_0001 again. Then the image hash is the name.
        """
        place = self._done / picture.name
        if place.exists():
            # If this path exists too, it is the same picture.
            place = self._done / f"{bundle.content.image_hash.hex()}.jpg"
        return place


def run(arguments: argparse.Namespace) -> None:
    """Start the camera when the authority is reachable, and serve until the program has to stop."""
    enrolment = Enrolment(
        arguments.authority,
        arguments.serial or SERIAL_NUMBER.read_text("ascii").strip("\0\n"),
        arguments.family,
        enrolment_key=os.environ.get("BIRTHMARK_ENROLMENT_KEY") or None,
        keys_per_table=arguments.keys_per_table,
        patience=10,
    )
    Intake(arguments.aggregator).close()  # raises an error for a wrong URL before any request
    folder = Folder(arguments.pictures)
    while not stopping.is_set():
        try:
            camera = start_camera(
                arguments.directory, sealing=key_file(arguments.key_file), enrolment=enrolment
            )
        except AuthorityAwayError as error:
            log.warning("%s", error)
            asked_for = error.retry_after or SECONDS_BETWEEN_ROUNDS
            stopping.wait(min(asked_for, LONGEST_WAIT_SECONDS))
            continue
        with camera, camera.intake(arguments.aggregator) as intake:
            log.info("This is camera %s", camera.device_serial)
            while not stopping.wait(SECONDS_BETWEEN_ROUNDS):
                one_round(camera, folder, Sender(intake))


def one_round(camera: Camera, folder: Folder, send: Send) -> None:
    """Queue bundles of new pictures, and send the waiting bundles."""
    try:
        folder.authenticate(camera)
    except WrongClockError:
        pass  # the camera has logged it, and the pictures stay in the folder
    except QueueFullError as error:  # the pictures stay in the folder
        log.warning("%s", error)
        if camera.queue.put_aside:
            log.warning("%s bundles that were refused make room", camera.queue.put_aside)
            camera.queue.discard_put_aside()
    finally:  # also if the disk is full, because sending bundles frees space
        camera.queue.drain(send)


def main() -> int:
    """Read the command line and run. Return 1 for an error, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--authority", required=True, help="URL of the manufacturer authority")
    parser.add_argument("--aggregator", required=True, help="URL that takes bundles")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of finished pictures")
    parser.add_argument("--directory", type=Path, required=True, help="what the camera keeps")
    parser.add_argument("--key-file", type=Path, required=True, help="openssl rand -hex 32")
    parser.add_argument("--serial", help="default: that of the Raspberry Pi")
    parser.add_argument("--family", default="Raspberry Pi")
    parser.add_argument("--keys-per-table", type=int, help="default: 1000, or a prototype's 100")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        run(arguments)
    except (BirthmarkError, OSError, httpx2.InvalidURL) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
