"""A camera whose certificate can be renewed, its authority, and the time that both know."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.client import verify_bundle
from birthmark_sma.device import UNSEALED, Camera, Renewal, nonces, start_camera, state
from birthmark_sma.device.state import Identity
from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.camera_token import open_camera_token
from birthmark_sma.protocol.key_derivation import derive_key
from tests.support.cameras.renewing_authority import RenewingAuthority

BEGINNING = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


class Time:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = BEGINNING

    def __call__(self) -> datetime:
        """Return the current time."""
        return self.now

    def advance(self, **amount: float) -> None:
        """Let time pass: the arguments are those of `timedelta`."""
        self.now += timedelta(**amount)


class Cameras:
    """Starts the test's camera, and judges its bundles."""

    def __init__(self, directory: Path, authority: RenewingAuthority, time: Time) -> None:
        self.directory = directory
        self.authority = authority
        self.time = time
        self.started: list[Camera] = []

    def provision(self, **changes: Any) -> Identity:
        """Write the state of a provisioned camera."""
        return self.write(self.directory, **changes)

    def write(self, directory: Path, **changes: Any) -> Identity:
        """Write the state of a camera that was provisioned now into a directory."""
        identity = self.authority.identity()
        fields = {name: getattr(identity, name) for name in identity.__dataclass_fields__}
        identity = Identity(**fields | changes)
        place = PrivateDirectory(directory)
        nonces.begin(place)
        state.save(identity, place, UNSEALED)
        return identity

    def start(self, directory: Path | None = None, **options: Any) -> Camera:
        """Start a camera that renews only when it is told to."""
        given: dict[str, Any] = {
            "sealing": UNSEALED,
            "clock": self.time,
            "client": self.authority,
            "renewal": Renewal(automatic=False),
        }
        camera = start_camera(directory or self.directory, **given | options)
        self.started.append(camera)
        return camera

    def kept(self, directory: Path | None = None) -> Identity:
        """Return the identity on disk."""
        found = state.load(PrivateDirectory(directory or self.directory), UNSEALED)
        assert isinstance(found, Identity)
        return found

    def judge(self, bundle: Bundle) -> None:
        """Fail unless certificate, signature, chain and camera token of a bundle fit together."""
        root = self.authority.ca.root
        verified = verify_bundle(bundle.to_json(), root=root, now=self.time.now)
        assert verified.device_serial == "camera-7"
        token = bundle.content.camera_token
        keys = self.authority.keys_of(bundle.content.device_certificate_chain[0])
        master_key = bytes.fromhex(keys[str(token.table_id)])
        opened = open_camera_token(token, derive_key(master_key, token.key_index))
        assert opened == b"\x11" * 32


@pytest.fixture
def time() -> Time:
    """The time of camera and authority."""
    return Time()


@pytest.fixture
def authority(time: Time) -> RenewingAuthority:
    """An authority that renews."""
    return RenewingAuthority(time)


@pytest.fixture
def cameras(tmp_path: Path, authority: RenewingAuthority, time: Time) -> Iterator[Cameras]:
    """A provisioned camera; all that were started are closed at the end."""
    given = Cameras(tmp_path / "camera", authority, time)
    given.provision()
    yield given
    for camera in given.started:
        camera.close()


@pytest.fixture
def due(authority: RenewingAuthority, time: Time) -> Callable[[], None]:
    """Call it to make every certificate due for renewal."""

    def make_due() -> None:
        authority.window = time.now - timedelta(days=2), time.now - timedelta(days=1)

    return make_due
