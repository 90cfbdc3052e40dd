"""A camera: starts, captures, and keeps what cannot be sent yet."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device import nonces, provisioning, state
from birthmark_sma.device.bundle_queue import MAX_BUNDLES, BundleQueue
from birthmark_sma.device.clock import CameraClock, Clock
from birthmark_sma.device.intake import ANSWER_SECONDS, Intake
from birthmark_sma.device.nonces import Nonces
from birthmark_sma.device.provisioning import Enrolment
from birthmark_sma.device.state import Identity, Pending
from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.device.state_encryption import Sealing
from birthmark_sma.errors import (
    ConfigurationError,
    DamagedDeviceStateError,
    DeviceStorageError,
    EmptyPictureError,
    OtherDeviceError,
    ProvisioningError,
    WrongClockError,
)
from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.bundle_signature import sign_bundle

_QUEUE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_READ_BYTES = 1_048_576


def start_camera(
    directory: Path,
    *,
    sealing: Sealing,
    enrolment: Enrolment | None = None,
    queues: Sequence[str] = ("queue",),
    max_bundles: int = MAX_BUNDLES,
    clock: Clock = lambda: datetime.now(UTC),
    client: httpx2.Client | None = None,
) -> "Camera":
    """Open the camera in a directory; at the first start make it, and have it provisioned.

    To be called at every start, always in the same way. It can be interrupted at any point, and
    goes on at the next start. Without `enrolment` a camera that is not provisioned is refused.
    `queues` names a queue for each aggregation server that is to get all bundles; each holds up to
    `max_bundles`. `client` asks the authority in place of one that is made for it, with its own
    timeouts; the time of a whole attempt is bounded only where it keeps no connection open from
    other requests.

    Raises DeviceStorageError (wrong modes, full disk, another process, damaged files),
    DeviceSecretError (sealed under another secret), OtherDeviceError (a copied disk),
    AuthorityAwayError (start again later), ProvisioningRefusedError (a person has to act) and
    ConfigurationError (what was given cannot be right).
    """
    if not queues or not all(_QUEUE.fullmatch(name) for name in queues):
        raise ConfigurationError("A camera has a queue, and its name is of a-z, 0-9 and hyphens.")
    place = PrivateDirectory(directory)
    lock = place.lock()
    try:
        place.clear_unfinished()
        said: dict[str, datetime] = {}
        identity = _identity(place, sealing, enrolment, client, said)
        waiting = {name: _queue(directory / name, lock, max_bundles) for name in queues}
        spent = Nonces(place, bytes.fromhex(identity.nonce_secret))
        watched = _watched(clock, identity, place, lock)
        for source, time in said.items():
            watched.hear(time, source)
        watched.fault()  # so that the log has it, even if nobody asks
        return Camera(identity, spent, waiting, watched, lock)
    except BaseException:
        lock.release()
        raise


def renew_nonces(directory: Path) -> None:
    """Begin the nonces of a camera anew, where the file that counts them is lost or damaged.

    From then on its nonces and those from before are apart as those of two cameras are: by chance,
    in 96 bits. Raises DeviceStorageError.
    """
    place = PrivateDirectory(directory)
    lock = place.lock()
    try:
        if state.FILE not in place.names():
            raise DeviceStorageError(f"There is no camera in {directory}.")
        nonces.begin(place)
    finally:
        lock.release()


class Camera:
    """A provisioned camera. `start_camera` makes it. Threads may share it; processes may not."""

    def __init__(
        self,
        identity: Identity,
        spent: Nonces,
        queues: Mapping[str, BundleQueue],
        clock: CameraClock,
        lock: DirectoryLock,
    ) -> None:
        self.queues = queues
        self.device_serial = identity.device_serial
        self.certificate = x509.load_pem_x509_certificate(identity.device_certificate.encode())
        intermediate = x509.load_pem_x509_certificate(identity.certificate_chain[0].encode())
        self._chain = tuple(
            each.public_bytes(serialization.Encoding.DER)
            for each in (self.certificate, intermediate)
        )
        key = serialization.load_pem_private_key(identity.private_key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise DamagedDeviceStateError("The camera's key is of another kind than it makes.")
        self._key = key
        self._nuc_hash = bytes.fromhex(identity.nuc_hash)
        self._tables = {
            int(table): key_derivation.extract(bytes.fromhex(master_key))
            for table, master_key in identity.table_keys.items()
        }
        self._keys_per_table = identity.keys_per_table
        self._nonces = spent
        self._clock = clock
        self._lock = lock

    @property
    def queue(self) -> BundleQueue:
        """The first queue, and for most cameras the only one."""
        return next(iter(self.queues.values()))

    @property
    def certificate_expired(self) -> bool:
        """Whether the certificate's time is over, by the camera's own clock.

        The camera captures all the same: its clock may be wrong, and aggregation servers decide.
        """
        return self._clock.now() > self.certificate.not_valid_after_utc

    @property
    def clock_is_wrong(self) -> bool:
        """True if the clock cannot be right, so that pictures that are signed now may be rejected.

        The camera captures all the same, unless `capture` is told to refuse: hold such pictures
        back, and capture them once the clock is set. `clock_fault` says what is wrong with it, and
        `device.clock` by what a camera can tell.
        """
        return self.clock_fault is not None

    @property
    def clock_fault(self) -> str | None:
        """A sentence that says what is wrong with the clock and what to do, or None."""
        return self._clock.fault()

    def hear_time(self, time: datetime, source: str) -> None:
        """Compare the clock with a server's, known to be that server's by TLS. `intake` does so.

        `source` names the server. For a `send` of your own: the Date of each answer.
        """
        self._clock.hear(time, source)

    def intake(
        self,
        url: str,
        *,
        client: httpx2.Client | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> Intake:
        """Return what sends bundles to an aggregation server: give it to a queue's `drain`.

        As `Intake`, which raises ConfigurationError; it compares the clocks too.
        """
        return Intake(url, client=client, hear_time=self.hear_time, answer_seconds=answer_seconds)

    def capture(self, image: bytes | BinaryIO, *, refuse_wrong_clock: bool = False) -> Bundle:
        """Return the bundle of a picture: the bytes of its file, or the file, open for reading.

        A file is read from its beginning, unless it cannot go back there, as a pipe. Each call
        makes a new camera token, also for the same picture. The bundle is nowhere on disk yet:
        `queue.put` it, or send it.

        A wrong clock is logged, once; with `refuse_wrong_clock` it is a WrongClockError, and the
        picture can be captured once the clock is set. `captured_at` is the time of this call.

        Raises EmptyPictureError, DeviceStorageError where a nonce cannot be reserved or the camera
        is closed, NoncesUsedUpError, DeviceBusyError in a process that was forked; and what reading
        the file raises.
        """
        captured_at = self._clock.now()
        fault = self._clock.fault(captured_at)
        if fault is not None and refuse_wrong_clock:
            raise WrongClockError(fault)
        image_hash = _sha256(image)
        with self._lock.in_use():
            token = self._camera_token()
        return sign_bundle(
            UnsignedBundle(
                image_hash=image_hash,
                camera_token=token,
                device_certificate_chain=self._chain,
                captured_at=captured_at,
            ),
            self._key,
        )

    def close(self) -> None:
        """Let another process have the directory, once what is being written is on disk.

        A bundle that is being sent meanwhile stays in the queue, and goes out again.
        """
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _camera_token(self) -> camera_token.CameraToken:
        table_id = secrets.choice(list(self._tables))
        key_index = secrets.randbelow(self._keys_per_table)
        return camera_token.seal(
            self._nuc_hash,
            key=key_derivation.expand(self._tables[table_id], key_index),
            table_id=table_id,
            key_index=key_index,
            nonce=self._nonces.draw(),
        )


def _identity(
    place: PrivateDirectory,
    sealing: Sealing,
    enrolment: Enrolment | None,
    client: httpx2.Client | None,
    said: dict[str, datetime],
) -> Identity:
    """Return who this camera is, once that is on disk. `said` gets the authority's time."""
    kept = state.load(place, sealing)
    if isinstance(kept, Identity):
        if enrolment is not None and enrolment.device_serial != kept.device_serial:
            raise OtherDeviceError(
                f"This directory is that of camera {kept.device_serial!r}, and the app says"
                f" {enrolment.device_serial!r}: was the disk copied?"
            )
        return _corrected(kept, enrolment, place, sealing)
    if enrolment is None:
        raise ProvisioningError("This camera is not provisioned yet: say where and as what.")

    def save(pending: Pending) -> None:
        state.save(pending, place, sealing)

    if kept is None:
        if nonces.FILE in place.names():
            raise DamagedDeviceStateError(
                f"{place.path / state.FILE} is missing, though there was a camera here. Restore it;"
                " for a new camera take an empty directory."
            )
        kept = provisioning.begin(enrolment)
        save(kept)
    if nonces.FILE not in place.names():
        nonces.begin(place)

    def hear_time(time: datetime, source: str) -> None:
        said[source] = time

    identity = provisioning.provision(kept, enrolment, save, client=client, hear_time=hear_time)
    state.save(identity, place, sealing)
    return identity


