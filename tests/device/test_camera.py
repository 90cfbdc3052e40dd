"""A camera from its first start: what it captures, and what it refuses to go on with."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.device import (
    UNSEALED,
    Camera,
    Delivery,
    Enrolment,
    passphrase,
    renew_nonces,
    start_camera,
    state,
    state_directory,
)
from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.errors import (
    ConfigurationError,
    DamagedDeviceStateError,
    DeviceBusyError,
    DeviceSecretError,
    DeviceStorageError,
    EmptyPictureError,
    OtherDeviceError,
    ProvisioningError,
)
from birthmark_sma.protocol.bundle import parse_bundle
from birthmark_sma.protocol.bundle_signature import verify_signature
from birthmark_sma.protocol.camera_token import open_camera_token
from birthmark_sma.protocol.key_derivation import derive_key
from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES
from birthmark_sma.protocol.verdict import Verdict
from tests.device.conftest import StartCamera
from tests.support.authorities import KEYS_PER_TABLE, new_authority, small_settings
from tests.support.in_process import InProcess
from tests.support.programs.running import new_serial, wait_until

PICTURE = b"\xff\xd8 a picture"


def test_a_bundle_holds_what_an_aggregation_server_needs(start: StartCamera) -> None:
    camera = start(clock=lambda: datetime(2026, 5, 4, 3, 2, 1, 234567, UTC))
    bundle = camera.capture(PICTURE)
    assert bundle.content.image_hash == hashlib.sha256(PICTURE).digest()
    assert bundle.content.to_dict()["captured_at"] == "2026-05-04T03:02:01.234567Z"
    assert parse_bundle(bundle.to_json()) == bundle
    verify_signature(bundle, camera.certificate.public_key())


def test_the_authority_says_pass(start: StartCamera, authority: Authority) -> None:
    """Threat 7: what comes back when a camera is provisioned is enough to make good tokens."""
    camera = start()
    tables, indices = set(), set()
    for _ in range(40):
        token = camera.capture(PICTURE).content.camera_token
        validation = authority.validator.submit(token, Caller("192.0.2.7")).result(30)
        assert validation.verdict is Verdict.PASS
        assert validation.device_serial == camera.device_serial
        tables.add(token.table_id)
        indices.add(token.key_index)
    assert len(tables) == 3
    assert len(indices) > 8
    assert indices <= set(range(KEYS_PER_TABLE))


def test_a_prototypes_authority_says_pass(tmp_path: Path) -> None:
    """Threat 14: to a camera that was told nothing of its 10 tables of 100 keys."""
    sizes = asdict(PROTOTYPE_SIZES)
    (tmp_path / "authority").mkdir()
    with new_authority(small_settings(tmp_path / "authority", None, **sizes)) as prototype:
        enrolment = Enrolment("http://localhost", new_serial(), "Test")
        with start_camera(
            tmp_path / "camera", sealing=UNSEALED, enrolment=enrolment, client=InProcess(prototype)
        ) as camera:
            for _ in range(30):
                token = camera.capture(PICTURE).content.camera_token
                validation = prototype.validator.submit(token, Caller("192.0.2.7")).result(30)
                assert validation.verdict is Verdict.PASS


def test_a_file_and_its_bytes_are_one_picture(start: StartCamera) -> None:
    camera = start()
    large = os.urandom(3_000_000)
    first, second = camera.capture(large), camera.capture(io.BytesIO(large))
    assert first.content.image_hash == second.content.image_hash
    assert first.content.camera_token != second.content.camera_token


def test_a_file_is_hashed_from_its_beginning(start: StartCamera, tmp_path: Path) -> None:
    """Whoever has just written it, or looked at its first bytes, has not shortened the picture."""
    camera = start()
    whole = hashlib.sha256(PICTURE).digest()
    with (tmp_path / "picture.jpg").open("w+b") as file:
        file.write(PICTURE)
        assert camera.capture(file).content.image_hash == whole
        file.seek(2)
        assert camera.capture(file).content.image_hash == whole
    reading, writing = os.pipe()
    os.write(writing, PICTURE)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert camera.capture(pipe).content.image_hash == whole


def test_nothing_is_no_picture(start: StartCamera, tmp_path: Path) -> None:
    """A file that is made and not yet written: its hash is that of every other such file."""
    camera = start()
    cases: list[bytes | BinaryIO] = [b"", io.BytesIO()]
    for empty in cases:
        with pytest.raises(EmptyPictureError):
            camera.capture(empty)


def test_the_same_camera_at_every_start(start: StartCamera, authority: Authority) -> None:
    first = start()
    before = first.certificate
    first.close()
    asked = InProcess(authority)
    assert start(client=asked).certificate == before
    assert asked.requests == []


def test_without_an_enrolment_a_provisioned_camera_starts(start: StartCamera, place: Path) -> None:
    start().close()
    with start_camera(place, sealing=UNSEALED) as camera:
        assert camera.capture(PICTURE)


def test_a_new_camera_needs_an_enrolment(place: Path) -> None:
    with pytest.raises(ProvisioningError, match="not provisioned yet"):
        start_camera(place, sealing=UNSEALED)


@pytest.mark.parametrize(
    "now",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2106, 2, 7, 6, 28, 15, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=-7))),
    ],
    ids=["no battery", "far ahead", "another zone"],
)
def test_a_wrong_clock_is_no_reason_to_fail(start: StartCamera, now: datetime) -> None:
    """Whatever the clock says, a camera is provisioned, captures, and says what it believes."""
    camera = start(clock=lambda: now)
    assert camera.capture(PICTURE).content.captured_at == now
    assert camera.certificate_expired == (now.year == 2106)


def test_two_processes_cannot_have_one_camera(start: StartCamera, place: Path) -> None:
    camera = start()
    program = (
        "import sys\nfrom pathlib import Path\nfrom birthmark_sma.device import *\n"
        "start_camera(Path(sys.argv[1]), sealing=UNSEALED)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(place)], capture_output=True, text=True, check=False
    )
    assert "DeviceBusyError: Another process uses" in ran.stderr
    camera.close()
    assert subprocess.run([sys.executable, "-c", program, str(place)], check=False).returncode == 0


def test_a_second_start_leaves_what_the_first_is_writing(start: StartCamera, place: Path) -> None:
    start()
    being_written = place / ".nonces.json.0123.partial"
    being_written.touch(0o600)
    with pytest.raises(DeviceBusyError):
        start()
    assert being_written.exists()


def test_what_was_left_unfinished_is_cleared_away(start: StartCamera, place: Path) -> None:
    start().close()
    left = [place / ".camera.json.ab.partial", place / "queue" / ".1.json.cd.partial"]
    for path in left:
        path.touch(0o600)
    start()
    assert not any(path.exists() for path in left)


def test_a_forked_process_cannot_capture(start: StartCamera) -> None:
    """It would count from the same number."""
    camera = start()
    child = os.fork()
    if child == 0:
        try:
            camera.capture(PICTURE)
        except DeviceBusyError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_closed_camera_captures_nothing(start: StartCamera) -> None:
    camera = start()
    camera.close()
    camera.close()
    with pytest.raises(DeviceStorageError, match="closed"):
        camera.capture(PICTURE)


def is_closed(camera: Camera) -> bool:
    try:
        camera.queue.discard_put_aside()
    except DeviceStorageError:
        return True
    return False


def test_closing_waits_for_what_is_being_written(
    start: StartCamera, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process counts from the file, so the file must have its last number."""
    camera = start()
    entered, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        entered.set()
        assert go_on.wait(10)
        fsync(descriptor)

    with monkeypatch.context() as disk, ThreadPoolExecutor(2) as pool:
        disk.setattr(os, "fsync", slow)
        captured = pool.submit(camera.capture, PICTURE)
        assert entered.wait(10)
        closed = pool.submit(camera.close)
        wait_until(lambda: is_closed(camera), 10)
        with pytest.raises(DeviceBusyError):
            start()
        assert not closed.done()
        go_on.set()
        assert captured.result(10)
        closed.result(10)
    assert start().capture(PICTURE)


