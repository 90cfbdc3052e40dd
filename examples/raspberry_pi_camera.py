"""A camera service for a Raspberry Pi: authenticates every picture that appears in a folder.

Whatever takes the pictures (rpicam-still, an app, a motion detector) moves them, finished, into the
folder. This program makes a bundle of each, moves the picture to `authenticated/`, and sends the
bundles to an aggregation server as soon as that can be reached. It can be switched off at any
moment. docs/camera.md has the unit for systemd.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import httpx2

from birthmark_sma.device import (
    Camera,
    Delivery,
    Enrolment,
    bounded_post,
    bundle_id,
    key_file,
    start_camera,
)
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    EmptyPictureError,
    QueueFullError,
)
from birthmark_sma.protocol.bundle import Bundle

SERIAL_NUMBER = Path("/sys/firmware/devicetree/base/serial-number")
SECONDS_BETWEEN_ROUNDS = 1.0
LONGEST_WAIT_SECONDS = 3600.0
"""However long the authority asks for: it gives a lost answer again for 24 hours."""
ANSWER_SECONDS = 30.0
MAX_ANSWER_BYTES = 65_536

log = logging.getLogger("camera")
stopping = threading.Event()


class Aggregator:
    """The aggregation server: takes bundles at a URL of its own.

    Whoever answers with a bundle's id has it: `{"bundle_id": "..."}`. Any other 200 is a login
    page's, or that of a server at which the URL is wrong, and the bundle stays in the queue.
    """

    def __init__(self, url: str) -> None:
        place = httpx2.URL(url)
        if place.scheme != "https" and not (place.scheme == "http" and is_this_machine(place.host)):
            raise ConfigurationError(
                "The aggregation server's URL begins with https://, as anybody could say there that"
                " a bundle was taken; http:// is for this very machine."
            )
        self._url = place
        self._http = httpx2.Client(timeout=ANSWER_SECONDS)

    def send(self, bundle: Bundle) -> Delivery:
        """Send one bundle. Its id lets the server see that it has it already."""
        if stopping.is_set():
            return Delivery.LATER
        identity = bundle_id(bundle)
        try:
            answer = bounded_post(
                self._http,
                self._url,
                bundle.to_json(),
                {"Content-Type": "application/json", "Idempotency-Key": identity},
                seconds=ANSWER_SECONDS,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except httpx2.HTTPError as error:
            log.info("The aggregation server is away (%s)", type(error).__name__)
            return Delivery.LATER
        if httpx2.codes.is_success(answer.status) and named_in(answer.content) == identity:
            return Delivery.TAKEN
        if answer.status in {400, 413, 422}:
            log.error("The aggregation server refuses a bundle: %s", answer.status)
            return Delivery.REFUSED
        log.info("The aggregation server answers with %s", answer.status)
        return Delivery.LATER


def is_this_machine(host: str) -> bool:
    """Say whether what is sent to a host stays here."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def named_in(content: bytes) -> object:
    """Return the bundle id in an answer, if it is one."""
    try:
        return json.loads(content)["bundle_id"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class Folder:
    """The folder of finished pictures, and `authenticated/` in it for those that have a bundle."""

    def __init__(self, pictures: Path) -> None:
        self._pictures = pictures
        self._done = pictures / "authenticated"
        self._left_alone: set[tuple[Path, int, int]] = set()
        """What could not be read or moved, as it was then: told once, and tried when it changes."""

    def authenticate(self, camera: Camera) -> None:
        """Queue a bundle for every picture, and put the picture aside."""
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
                    bundle = camera.capture(file)
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
    aggregator = Aggregator(arguments.aggregator)
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
        with camera:
            log.info("This is camera %s", camera.device_serial)
            if camera.certificate_expired:
                log.warning("The certificate's time is over, or the clock is wrong")
            while not stopping.wait(SECONDS_BETWEEN_ROUNDS):
                one_round(camera, folder, aggregator.send)


def one_round(camera: Camera, folder: Folder, send: Callable[[Bundle], Delivery]) -> None:
    """Queue what is new, and send what waits."""
    try:
        folder.authenticate(camera)
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