def _corrected(
    kept: Identity, enrolment: Enrolment | None, place: PrivateDirectory, sealing: Sealing
) -> Identity:
    """Let the app say later how many keys a table has: no answer of the authority's told it."""
    said = None if enrolment is None else enrolment.keys_per_table
    if said is None or said == kept.keys_per_table:
        return kept
    corrected = replace(kept, keys_per_table=said)
    state.save(corrected, place, sealing)
    return corrected


def _watched(
    clock: Clock, identity: Identity, place: PrivateDirectory, lock: DirectoryLock
) -> CameraClock:
    certificate = x509.load_pem_x509_certificate(identity.device_certificate.encode())
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return CameraClock(place, lock, clock, begins=begins, ends=ends)


def _queue(directory: Path, lock: DirectoryLock, max_bundles: int) -> BundleQueue:
    waiting = PrivateDirectory(directory)
    waiting.clear_unfinished()
    return BundleQueue(waiting, lock, max_bundles)


def _sha256(image: bytes | BinaryIO) -> bytes:
    """Hash a whole picture: a file from its beginning, wherever its writer or reader left off."""
    if isinstance(image, bytes | bytearray | memoryview):
        digest = hashlib.sha256(image)
        size = memoryview(image).nbytes
    else:
        digest, size = hashlib.sha256(), 0
        if image.seekable():
            image.seek(0)
        while part := image.read(_READ_BYTES):
            digest.update(part)
            size += len(part)
    if size == 0:
        raise EmptyPictureError
    return digest.digest()