def test_a_handler_of_signals_may_close_a_camera(
    start: StartCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that it interrupts: what that one was writing is finished first."""
    camera = start()
    fsync = os.fsync

    def interrupted(descriptor: int) -> None:
        camera.close()
        fsync(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", interrupted)
        assert camera.capture(PICTURE)
    with pytest.raises(DeviceStorageError, match="closed"):
        camera.capture(PICTURE)
    assert start().capture(PICTURE)


@contextmanager
def interrupted_at(line: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do something before a line of DirectoryLock's is run, the n-th from here. Yields how many."""
    watched = state_directory.__file__
    lines = [0]

    def each(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and frame.f_locals.get("self").__class__ is DirectoryLock:
            lines[0] += 1
            if lines[0] == line:
                sys.settrace(None)
                act()
        return each

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: each if frame.f_code.co_filename == watched else None)
    try:
        yield lines
    finally:
        sys.settrace(before)


def test_a_handler_of_signals_that_comes_at_any_moment(tmp_path: Path) -> None:
    """Within `in_use` nobody else gets the directory, wherever the handler released it."""
    place = PrivateDirectory(tmp_path / "place")
    ends: list[str] = []
    for line in range(1, 100):
        lock = place.lock()
        with interrupted_at(line, lock.release) as lines:
            try:
                with lock.in_use(), pytest.raises(DeviceBusyError):
                    place.lock()
                ends.append("used")
            except DeviceStorageError:
                ends.append("closed")
        if lines[0] < line:
            lock.release()
            break
        place.lock().release()
    assert set(ends) == {"used", "closed"}
    assert 10 < len(ends) < 99


def test_an_interruption_at_any_moment_leaves_the_lock(tmp_path: Path) -> None:
    """Ctrl-C in `in_use`, also before its block begins and while it ends: `release` still works."""
    place = PrivateDirectory(tmp_path / "place")

    def interrupt() -> None:
        raise KeyboardInterrupt

    for line in range(1, 100):
        lock = place.lock()
        with interrupted_at(line, interrupt) as lines, suppress(KeyboardInterrupt), lock.in_use():
            pass
        lock.release()
        place.lock().release()
        if lines[0] < line:
            break
    assert 10 < line < 99


def test_a_nested_use_ends_alone(tmp_path: Path) -> None:
    """An interruption of the inner use does not end the outer one."""
    place = PrivateDirectory(tmp_path / "place")

    def interrupt() -> None:
        raise KeyboardInterrupt

    for line in range(1, 100):
        lock = place.lock()
        with lock.in_use():
            with (
                interrupted_at(line, interrupt) as lines,
                suppress(KeyboardInterrupt),
                lock.in_use(),
            ):
                pass
            lock.release()
            with pytest.raises(DeviceBusyError):
                place.lock()
        place.lock().release()
        if lines[0] < line:
            break
    assert 10 < line < 99


def test_threads_share_a_camera(start: StartCamera, no_chance: None) -> None:
    camera = start()
    with ThreadPoolExecutor(8) as pool:
        bundles = list(pool.map(lambda _: camera.capture(PICTURE), range(600)))
    assert len({bundle.content.camera_token.nonce for bundle in bundles}) == 600


def test_a_copied_disk_under_another_serial(start: StartCamera, enrolment: Enrolment) -> None:
    start().close()
    other = Enrolment(enrolment.url, "another", "Test")
    with pytest.raises(OtherDeviceError, match="If the disk was copied"):
        start(enrolment=other)


def test_a_queue_for_each_aggregation_server(start: StartCamera, place: Path) -> None:
    """Dual submission: one that is away keeps nothing from the other, and none gets a bundle twice.

    What waits for one that the app no longer names stays on disk.
    """
    camera = start(queues=("first", "second"))
    bundle = camera.capture(PICTURE)
    for queue in camera.queues.values():
        queue.put(bundle)
    assert camera.queue is camera.queues["first"]
    assert camera.queues["first"].drain(lambda _: Delivery.TAKEN) == 1
    assert camera.queues["second"].drain(lambda _: Delivery.LATER) == 0
    camera.close()
    start(queues=("first",)).close()
    again = start(queues=("first", "second"))
    assert [len(queue) for queue in again.queues.values()] == [0, 1]


@pytest.mark.parametrize("queues", [(), ("../out",), ("a/b",), ("camera.json",), ("",), ("A",)])
def test_names_of_queues(start: StartCamera, place: Path, queues: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="queue"):
        start(queues=queues)
    assert not place.exists()


def test_a_queue_cannot_be_the_lock(start: StartCamera) -> None:
    with pytest.raises(DeviceStorageError, match="Move it away"):
        start(queues=("lock",))


# --- modes and secrets


def modes(place: Path) -> dict[str, int]:
    """The permissions of all that is there."""
    return {str(p.relative_to(place)): p.stat().st_mode & 0o777 for p in place.rglob("*")}


def test_nobody_else_can_read_a_camera(start: StartCamera, place: Path) -> None:
    """Threat 29: whatever the umask, directories are 0700 and files 0600."""
    before = os.umask(0)
    try:
        camera = start()
        camera.queue.put(camera.capture(PICTURE))
    finally:
        os.umask(before)
    found = modes(place)
    assert found.pop("queue") == 0o700
    assert place.stat().st_mode & 0o777 == 0o700
    assert set(found.values()) == {0o600}
    assert set(found) == {"lock", "camera.json", "nonces.json", "queue/00000000000000000001.json"}


@pytest.mark.parametrize(
    ("name", "mode", "advice"),
    [
        (".", 0o750, "chmod 700"),
        ("queue", 0o701, "chmod 700"),
        ("camera.json", 0o640, "chmod 600"),
        ("nonces.json", 0o604, "chmod 600"),
    ],
)
def test_wrong_modes_are_refused(
    start: StartCamera, place: Path, name: str, mode: int, advice: str
) -> None:
    """Threat 29: it says what to type."""
    start().close()
    (place / name).chmod(mode)
    with pytest.raises(DeviceStorageError, match=advice):
        start()


def test_no_secret_lies_open(start: StartCamera, place: Path, authority: Authority) -> None:
    """Threats 28 and 29: sealed, the state shows neither keys nor the NUC hash; nor does a repr."""
    camera = start(sealing=passphrase("a long enough phrase"))
    token = camera.capture(PICTURE).content.camera_token
    camera.close()
    text = (place / "camera.json").read_text()
    assert set(json.loads(text)) == {"format", "sealing", "salt", "nonce", "content"}
    start(sealing=passphrase("a long enough phrase")).close()
    for other in (UNSEALED, passphrase("another phrase")):
        with pytest.raises(DeviceSecretError):
            start(sealing=other)
    assert "a long enough" not in repr(passphrase("a long enough phrase"))
    assert token.nonce.hex() not in repr(token)


def test_the_enrolment_key_is_forgotten(start: StartCamera, place: Path) -> None:
    """What was needed once is not kept where a thief finds it."""
    start(enrolment=Enrolment("http://localhost", "with-a-key", "Test", "sma_x", patience=0))
    kept = state.load(PrivateDirectory(place), UNSEALED)
    assert isinstance(kept, state.Identity)
    assert "sma_x" not in str(vars(state)) + json.dumps(
        {f: str(getattr(kept, f)) for f in kept.__slots__}
    )


# --- damage


def torn(text: bytes) -> list[bytes]:
    """A text as it might be after an accident."""
    flipped = bytearray(text)
    flipped[len(text) * 3 // 4] ^= 1
    return [b"", text[: len(text) // 2], bytes(len(text)), bytes(flipped), b"[]", b"null", b"{}"]


@pytest.mark.parametrize("name", ["camera.json", "nonces.json"])
@pytest.mark.parametrize("sealing", [UNSEALED, passphrase("x")], ids=["plain", "sealed"])
def test_damage_is_told_and_touches_nothing(
    start: StartCamera, place: Path, name: str, sealing: Any
) -> None:
    start(sealing=sealing).close()
    file = place / name
    for text in torn(file.read_bytes()):
        file.write_bytes(text)
        with pytest.raises((DamagedDeviceStateError, DeviceSecretError), match=name):
            start(sealing=sealing)
        assert file.read_bytes() == text


def test_a_missing_file_is_told(start: StartCamera, place: Path) -> None:
    """A camera whose file is gone is no new camera: its serial is registered."""
    start().close()
    (place / "camera.json").rename(place / "kept")
    with pytest.raises(DamagedDeviceStateError, match=r"camera\.json is missing"):
        start()
    (place / "kept").rename(place / "camera.json")
    (place / "nonces.json").unlink()
    with pytest.raises(DamagedDeviceStateError, match="renew_nonces"):
        start()


def test_lost_counts_can_be_begun_anew(start: StartCamera, place: Path, no_chance: None) -> None:
    """And even without chance the new ones are others than those before."""
    camera = start()
    before = {camera.capture(PICTURE).content.camera_token.nonce for _ in range(300)}
    camera.close()
    (place / "nonces.json").unlink()
    renew_nonces(place)
    camera = start()
    after = {camera.capture(PICTURE).content.camera_token.nonce for _ in range(300)}
    assert not before & after


def test_counts_are_begun_for_no_stranger(place: Path) -> None:
    with pytest.raises(DeviceStorageError, match="no camera"):
        renew_nonces(place)


def test_a_file_where_the_directory_should_be(place: Path, enrolment: Enrolment) -> None:
    place.touch()
    with pytest.raises(DeviceStorageError):
        start_camera(place, sealing=UNSEALED, enrolment=enrolment)


def test_a_link_in_place_of_a_file_is_not_followed(start: StartCamera, place: Path) -> None:
    start().close()
    (place / "nonces.json").rename(place / "elsewhere")
    (place / "nonces.json").symlink_to(place / "elsewhere")
    with pytest.raises(DeviceStorageError):
        start()


def test_the_token_is_sealed_as_the_protocol_has_it(start: StartCamera, place: Path) -> None:
    """Threat 14: under a key of the camera's own tables, at an index that exists."""
    token = start().capture(PICTURE).content.camera_token
    kept = state.load(PrivateDirectory(place), UNSEALED)
    assert isinstance(kept, state.Identity)
    key = derive_key(bytes.fromhex(kept.table_keys[str(token.table_id)]), token.key_index)
    assert open_camera_token(token, key).hex() == kept.nuc_hash


def test_importing_it_needs_nothing_of_the_server() -> None:
    program = (
        "import sys, birthmark_sma.device;"
        "print({'fastapi', 'starlette', 'sqlalchemy', 'pydantic', 'psycopg', 'typer', 'joserfc'}"
        " & {*sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"
