"""The cameras of a simulation. They run the real code of `birthmark_sma.device`.

`run` provisions them, `player` takes pictures with them. Each camera has its own state directory.
Cameras call fsync after each write. In memory (`memory_directory`) this costs nothing, and the
authority has the disk for itself.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device import UNSEALED, Camera, Enrolment, Renewal, start_camera, state
from birthmark_sma.device.state import Identity
from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.errors import DamagedDeviceStateError
from birthmark_sma.protocol import key_derivation
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.simulation import attacks
from birthmark_sma.simulation.expected_outcomes import TAMPERING, Case

_NO_RENEWAL = Renewal(automatic=False)
"""A simulation is shorter than the validity of a certificate. A drill renews by `renew_if_due`."""
_AT_ONCE = 8  # cameras that are provisioned at the same time
# A shared directory is safe here: TemporaryDirectory makes a directory in it with mode 0700 and an
# unpredictable name.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108

Clock = Callable[[], datetime]


@contextmanager
def memory_directory() -> Iterator[Path]:
    """Yield a private directory and delete it at the end. It is in memory if /dev/shm exists."""
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="birthmark-", dir=_MEMORY if usable else None) as name:
        yield Path(name)


@dataclass(slots=True)
class PlayedCamera:
    """A camera with its secrets, which lets a simulation forge and clone.

    `_copies` holds the clones, by case. They are made when they are first used.
    """

    camera: Camera
    directory: Path
    identity: Identity = field(repr=False)
    _copies: dict[Case, Camera] = field(default_factory=dict, repr=False)

    @property
    def device_serial(self) -> str:
        """The serial in the camera's certificate."""
        return self.camera.device_serial

    @property
    def root_pem(self) -> str:
        """The root certificate from provisioning, as PEM."""
        return self.identity.certificate_chain[1]

    def make(self, case: Case, image: bytes, source: Bundle | None) -> Bundle:
        """Return the bundle of a picture, altered as the case describes.

        `source` is the bundle of the earlier picture for replays, else None.
        """
        if case is Case.REPLAYED_BUNDLE and source is not None:
            return source
        if case in {Case.CLONE_OTHER_SENSOR, Case.CLONE_SAME_SENSOR}:
            return self._copy(case).capture(image)  # the clone signs with its own copy of the key
        bundle = self.camera.capture(image)
        if case is Case.FORGED_SIGNATURE:
            return attacks.signed_by_another(bundle, ec.generate_private_key(ec.SECP256R1()))
        if case is Case.ALTERED_BUNDLE:
            return attacks.with_another_picture(bundle, hashlib.sha256(image + b"x").digest())
        token = self._token(case, bundle.content.camera_token, source)
        if token is None:
            return bundle
        return attacks.with_token(bundle, token, state.load_private_key(self.identity.private_key))

    def close(self) -> None:
        """Close the camera and its clones."""
        for each in (self.camera, *self._copies.values()):
            each.close()

    def _token(self, case: Case, token: CameraToken, source: Bundle | None) -> CameraToken | None:
        """Return the camera token that replaces the genuine one, or None to keep it."""
        if case in TAMPERING:
            master_key = bytes.fromhex(self.identity.table_keys[str(token.table_id)])
            return attacks.altered_token(
                case, token, chance=os.urandom, key=key_derivation.extract(master_key)
            )
        return None if source is None else source.content.camera_token

    def _copy(self, case: Case) -> Camera:
        """Return a clone: a camera on a copy of the disk. CLONE_OTHER_SENSOR changes its NUC hash.

        Each case has one clone, which is made at the first call.
        """
        if case not in self._copies:
            name = "other" if case is Case.CLONE_OTHER_SENSOR else "same"
            directory = self.directory.with_name(f"{self.directory.name}-clone-{name}")
            shutil.copytree(self.directory, directory)
            if case is Case.CLONE_OTHER_SENSOR:
                other = replace(self.identity, nuc_hash=os.urandom(32).hex())
                state.save(other, PrivateDirectory(directory), UNSEALED)
            self._copies[case] = start_camera(directory, sealing=UNSEALED, renewal=_NO_RENEWAL)
        return self._copies[case]


def provision(
    enrolments: Sequence[Enrolment],
    clocks: Sequence[Clock],
    directory: Path,
    *,
    max_bundles: int,
    client: httpx2.Client,
    done: Callable[[], None],
    renewal: Renewal = _NO_RENEWAL,
) -> list[PlayedCamera]:
    """Provision the cameras, `_AT_ONCE` at a time, and return them in the order of the enrolments.

    `done` is called after each camera, in a worker thread. On an error of `start_camera` this
    closes the cameras that were started, and raises the error.
    """

    def start(n: int) -> PlayedCamera:
        place = directory / f"camera-{n:05}"
        camera = start_camera(
            place,
            sealing=UNSEALED,
            enrolment=enrolments[n],
            max_bundles=max_bundles,
            clock=clocks[n],
            client=client,
            renewal=renewal,
        )
        # A Camera does not give out its secrets, so forgeries read them from its state files.
        identity = state.load(PrivateDirectory(place), UNSEALED)
        if not isinstance(identity, Identity):
            raise DamagedDeviceStateError(f"{place} changed while a camera was started in it.")
        done()
        return PlayedCamera(camera, place, identity)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="provision") as threads:
        futures = [threads.submit(start, n) for n in range(len(enrolments))]
        try:
            return [each.result() for each in futures]
        except BaseException:
            # Cancel all first, so that no further camera starts while the others are closed.
            for each in futures:
                each.cancel()
            for each in futures:
                with suppress(BaseException):
                    each.result().close()
            raise


def make_clock(ahead: float, drift: float) -> Clock:
    """Return a clock that is `ahead` seconds ahead now and gains `drift` seconds a second."""
    begun = datetime.now(UTC)

    def now() -> datetime:
        real = datetime.now(UTC)
        return real + (real - begun) * drift + timedelta(seconds=ahead)

    return now
