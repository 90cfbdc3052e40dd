"""A camera service for a Raspberry Pi: authenticates every picture that appears in a folder.

Whatever takes the pictures (rpicam-still, an app, a motion detector) moves them, finished, into the
folder. This program makes a bundle of each, moves the picture to `authenticated/`, and sends the
bundles to an aggregation server as soon as that can be reached. It can be switched off at any
moment. While the clock is wrong, pictures stay in the folder. docs/camera.md has the unit for
systemd.
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
"""However long the authority asks for: it gives a lost answer again for 24 hours."""

log = logging.getLogger("camera")
stopping = threading.Event()


class Sender:
    """Sends bundles to the aggregation server, until this program is told to stop."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def __call__(self, bundle: Bundle) -> Delivery | Later:
        """Send one bundle."""
        return Later(0) if stopping.is_set() else self._intake(bundle)


class Folder:
    """The folder of finished pictures, and `authenticated/` in it for those that have a bundle."""

    def __init__(self, pictures: Path) -> None:
        self._pictures = pictures
        self._done = pictures / "authenticated"
        self._left_alone: set[tuple[Path, int, int]] = set()
        """What could not be read or moved, as it was then: told once, and tried when it changes."""

    def authenticate(self, camera: Camera) -> None:
        """Queue a bundle for every picture, and put the picture aside.

        Raises WrongClockError where pictures have to wait until the clock is set.
        """
        self._done.mkdir(exist_ok=True)
        for picture in sorted(self._pictures.glob("*.jpg")):
            try:
                status = picture.lstat()
            except FileNotFoundError:  # somebody was faster
                continue
            if (picture, status.st_ino, status.st_ctime_ns) in self._left_alone:
                continue
            try:
                if not picture.is_file():
                    raise OSError("it is no file")
                with picture.open("rb") as file:
                    bundle = camera.capture(file, refuse_wrong_clock=True)
                camera.queue.put(bundle)
                # Cut off just here, the picture gets a second bundle at the next start. Both are
                # true.
                picture.rename(self._place_for(picture, bundle))
                log.info("%s is authenticated", picture.name)
            except (OSError, EmptyPictureError) as error:
                self._left_alone.add((picture, status.st_ino, status.st_ctime_ns))
                log.error("%s is left alone as it is: %s", picture.name, error)

    def _place_for(self, picture: Path, bundle: Bundle) -> Path:
        """Return where a picture goes: cameras count from IMG_0001 again, and lose none by it."""
        place = self._done / picture.name
        if place.exists():
            place = self._done / f"{bundle.content.image_hash.hex()}.jpg"  # else the very same
        return place


def run(arguments: argparse.Namespace) -> None:
    """Start the camera, as soon as the authority can be reached, and serve until told to stop."""
    enrolment = Enrolment(
        arguments.authority,
        arguments.serial or SERIAL_NUMBER.read_text("ascii").strip("\0\n"),
        arguments.family,
        enrolment_key=os.environ.get("BIRTHMARK_ENROLMENT_KEY") or None,
        keys_per_table=arguments.keys_per_table,
        patience=10,
    )
    Intake(arguments.aggregator).close()  # a wrong URL is told before anything is asked
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
    """Queue what is new, and send what waits."""
    try:
        folder.authenticate(camera)
    except WrongClockError:
        pass  # the camera has logged it, and the pictures stay where they are
    except QueueFullError as error:  # the pictures stay where they are meanwhile
        log.warning("%s", error)
        if camera.queue.put_aside:
            log.warning("%s bundles that were refused make room", camera.queue.put_aside)
            camera.queue.discard_put_aside()
    finally:  # also where the disk is full: it has room again once what waits is sent
        camera.queue.drain(send)


def main() -> int:
    """Read the command line, and run."""
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
