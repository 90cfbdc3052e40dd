"""Cameras with a real server, and judges from outside."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.ca.issuers import ROOT_PATH
from birthmark_sma.device import UNSEALED, Enrolment, start_camera
from birthmark_sma.errors import AuthorityAwayError, DeviceStorageError
from birthmark_sma.protocol.bundle import parse_bundle
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.programs.running import Running, new_serial, wait_until

EXAMPLE = Path(__file__).parents[3] / "examples" / "raspberry_pi_camera.py"


def openssl(*arguments: str, cwd: Path) -> str:
    """What OpenSSL says; it says yes, or this fails."""
    ran = subprocess.run(
        ["openssl", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_openssl_and_the_server_agree_on_a_bundle(running: Running, tmp_path: Path) -> None:
    """Threats 1 and 7: from the JSON alone, with nothing of this project to read it."""
    enrolment = Enrolment(running.server.url, new_serial(), "Test")
    with start_camera(tmp_path / "camera", sealing=UNSEALED, enrolment=enrolment) as camera:
        text = camera.capture(b"a picture").to_json()
    fields = json.loads(text)
    signature = fields.pop("signature")
    signed = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    (tmp_path / "signed").write_bytes(b"birthmark-bundle-v1\0" + signed)
    (tmp_path / "altered").write_bytes(b"birthmark-bundle-v1\0" + signed.replace(b"a", b"b", 1))
    (tmp_path / "signature").write_bytes(b64decode(signature))
    device, intermediate = fields["device_certificate_chain"]
    for name, each in (("device", device), ("intermediate", intermediate)):
        (tmp_path / f"{name}.der").write_bytes(b64decode(each))
        openssl(
            *("x509", "-inform", "DER", "-in", f"{name}.der", "-out", f"{name}.pem"), cwd=tmp_path
        )
    with running.client() as client:
        (tmp_path / "root.crt").write_bytes(client.get(ROOT_PATH).content)
        answer = client.post(VALIDATE, json=fields["camera_token"]).json()
    assert answer["validation_result"] == "PASS"
    openssl("x509", "-inform", "DER", "-in", "root.crt", "-out", "root.pem", cwd=tmp_path)
    openssl(
        "verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "intermediate.pem",
        "device.pem", cwd=tmp_path,
    )  # fmt: skip
    key = openssl("x509", "-in", "device.pem", "-noout", "-pubkey", cwd=tmp_path)
    (tmp_path / "key.pem").write_text(key)
    verify = ("dgst", "-sha256", "-verify", "key.pem", "-signature", "signature")
    assert openssl(*verify, "signed", cwd=tmp_path) == "Verified OK\n"
    with pytest.raises(AssertionError, match="Verification failure"):
        openssl(*verify, "altered", cwd=tmp_path)


def test_an_authority_that_limits_and_one_that_is_away(start_server: Start, tmp_path: Path) -> None:
    """429 is waited out as long as there is patience, and then the next start goes on."""
    running = start_server(SMA_RATE_PROVISION="1/minute")
    url = running.server.url
    start_camera(
        tmp_path / "first", sealing=UNSEALED, enrolment=Enrolment(url, new_serial(), "Test")
    ).close()
    enrolment = Enrolment(url, new_serial(), "Test", patience=1)
    with pytest.raises(AuthorityAwayError, match="429") as raised:
        start_camera(tmp_path / "second", sealing=UNSEALED, enrolment=enrolment)
    assert raised.value.retry_after
    assert 1 < raised.value.retry_after <= 60
    running.server.terminate()
    with pytest.raises(AuthorityAwayError, match="ConnectError"):
        start_camera(tmp_path / "second", sealing=UNSEALED, enrolment=enrolment)
    enrolment = Enrolment(start_server().server.url, enrolment.device_serial, "Test")
    with start_camera(tmp_path / "second", sealing=UNSEALED, enrolment=enrolment) as camera:
        assert camera.capture(b"picture")


# --- disks


def in_a_child(work: Callable[[], None]) -> str:
    """Run something in a forked process; return the error that it ended with, or nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode()[:4_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told


def test_a_disk_that_fills_up_at_any_point(running: Running, tmp_path: Path) -> None:
    """Threats 8 and 29: it says so, loses nothing, and goes on once there is room."""
    place = tmp_path / "camera"
    enrolment = Enrolment(running.server.url, new_serial(), "Test")

    def work(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with start_camera(place, sealing=UNSEALED, enrolment=enrolment) as camera:
            camera.queue.put(camera.capture(b"picture"))

    told = [in_a_child(partial(work, limit)) for limit in range(0, 8_000, 500)]
    full = [each for each in told if each]
    assert len(full) > 5
    assert not told[-1]
    assert all(each.startswith("DeviceStorageError") and "large" in each for each in full), full
    with start_camera(place, sealing=UNSEALED, enrolment=enrolment) as camera:
        assert len(camera.queue) == len(told) - len(full)
    assert not list(place.rglob("*.partial"))


def test_a_directory_that_cannot_be_written(running: Running, tmp_path: Path) -> None:
    """As an ordinary user, since root may write anywhere."""
    enrolment = Enrolment(running.server.url, new_serial(), "Test")
    place = tmp_path / "camera"
    start_camera(place, sealing=UNSEALED, enrolment=enrolment).close()
    owner = 65_534 if os.geteuid() == 0 else os.geteuid()
    for path in (place, *place.rglob("*")):
        os.chown(path, owner, -1)
    for path in (place / "queue", place):
        path.chmod(0o500)
    held = os.open(place, os.O_RDONLY)  # its parents are not the user's to enter

    def work() -> None:
        os.fchdir(held)
        os.setuid(owner)
        with start_camera(Path(), sealing=UNSEALED) as camera:
            camera.capture(b"picture")

    told = in_a_child(work)
    os.close(held)
    place.chmod(0o700)
    assert told.startswith("DeviceStorageError: nonces.json cannot be used: Permission"), told


def test_another_users_directory(tmp_path: Path) -> None:
    """Threat 29: what somebody else owns, somebody else can read."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    (tmp_path / "camera").mkdir(mode=0o700)
    os.chown(tmp_path / "camera", 65_534, -1)
    with pytest.raises(DeviceStorageError, match="another user"):
        start_camera(tmp_path / "camera", sealing=UNSEALED)


# --- the service


class Aggregator(ThreadingHTTPServer):
    """Takes bundles; each is refused with 503 the first time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Bundles)
        self.seen: set[str] = set()
        self.taken: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it takes them."""
        return f"http://127.0.0.1:{self.server_address[1]}/bundles"


class _Bundles(BaseHTTPRequestHandler):
    server: Aggregator

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = parse_bundle(body).bundle_id
        if known in self.server.seen:
            self.server.taken[known] = body
        self.send_response(201 if known in self.server.seen else 503)
        self.server.seen.add(known)
        answer = json.dumps({"bundle_id": known}).encode()
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def aggregator() -> Iterator[Aggregator]:
    """An aggregation server that is not always there."""
    with Aggregator() as started:
        yield started
        started.shutdown()


def test_the_raspberry_pi_service(running: Running, aggregator: Aggregator, tmp_path: Path) -> None:
    """The complete program of the guide: killed amid its work, it comes back and sends all."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("ab" * 32)
    serial = new_serial("pi")
    command = [
        sys.executable, str(EXAMPLE), "--authority", running.server.url, "--aggregator",
        aggregator.url, "--pictures", str(pictures), "--directory", str(tmp_path / "state"),
        "--key-file", str(key), "--serial", serial,
    ]  # fmt: skip

    def picture(number: int) -> None:
        (pictures / "new").write_bytes(b"\xff\xd8 picture %d" % number)
        (pictures / "new").rename(pictures / f"{number:03}.jpg")

    log = (tmp_path / "log").open("w")
    service = subprocess.Popen(command, stderr=log)
    try:
        for number in range(3):
            picture(number)
        wait_until(lambda: len(list((pictures / "authenticated").glob("*"))) == 3, 30)
        service.send_signal(signal.SIGKILL)
        service.wait(10)
        picture(3)
        service = subprocess.Popen(command, stderr=log)
        wait_until(lambda: len(aggregator.taken) >= 4, 30)
        time.sleep(0.1)
        service.send_signal(signal.SIGTERM)
        assert service.wait(10) == 0
    finally:
        service.kill()
        service.wait(10)
        log.close()
    bundles = [parse_bundle(body) for body in aggregator.taken.values()]
    assert len({bundle.content.image_hash for bundle in bundles}) == 4
    with running.client() as client:
        for bundle in bundles:
            answer = client.post(VALIDATE, json=wire(bundle.content.camera_token)).json()
            assert (answer["validation_result"], answer["device_serial"]) == ("PASS", serial)
    said = (tmp_path / "log").read_text()
    assert f"This is camera {serial}" in said
    assert "Traceback" not in said


def test_the_service_says_what_is_wrong(tmp_path: Path) -> None:
    """In a sentence, and with an exit code that systemd understands."""
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE), "--authority", "http://authority.example", "--aggregator",
         "x", "--pictures", "x", "--directory", "x", "--key-file", "x", "--serial", "x"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith(
        "Without TLS, an attacker on the network could read the camera's keys."
        " The authority's URL must begin with https://"
    )
    assert "Traceback" not in ran.stderr
