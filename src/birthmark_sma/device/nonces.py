"""Nonces for camera tokens that never repeat, not even after a power cut or from a copied disk.

A nonce that stands twice under one key breaks AES-GCM (SP 800-38D, section 8), and table keys are
shared by many cameras. 96 random bits alone would make a repetition unlikely. Here it is ruled out:

* **Within a camera: a counter.** Every nonce is made of a 32-bit counter and 64 random bits. The
  counter is reserved ahead, a block at a time: before the first nonce of a block is used, the file
  says, fsynced, that the whole block is spent. A power cut, a SIGKILL or a crash skips what was
  left of the block, and never takes a part of it twice. SP 800-38D, section 8.3, allows 2**32
  tokens a key; a camera makes no more than that under all its keys together.
* **Between a camera and its copy** (a cloned card, a restored backup, a resumed snapshot): both
  count from the same number, but each draws 64 random bits of its own for every nonce. They meet
  only where both draw the same bits at the same count, and the same one of 3,000 keys: for two
  copies that take a thousand million pictures each, a chance below 2**-45.
* **Between cameras that share a table**: counter and random bits go through a permutation of the
  96-bit numbers whose key only this camera has. What it gives is as random as 96 bits drawn anew,
  so two cameras meet as rarely as any two random nonces; and nobody who sees nonces can count a
  camera's pictures, or tell which of them are of one camera.

The permutation is a balanced Feistel network of ten rounds with HMAC-SHA256 (the construction of
SP 800-38G's FF1). A Feistel network is one to one whatever its rounds do: that two counts never
give one nonce rests on no assumption about HMAC.
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
"""How many nonces one write to the disk reserves."""
MAX_COUNT = 2**32
_COUNT_BYTES = 4
_RANDOM_BYTES = NONCE_BYTES - _COUNT_BYTES
_HALF = NONCE_BYTES // 2
_ROUNDS = 10
_LINEAGE_BYTES = 16

_random_bytes = os.urandom


@dataclass(frozen=True, slots=True)
class _Reservation:
    """Up to where a lineage of nonces is spent. A new lineage has a permutation of its own."""

    lineage: bytes
    reserved: int

    def to_json(self) -> bytes:
        fields = {"lineage": self.lineage.hex(), "reserved": self.reserved}
        return json.dumps(fields | {"sha256": _checksum(fields)}).encode()


class Nonces:
    """The nonces of one camera. The directory must be locked. Threads may share it."""

    def __init__(self, directory: PrivateDirectory, secret: bytes) -> None:
        """Go on where the file says. `secret` is 32 bytes that only this camera has.

        Raises DamagedDeviceStateError where the file is missing or does not read as written.
        """
        self._directory = directory
        self._kept = _read(directory)
        self._key = hmac.digest(secret, b"birthmark-nonces-v1" + self._kept.lineage, "sha256")
        self._next = self._kept.reserved
        self._lock = threading.Lock()

    def draw(self) -> bytes:
        """Return 12 bytes that this camera has not used and will not use again.

        Raises DeviceStorageError where a new block cannot be reserved, as on a full disk;
        NoncesUsedUpError after 2**32.
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
        self._kept = ahead


def begin(directory: PrivateDirectory) -> None:
    """Begin a lineage of nonces at count 0, whatever is there. Raises DeviceStorageError.

    Only for a new camera, or where the file is lost: the lineage's permutation is another one, so
    that its nonces and those from before meet no more often than those of two cameras.
    """
    directory.write(FILE, _Reservation(os.urandom(_LINEAGE_BYTES), 0).to_json())


def permute(key: bytes, number: bytes) -> bytes:
    """Return another 12 bytes for each 12 bytes: a permutation that `key` chooses."""
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
            f"{path} is missing, and it says which nonces are spent. Restore it, or see"
            " renew_nonces()."
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
            f"{path} is torn or altered, and it says which nonces are spent. Restore it, or see"
            " renew_nonces()."
        ) from None
    return kept


def _checksum(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
