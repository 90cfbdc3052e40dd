"""The parts of the Raspberry Pi service, in this process; end to end it is run elsewhere."""

import argparse
import hashlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from birthmark_sma.device import Delivery, Enrolment, bundle_id, private_directory
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    DeviceStorageError,
    QueueFullError,
)
from birthmark_sma.protocol.bundle import Bundle
from tests.device.conftest import StartCamera
from tests.support.faulty import Behaviour, FaultyServer, Visit

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


def naming(status: int = 200, **fields: Any) -> Behaviour:
    """Answer with the id of the bundle, or with something else."""

    def behave(visit: Visit) -> None:
        visit.answer({"bundle_id": visit.headers["idempotency-key"]} | fields, status)

    return behave


ANSWERS: dict[str, tuple[Behaviour, Delivery]] = {
    "taken": (naming(), Delivery.TAKEN),
    "created": (naming(201, ending="PASS"), Delivery.TAKEN),
    "a login page": (lambda v: v.answer(b"<html>", content_type="text/html"), Delivery.LATER),
    "nothing said": (lambda v: v.answer({}), Delivery.LATER),
    "a list": (lambda v: v.answer(b"[]"), Delivery.LATER),
    "another bundle": (naming(bundle_id="00" * 32), Delivery.LATER),
    "redirected": (naming(302), Delivery.LATER),
    "away": (naming(503), Delivery.LATER),
    "refused": (naming(422), Delivery.REFUSED),
}


def test_only_who_names_a_bundle_has_taken_it(service: ModuleType, start: StartCamera) -> None:
    """Threat 19's kin: no 200 of a Wi-Fi's login page makes a picture vanish."""
    bundle = start().capture(b"a picture")
    with FaultyServer(*(behaviour for behaviour, _ in ANSWERS.values())) as server:
        sender = service.Aggregator(f"{server.url}/bundles")
        got = {name: sender.send(bundle) for name in ANSWERS}
    assert got == {name: delivery for name, (_, delivery) in ANSWERS.items()}
    assert {visit.headers["idempotency-key"] for visit in server.visits} == {bundle_id(bundle)}


@pytest.mark.parametrize(
    "url", ["http://aggregator.example/", "http://192.0.2.1/", "x", "ftp://[::1]"]
)
def test_bundles_go_out_over_https(service: ModuleType, url: str) -> None:
    """Over http anybody on the way could say that a bundle was taken."""
    with pytest.raises(ConfigurationError, match="https://"):
        service.Aggregator(url)
    for good in ("https://aggregator.example/", "http://[::1]:8000/", "http://localhost/"):
        assert service.Aggregator(good)


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


def test_refused_bundles_make_room(service: ModuleType, start: StartCamera, pictures: Path) -> None:
    """Nobody empties a queue by hand in the field; what waits is never dropped."""
    camera, folder = start(max_bundles=2), service.Folder(pictures)
    for name in ("a", "b", "c"):
        (pictures / f"{name}.jpg").write_bytes(name.encode())
    service.one_round(camera, folder, lambda _: Delivery.REFUSED)
    assert camera.queue.put_aside == 2
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
    assert waiting(camera) == [hashlib.sha256(name).digest() for name in (b"c", b"d")]


ENDLESS: dict[str, tuple[float, Behaviour]] = {
    "dripping": (0.3, lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 999, 0.02)),
    "flooding": (30, naming(more="x" * 65_536)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_ends(
    service: ModuleType, start: StartCamera, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also after one that left the connection open; the bundle stays, and SIGTERM is heard."""
    seconds, behaviour = ENDLESS[kind]
    monkeypatch.setattr(service, "ANSWER_SECONDS", seconds)
    bundle = start().capture(b"a picture")
    begun = time.monotonic()
    with FaultyServer(naming(), behaviour) as server:
        sender = service.Aggregator(server.url)
        assert [sender.send(bundle) for _ in range(2)] == [Delivery.TAKEN, Delivery.LATER]
    assert time.monotonic() - begun < 5


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
        disk.setattr(private_directory, "_write_durably", full)
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
