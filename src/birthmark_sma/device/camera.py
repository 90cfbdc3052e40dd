"""Start a camera, capture pictures, and give access to its queues.

An app calls `start_camera`; `Camera` is the result. This module must never write a secret to the
disk itself: `state` seals the state.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

import httpx2
from cryptography import x509

from birthmark_sma.device import nonces, provisioning, state
from birthmark_sma.device.bundle_queue import MAX_BUNDLES, BundleQueue
from birthmark_sma.device.clock import CameraClock, Clock
from birthmark_sma.device.intake import ANSWER_SECONDS, Intake
from birthmark_sma.device.nonces import Nonces
from birthmark_sma.device.provisioning import Enrolment
from birthmark_sma.device.renewal.background import RenewalThread
from birthmark_sma.device.renewal.credentials import Credentials
from birthmark_sma.device.renewal.exchange import AuthorityAddress
from birthmark_sma.device.renewal.renewer import Renewal, Renewer
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
from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.bundle_signature import sign_bundle

_AUTOMATIC = Renewal()
_QUEUE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_READ_BYTES = 1_048_576

_log = logging.getLogger(__name__)


def start_camera(
    directory: Path,
    *,
    sealing: Sealing,
    enrolment: Enrolment | None = None,
    queues: Sequence[str] = ("queue",),
    max_bundles: int = MAX_BUNDLES,
    clock: Clock = lambda: datetime.now(UTC),
    client: httpx2.Client | None = None,
    renewal: Renewal = _AUTOMATIC,
) -> "Camera":
    """Open the camera in a directory. At the first start, create and provision it.

    Call it at every start with the same arguments. It can be interrupted at any point, and
    continues at the next start. Without `enrolment`, a camera that is not provisioned is refused.
    `queues` names one queue for each aggregation server that gets all bundles; each queue holds up
    to `max_bundles`. `client` sends the requests to the authority instead of a new client, with its
    own timeouts; the time of a whole attempt is bounded only if the client keeps no connections
    open from other requests. `renewal` says how the certificate is renewed: see `renew_if_due`.

    Raises DeviceStorageError (wrong modes, full disk, another process, damaged files),
    DeviceSecretError (sealed under another secret), OtherDeviceError (a copied disk),
    AuthorityAwayError (start again later), ProvisioningRefusedError (a person has to act) and
    ConfigurationError (invalid arguments).
    """
    if not queues or not all(_QUEUE.fullmatch(name) for name in queues):
        raise ConfigurationError(
            "A camera needs at least one queue. The name of a queue has 1 to 64 of a-z, 0-9 and"
            " hyphens, and no hyphen at the start."
        )
    place = PrivateDirectory(directory)
    lock = place.lock()
    try:
        # Only after the lock: another process could still be writing these files.
        place.clear_unfinished()
        said: dict[str, datetime] = {}
        identity = _identity(place, sealing, enrolment, client, said)
        waiting = {name: _queue(directory / name, lock, max_bundles) for name in queues}
        spent = Nonces(place, bytes.fromhex(identity.nonce_secret))
        watched = _watched(clock, identity, place, lock)
        for source, time in said.items():
            watched.hear(time, source)
        watched.fault()  # log a fault even if the app never checks
        camera = Camera(identity, spent, waiting, watched, lock)
        if identity.authority_url is None:
            _log.warning(
                "The certificate is not renewed: this camera was provisioned by an earlier version."
                " Pass its enrolment once, which has the authority's URL"
            )
            return camera
        context = None if enrolment is None else enrolment.ssl_context
        url = identity.authority_url.rstrip("/")
        renewer = Renewer(
            identity,
            place,
            lock,
            sealing,
            clock=watched,
            address=AuthorityAddress(url, client, context, watched.hear),
            install=camera.install,
            options=renewal,
        )
        camera.begin_renewals(renewer, renewal)
        return camera
    except BaseException:
        lock.release()
        raise


def renew_nonces(directory: Path) -> None:
    """Start a new nonce lineage, after the file that counts the nonces was lost or damaged.

    New nonces can then equal old ones only by chance, in 96 bits, like those of two cameras.

    Raises DeviceStorageError.
    """
    place = PrivateDirectory(directory)
    lock = place.lock()
    try:
        if state.FILE not in place.names():
            raise DeviceStorageError(
                f"There is no camera in {directory}. Start it with start_camera()."
            )
        nonces.begin(place)
    finally:
        lock.release()


class Camera:
    """A provisioned camera, created by `start_camera`. Threads may share it; processes must not."""

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
        self._credentials = Credentials.of(identity)
        self._renewer: Renewer | None = None
        self._renewals: RenewalThread | None = None
        self._nonces = spent
        self._clock = clock
        self._lock = lock

    @property
    def queue(self) -> BundleQueue:
        """Return the first queue, which is the only one for most cameras."""
        return next(iter(self.queues.values()))

    @property
    def certificate(self) -> x509.Certificate:
        """Return the certificate of the next capture. A renewal replaces it."""
        return self._credentials.certificate

    @property
    def certificate_expired(self) -> bool:
        """Return True if the certificate has expired by the camera's own clock.

        The camera still captures: its clock may be wrong, and aggregation servers decide.
        """
        return self._clock.now() > self.certificate.not_valid_after_utc

    @property
    def clock_is_wrong(self) -> bool:
        """Return True if the clock is certainly wrong, so that new pictures may be rejected.

        The camera still captures, unless `capture` is called with `refuse_wrong_clock`. Hold such
        pictures back, and capture them after the clock is set. `clock_fault` describes the fault,
        and `device.clock` how a camera detects it.
        """
        return self.clock_fault is not None

    @property
    def clock_fault(self) -> str | None:
        """Return a sentence that describes the clock's fault and the remedy, or None."""
        return self._clock.fault()

    def hear_time(self, time: datetime, source: str) -> None:
        """Compare the clock with the time of a server that TLS has authenticated.

        `source` is the name of the server. `intake` calls this method. If you use a `send` function
        of your own, call it with the Date of each response.
        """
        self._clock.hear(time, source)

    def intake(
        self,
        url: str,
        *,
        client: httpx2.Client | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> Intake:
        """Return a callable that sends bundles to an aggregation server, for a queue's `drain`.

        The arguments are those of `Intake`. It also compares the camera's clock with the server's.

        Raises ConfigurationError.
        """
        return Intake(url, client=client, hear_time=self.hear_time, answer_seconds=answer_seconds)

    def capture(self, image: bytes | BinaryIO, *, refuse_wrong_clock: bool = False) -> Bundle:
        """Return the bundle of a picture. `image` is the file's bytes, or a file open for reading.

        A file is read from its beginning, unless it is not seekable, as a pipe. Each call makes a
        new camera token, even for the same picture. The bundle is not on disk yet: `queue.put` it,
        or send it. `captured_at` is the time of this call.

        A wrong clock is logged once. With `refuse_wrong_clock` it raises WrongClockError instead;
        capture the picture again after the clock is set.

        Raises EmptyPictureError, DeviceStorageError if a nonce cannot be reserved or the camera is
        closed, NoncesUsedUpError, DeviceBusyError in a forked process, and the errors of reading
        the file.
        """
        captured_at = self._clock.now()
        # After the time: the old certificate may be superseded as soon as new ones are in use.
        credentials = self._credentials
        fault = self._clock.fault(captured_at)
        if fault is not None and refuse_wrong_clock:
            raise WrongClockError(fault)
        # Hash before taking the lock: a large picture takes long, and `close` waits for the lock.
        image_hash = _sha256(image)
        with self._lock.in_use():
            token = credentials.make_token(self._nonces.draw())
        return sign_bundle(
            UnsignedBundle(
                image_hash=image_hash,
                camera_token=token,
                device_certificate_chain=credentials.chain,
                captured_at=captured_at,
            ),
            credentials.key,
        )

    def renew_if_due(self) -> float | None:
        """Do what is due for the renewal of the certificate, and return the seconds until the next.

        The background thread calls it, unless `Renewal.automatic` is False. It asks the authority
        for the renewal window, or renews, and returns at once if neither is due. The camera can
        capture meanwhile. Responses without success are logged, and tried again after growing
        pauses. None means that the camera does not know the authority's URL.

        Raises DeviceStorageError if the disk fails or the camera is closed, DeviceSecretError if
        the state cannot be sealed, and DeviceBusyError in a forked process. Nothing is lost.
        """
        return None if self._renewer is None else self._renewer.step()

    def close(self) -> None:
        """Release the directory for other processes, after current writes are on disk.

        A bundle that is being sent meanwhile stays in the queue, and is sent again. A renewal that
        is under way is repeated after the next start.
        """
        if self._renewals is not None:
            self._renewals.stop()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin_renewals(self, renewer: Renewer, options: Renewal) -> None:
        """Renew with `renewer`, in the background if the app chose that. For `start_camera`."""
        self._renewer = renewer
        if options.automatic:
            self._renewals = RenewalThread(renewer, options.wait)

    def install(self, renewed: Identity) -> None:
        """Capture with a renewed identity, which must be on disk. For `Renewer`."""
        credentials = Credentials.of(renewed)
        self._credentials = credentials
        certificate = credentials.certificate
        self._clock.renewed(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _identity(
    place: PrivateDirectory,
    sealing: Sealing,
    enrolment: Enrolment | None,
    client: httpx2.Client | None,
    said: dict[str, datetime],
) -> Identity:
    """Load or create the camera's identity, and return it once it is on disk.

    `said` receives the authority's time by the name of its source.
    """
    kept = state.load(place, sealing)
    if isinstance(kept, Identity):
        if enrolment is not None and enrolment.device_serial != kept.device_serial:
            raise OtherDeviceError(
                f"This directory belongs to camera {kept.device_serial!r}, not to"
                f" {enrolment.device_serial!r}. If the disk was copied, use an empty"
                " directory."
            )
        return _corrected(kept, enrolment, place, sealing)
    if enrolment is None:
        raise ProvisioningError("This camera is not provisioned yet. Pass an enrolment.")

    def save(pending: Pending) -> None:
        state.save(pending, place, sealing)

    if kept is None:
        if nonces.FILE in place.names():
            raise DamagedDeviceStateError(
                f"{place.path / state.FILE} is missing, but other files of a camera exist."
                " Restore it, or use an empty directory for a new camera."
            )
        kept = provisioning.begin(enrolment)
        # The request must be on disk before it is sent: see `provisioning`, step 1.
        save(kept)
    # Start the nonces before the identity is complete: from then on, a missing file means damage.
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
    """Return the identity with what the app says now, saved if it changed.

    The authority's response contains neither the size of its tables nor its URL. Pinned
    roots stay pinned if the app names none.
    """
    if enrolment is None:
        return kept
    corrected = replace(
        kept,
        keys_per_table=enrolment.keys_per_table or kept.keys_per_table,
        authority_url=enrolment.url,
        root_fingerprints=enrolment.root_fingerprints or kept.root_fingerprints,
    )
    if corrected != kept:
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
    """Return the SHA-256 of a whole picture. A file is read from its beginning.

    The position that its writer or reader left is ignored. Raises EmptyPictureError.
    """
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
