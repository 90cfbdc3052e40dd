"""Generate nonces for camera tokens that never repeat, not even after a power cut or disk copy.

A nonce that repeats under one key breaks AES-GCM (SP 800-38D, section 8), and many cameras share
table keys. With 96 random bits alone, a repetition would be merely unlikely. This module does more:

* **Within one camera: a counter rules it out.** Each nonce is made from a 32-bit counter and 64
  random bits. The counter is reserved in blocks: before the first nonce of a block is used, the
  file records, with fsync, that the whole block is used. A power cut, a SIGKILL or a crash skips
  the rest of the block, and never uses a part of it twice. SP 800-38D, section 8.3, allows 2**32
  tokens per key; a camera makes at most that many under all its keys together.
* **Between a camera and its copy** (a cloned card, a restored backup, a resumed snapshot): both
  continue from the same counter, but each draws its own 64 random bits for every nonce. A collision
  needs the same bits at the same count, and the same one of 3,000 keys. For two copies that take
  10^9 pictures each, the probability is below 2**-45.
* **Between cameras that share a table**: counter and random bits pass through a permutation of the
  96-bit numbers, with a key that only this camera has. The result is as random as 96 new random
  bits, so the nonces of two cameras collide as rarely as any two random nonces. An observer of
  nonces cannot count a camera's pictures, or find out which nonces are from one camera.

The permutation is a balanced Feistel network of ten rounds with HMAC-SHA256 (the construction of
FF1 in SP 800-38G). A Feistel network is a permutation whatever its round function is: two counts
never give one nonce, without any assumption about HMAC.
"""

import hashlib
import hmac
import json
import os
import threading
from dataclasses import dataclass

from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.errors import DamagedDeviceStateError, NoncesUsedUpError
from birthmark_sma.protocol.camera_token import NONCE_BYTES

FILE = "nonces.json"
BLOCK = 256
"""The number of nonces that one write to the disk reserves."""
MAX_COUNT = 2**32
_COUNT_BYTES = 4
_RANDOM_BYTES = NONCE_BYTES - _COUNT_BYTES
_HALF = NONCE_BYTES // 2
_ROUNDS = 10  # as many as FF1
_LINEAGE_BYTES = 16

_random_bytes = os.urandom


@dataclass(frozen=True, slots=True)
class _Reservation:
    """The count up to which the nonces of a lineage are used.

    Each lineage has its own permutation.
    """

    lineage: bytes
    reserved: int

    def to_json(self) -> bytes:
        fields = {"lineage": self.lineage.hex(), "reserved": self.reserved}
        return json.dumps(fields | {"sha256": _checksum(fields)}).encode()


class Nonces:
    """The nonces of one camera. The directory must be locked. Threads may share it."""

    def __init__(self, directory: PrivateDirectory, secret: bytes) -> None:
        """Continue after the count in the file. `secret` is 32 bytes that only this camera has.

        Raises DamagedDeviceStateError if the file is missing or altered.
        """
        self._directory = directory
        self._kept = _read(directory)
        self._key = hmac.digest(secret, b"birthmark-nonces-v1" + self._kept.lineage, "sha256")
        # Skip the rest of the last block: an earlier process may have used any part of it.
        self._next = self._kept.reserved
        self._lock = threading.Lock()

    def draw(self) -> bytes:
        """Return 12 bytes that this camera has never used and will never use again.

        Raises DeviceStorageError if a new block cannot be reserved, for example on a full disk, and
        NoncesUsedUpError after 2**32 nonces.
        """
        with self._lock:
            if self._next == self._kept.reserved:
                self._reserve()
            count, self._next = self._next, self._next + 1
        number = count.to_bytes(_COUNT_BYTES, "big") + _random_bytes(_RANDOM_BYTES)
        return permute(self._key, number)

    def _reserve(self) -> None:
        if self._kept.reserved >= MAX_COUNT:
            raise NoncesUsedUpError
        ahead = _Reservation(self._kept.lineage, min(self._kept.reserved + BLOCK, MAX_COUNT))
        self._directory.write(FILE, ahead.to_json())
        # Only after the write: nonces of a block that is not reserved on disk must never be used.
        self._kept = ahead


def begin(directory: PrivateDirectory) -> None:
    """Start a new lineage of nonces at count 0, and replace the file. Raises DeviceStorageError.

    Call it only for a new camera, or if the file is lost. The new lineage has another permutation,
    so its nonces collide with the old ones as rarely as those of two cameras.
    """
    directory.write(FILE, _Reservation(os.urandom(_LINEAGE_BYTES), 0).to_json())


def permute(key: bytes, number: bytes) -> bytes:
    """Return the image of 12 bytes under the permutation that `key` selects."""
    left, right = number[:_HALF], number[_HALF:]
    for step in range(_ROUNDS):
        mask = hmac.digest(key, bytes([step]) + right, "sha256")
        left, right = right, bytes(a ^ b for a, b in zip(left, mask, strict=False))
    return left + right


def _read(directory: PrivateDirectory) -> _Reservation:
    text = directory.read(FILE)
    path = directory.path / FILE
    if text is None:
        raise DamagedDeviceStateError(
            f"{path} is missing. It records which nonces are used, so no nonce can be chosen"
            " safely. Restore it, or call renew_nonces()."
        )
    try:
        fields = json.loads(text)
        if fields.pop("sha256") != _checksum(fields):
            raise ValueError
        kept = _Reservation(bytes.fromhex(fields["lineage"]), fields["reserved"])
        if not isinstance(kept.reserved, int) or not 0 <= kept.reserved <= MAX_COUNT:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedDeviceStateError(
            f"{path} is damaged or altered. It records which nonces are used, so no nonce can"
            " be chosen safely. Restore it, or call renew_nonces()."
        ) from None
    return kept


def _checksum(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
