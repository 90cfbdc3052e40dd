"""The parts of the Raspberry Pi service, in this process; end to end it is run elsewhere."""

import argparse
import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from birthmark_sma.device import Delivery, Enrolment, state_directory
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    DeviceStorageError,
    QueueFullError,
)
from birthmark_sma.protocol.bundle import Bundle, parse_bundle
from tests.device.conftest import StartCamera

EXAMPLE = Path(__file__).parents[2] / "examples" / "raspberry_pi_camera.py"


@pytest.fixture(scope="module")
def service() -> ModuleType:
    """The example, as it stands."""
    spec = importlib.util.spec_from_file_location("raspberry_pi_camera", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where the pictures appear."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def waiting(camera: Any) -> list[bytes]:
    """The pictures' hashes in the camera's queue."""
    found: list[bytes] = []

    def send(bundle: Bundle) -> Delivery:
        found.append(bundle.content.image_hash)
        return Delivery.TAKEN

    camera.queue.drain(send)
    return found


def test_a_name_that_comes_again_overwrites_no_picture(
    service: ModuleType, start: StartCamera, pictures: Path
) -> None:
    """Cameras count from IMG_0001 again; and the same picture may come twice."""
    camera, folder = start(), service.Folder(pictures)
    contents = [b"first", b"second", b"third", b"second", b"first"]
    for content in contents:
        (pictures / "IMG_0001.jpg").write_bytes(content)
        folder.authenticate(camera)
    kept = [path.read_bytes() for path in (pictures / "authenticated").iterdir()]
    assert set(kept) == {b"first", b"second", b"third"}
    assert waiting(camera) == [hashlib.sha256(content).digest() for content in contents]


def test_what_cannot_be_read_holds_nothing_up(
    service: ModuleType, start: StartCamera, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder, a dangling link, a pipe and an empty file by the names of pictures: told once."""
    camera, folder = start(), service.Folder(pictures)
    (pictures / "a.jpg").mkdir()
    (pictures / "b.jpg").symlink_to(pictures / "nowhere")
    (pictures / "c.jpg").touch()
    os.mkfifo(pictures / "d.jpg")
    (pictures / "e.jpg").write_bytes(b"a picture")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            folder.authenticate(camera)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        f"{name}.jpg" for name in "abcd"
    ]
    (pictures / "c.jpg").write_bytes(b"finished")
    folder.authenticate(camera)
    assert waiting(camera) == [
        hashlib.sha256(each).digest() for each in (b"a picture", b"finished")
    ]


def test_a_picture_that_cannot_be_moved_gets_one_bundle(
    service: ModuleType, start: StartCamera, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a folder that is read-only would fill the queue, a bundle a second."""

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    camera, folder = start(), service.Folder(pictures)
    (pictures / "a.jpg").write_bytes(b"a picture")
    monkeypatch.setattr(Path, "rename", read_only)
    for _ in range(3):
        folder.authenticate(camera)
    assert len(camera.queue) == 1


def test_refused_bundles_make_room(
    service: ModuleType, start: StartCamera, place: Path, pictures: Path
) -> None:
    """Nobody empties a queue by hand in the field; what waits is never dropped."""
    camera, folder = start(max_bundles=2), service.Folder(pictures)
    for name in ("a", "b", "c"):
        (pictures / f"{name}.jpg").write_bytes(name.encode())
    service.one_round(camera, folder, lambda _: Delivery.REFUSED)
    assert camera.queue.put_aside == 2
    assert len(camera.queue.put_aside_files()) == 2
    service.one_round(camera, folder, lambda _: Delivery.LATER)
    assert (len(camera.queue), camera.queue.put_aside) == (0, 0)
    service.one_round(camera, folder, lambda _: Delivery.LATER)
    (pictures / "d.jpg").write_bytes(b"d")
    (pictures / "e.jpg").write_bytes(b"e")
    for _ in range(2):
        service.one_round(camera, folder, lambda _: Delivery.LATER)
    assert len(camera.queue) == 2
    with pytest.raises(QueueFullError):
        folder.authenticate(camera)
    kept = [parse_bundle(file.read_bytes()) for file in sorted(place.glob("queue/*.json"))]
    assert [bundle.content.image_hash for bundle in kept] == [
        hashlib.sha256(name).digest() for name in (b"c", b"d")
    ]


def test_pictures_wait_in_the_folder_while_the_clock_is_wrong(
    service: ModuleType, start: StartCamera, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Threat 50: it is logged once, what waits is sent all the same, and the pictures follow."""
    clock = [datetime.now(UTC)]
    camera, folder = start(clock=lambda: clock[0]), service.Folder(pictures)
    camera.queue.put(camera.capture(b"before"))
    (pictures / "a.jpg").write_bytes(b"a picture")
    clock[0] = datetime(1970, 1, 1, tzinfo=UTC)
    sent: list[Bundle] = []

    def send(bundle: Bundle) -> Delivery:
        sent.append(bundle)
        return Delivery.TAKEN

    for _ in range(3):
        service.one_round(camera, folder, send)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set the clock" in caplog.text
    assert (pictures / "a.jpg").exists()
    clock[0] = datetime.now(UTC)
    service.one_round(camera, folder, send)
    assert [bundle.content.image_hash for bundle in sent] == [
        hashlib.sha256(each).digest() for each in (b"before", b"a picture")
    ]


def test_a_service_that_is_told_to_stop_ends_its_round(
    service: ModuleType, start: StartCamera
) -> None:
    """It asks nobody any more, and bundles that it did not send are as they were."""
    camera = start()
    bundles = [camera.capture(bytes([n])) for n in range(4)]
    for bundle in bundles:
        camera.queue.put(bundle)
    asked: list[Bundle] = []

    def intake(bundle: Bundle) -> Delivery:
        asked.append(bundle)
        service.stopping.set()
        return Delivery.TAKEN

    try:
        assert camera.queue.drain(service.Sender(intake)) == 1
    finally:
        service.stopping.clear()
    assert asked == bundles[:1]
    assert len(camera.queue) == 3


def test_a_full_disk_is_emptied(
    service: ModuleType, start: StartCamera, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits there is sent although nothing more can be queued; then there is room again."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    camera, folder = start(), service.Folder(pictures)
    camera.queue.put(camera.capture(b"waiting"))
    (pictures / "new.jpg").write_bytes(b"new")
    sent: list[Bundle] = []

    def send(bundle: Bundle) -> Delivery:
        sent.append(bundle)
        return Delivery.TAKEN

    with monkeypatch.context() as disk:
        disk.setattr(state_directory, "_write_durably", full)
        with pytest.raises(DeviceStorageError, match="No space left"):
            service.one_round(camera, folder, send)
    assert [bundle.content.image_hash for bundle in sent] == [hashlib.sha256(b"waiting").digest()]
    service.one_round(camera, folder, send)
    assert len(sent) == 2


@pytest.fixture
def run(
    service: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Enrolment]]:
    """Run the service until it has asked the authority twice, with what it finds there."""

    def run_with(found: BirthmarkError) -> list[Enrolment]:
        asked: list[Enrolment] = []

        def start_camera(_: Path, *, sealing: object, enrolment: Enrolment) -> None:
            asked.append(enrolment)
            if len(asked) == 2:
                service.stopping.set()
            raise found

        monkeypatch.setattr(service, "start_camera", start_camera)
        try:
            service.run(
                argparse.Namespace(
                    authority="http://localhost",
                    aggregator="http://localhost",
                    serial="pi",
                    family="Test",
                    keys_per_table=None,
                    pictures=tmp_path,
                    directory=tmp_path,
                    key_file=tmp_path,
                )
            )
        finally:
            service.stopping.clear()
        return asked

    return run_with


def test_no_authority_makes_it_wait_for_days(
    service: ModuleType, run: Callable[..., list[Enrolment]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 8: a lost first answer can be had for 24 hours."""
    waits: list[float] = []
    monkeypatch.setattr(service.stopping, "wait", waits.append)
    for seconds in (None, 17.0, 999_999_999.0):
        run(AuthorityAwayError("Nobody there.", retry_after=seconds))
    assert waits[::2] == waits[1::2] == [1.0, 17.0, 3600.0]


@pytest.mark.parametrize(("line", "key"), [("", None), ("sma_n33dle", "sma_n33dle"), (None, None)])
def test_an_empty_line_in_the_environment_is_no_key(
    service: ModuleType, run: Callable[..., list[Enrolment]], monkeypatch: pytest.MonkeyPatch,
    line: str | None, key: str | None,
) -> None:  # fmt: skip
    """`BIRTHMARK_ENROLMENT_KEY=` is what is left where somebody took the key out."""
    monkeypatch.delenv("BIRTHMARK_ENROLMENT_KEY", raising=False)
    monkeypatch.setattr(service.stopping, "wait", lambda _: None)
    if line is not None:
        monkeypatch.setenv("BIRTHMARK_ENROLMENT_KEY", line)
    asked = run(AuthorityAwayError("Nobody there."))
    assert [enrolment.enrolment_key for enrolment in asked] == [key, key]
