"""An authority for cameras, and cameras that it has provisioned."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.device import UNSEALED, Camera, Enrolment, Renewal, start_camera
from birthmark_sma.device import nonces as nonces_module
from tests.support.authorities import KEYS_PER_TABLE, new_authority, small_settings
from tests.support.in_process import InProcess
from tests.support.programs.running import new_serial

StartCamera = Callable[..., Camera]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """An authority that all tests share: each camera takes a serial of its own."""
    with new_authority(small_settings(tmp_path_factory.mktemp("authority"), None)) as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a camera keeps what is its own."""
    return tmp_path / "camera"


@pytest.fixture
def enrolment() -> Enrolment:
    """What an app says of a new camera."""
    return Enrolment(
        "http://127.0.0.1:8000",
        new_serial(),
        "Test",
        keys_per_table=KEYS_PER_TABLE,
        patience=0,
    )


@pytest.fixture
def start(authority: Authority, place: Path, enrolment: Enrolment) -> Iterator[StartCamera]:
    """Start the test's camera; all that were started are closed at the end."""
    started: list[Camera] = []

    def start_one(directory: Path = place, **options: Any) -> Camera:
        given: dict[str, Any] = {
            "sealing": UNSEALED,
            "enrolment": enrolment,
            "client": InProcess(authority),
            "renewal": Renewal(automatic=False),
        }
        camera = start_camera(directory, **(given | options))
        started.append(camera)
        return camera

    yield start_one
    for camera in started:
        camera.close()


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the random bits out of nonces: then a count that is used twice is a nonce twice."""
    monkeypatch.setattr(nonces_module, "_random_bytes", bytes)
