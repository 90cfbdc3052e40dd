"""The parts of the Raspberry Pi service, in this process; end to end it is run elsewhere."""

import hashlib
import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from birthmark_sma.device import Delivery, bundle_id
from birthmark_sma.errors import ConfigurationError, QueueFullError
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
