"""The results file of a batch: each registered device has its result exactly once, after any crash.

1. Write the results of a chunk durably to a file in a "pending" directory beside the results file.
2. Commit the devices. 3. Append the results to the results file and delete the chunk's file.
So a result in the file implies a registered device. After a crash, `recover` looks up the devices
of the pending chunks in the database, appends the results of the registered ones and drops the
rest. `batch/run.py` and the worker processes call it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

from birthmark_sma.errors import BatchFileError, PrivateFileError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    sync_directory,
    write_private_file,
)

Registered = Callable[[Sequence[str]], Mapping[str, str]]
"""Maps serials to provisioning ids. A serial that it omits is not registered, and no commit that is
under way will register it."""

# A run that was killed keeps the lock until its worker processes have ended.
_PATIENCE_SECONDS = 10
_BEGINNING = b'{"device_certificate":"-----BEGIN CERTIFICATE'
"""The first bytes of every result. The order of ProvisionResponse's fields fixes them."""


class ResultState(Enum):
    """Relation of the results file to a line whose serial is registered."""

    WRITTEN = auto()
    """The file has the result of this same line."""
    ANOTHER_REQUEST = auto()
    """The file has the result of a different line for the same serial."""
    ABSENT = auto()
    """No result is left for this line.

    Another program registered the serial, or a line with the same text claimed the result already.
    """


class Results:
    """The results file, and the pending chunks beside it.

    Of the results of earlier runs it holds 17 bytes for each device, and no line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file = file
        self._pending = _pending_directory(path)
        self._written = _Written()

    def recover(self, registered: Registered, roots: Collection[str]) -> int:
        """Read the file, cut off a torn last line, append committed results that are missing.

        Return the number of appended results. Raises BatchFileError, before any change, if this
        program did not write the file, or if results belong to an authority with other roots. The
        database of another authority does not have these devices, so it would drop their results
        as never committed.
        """
        pending = dict(_pending_lines(self._pending, roots))
        for result in _whole_lines(self._file, roots):
            self._written.note(*result)
            pending.pop(result[0], None)
        found = registered([_serial(line) for line in pending.values()]) if pending else {}
        lines = [line for id_, line in pending.items() if found.get(_serial(line)) == id_]
        for line in lines:
            self._written.note(*_identity(line, roots))
        self._append(b"".join(lines))
        # Only after the append is durable: until then a chunk's file is the only copy.
        for part in self._pending.iterdir():
            part.unlink()
        self._written.sort()
        return len(lines)

    def keep(self, lines: Sequence[bytes]) -> Path:
        """Write results durably to a pending chunk and return its file.

        Call it before the devices are committed. It is safe in any process: each chunk has a file
        of its own.
        """
        part = self._pending / f"{secrets.token_hex(8)}.jsonl"
        write_private_file(part, b"".join(lines))
        return part

    def write(self, lines: bytes, part: Path | None) -> None:
        """Append the results of devices that are committed, then delete their pending chunk."""
        self._append(lines)
        if part is not None:
            part.unlink()

    def claim(self, provisioning_id: str, request_digest: str) -> ResultState:
        """Return what earlier runs wrote about a device. The same line is recognised only once."""
        return self._written.claim(provisioning_id, request_digest)

    def close(self) -> None:
        """Close the file, and remove the pending directory if it is empty."""
        if not any(self._pending.iterdir()):
            self._pending.rmdir()
        with contextlib.suppress(OSError):  # written results are on disk, the others are pending
            self._file.close()

    def _append(self, lines: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())  # the caller deletes the pending chunk next


class _Written:
    """Index of the written results, for binary search.

    Layout: two sorted arrays of 64-bit numbers and one byte for each line, 17 bytes for each
    device. Strings would need ten times as much. A provisioning id ends in 64 random bits. `_lines`
    holds the id XOR the first 64 bits of the request's digest, so it finds an id and its request
    together.
    """

    def __init__(self) -> None:
        self._ids = array("Q")
        self._lines = array("Q")
        self._claimed = bytearray()

    def note(self, provisioning_id: str, request_digest: str) -> None:
        id_, line = _numbers(provisioning_id, request_digest)
        self._ids.append(id_)
        self._lines.append(line)

    def sort(self) -> None:
        self._ids = array("Q", sorted(self._ids))
        self._lines = array("Q", sorted(self._lines))
        self._claimed = bytearray(len(self._lines))

    def claim(self, provisioning_id: str, request_digest: str) -> ResultState:
        id_, line = _numbers(provisioning_id, request_digest)
        place = bisect_left(self._lines, line)
        if place < len(self._lines) and self._lines[place] == line:
            if self._claimed[place]:
                return ResultState.ABSENT
            self._claimed[place] = 1
            return ResultState.WRITTEN
        place = bisect_left(self._ids, id_)
        known = place < len(self._ids) and self._ids[place] == id_
        return ResultState.ANOTHER_REQUEST if known else ResultState.ABSENT


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """Open or create the results file under an exclusive lock: one run at a time.

    Forked processes inherit the lock, so a killed run holds it until its last process has ended.
    Raises BatchFileError if another run still holds the lock after 10 seconds. Raises
    PrivateFileError if the file cannot be written, or if others can read it.
    """
    try:
        make_private_directory(path.absolute().parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}.") from None
    # Results contain table keys and private keys. The mode of an existing file is not changed by
    # os.open, so check it.
    if os.fstat(descriptor).st_mode & 0o077:
        os.close(descriptor)
        raise PrivateFileError(f"{path} can be read by others. Type: chmod 600 {path}")
    _lock(descriptor, path)
    make_private_directory(_pending_directory(path))
    sync_directory(path.absolute().parent)  # both names must survive a power failure
    results = Results(path, os.fdopen(descriptor, "r+b"))
    try:
        yield results
    finally:
        results.close()


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise BatchFileError(f"Another run writes to {path} at this moment.") from None
            time.sleep(0.05)
        else:
            return


def _pending_directory(path: Path) -> Path:
    return path.absolute().with_name(f".{path.name}.pending")


def _pending_lines(directory: Path, roots: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Return provisioning id and line of each result in the pending chunks.

    A chunk's file is whole or absent, because `write_private_file` names it once it is on disk.
    """
    for part in directory.glob("*.jsonl"):  # not the *.partial of an interrupted write
        for line in part.read_bytes().splitlines(keepends=True):
            yield _identity(line, roots)[0], line


def _whole_lines(file: BinaryIO, roots: Collection[str]) -> Iterator[tuple[str, str]]:
    """Return provisioning id and request digest of each result. Cut off a torn last line.

    Raises BatchFileError for a line that this program cannot have written, and cuts nothing off.
    """
    file.seek(0)
    whole = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            if not _is_torn_result(line):
                raise _not_ours(number)
            break
        try:
            identity = _identity(line, roots)
        except (ValueError, KeyError, TypeError, IndexError):
            raise _not_ours(number) from None
        yield identity
        whole += len(line)
    file.truncate(whole)


def _is_torn_result(line: bytes) -> bool:
    """Return whether a crash can have left this line: part of a result, or only zero bytes.

    File systems fill a lost block with zeros.
    """
    return line.startswith(_BEGINNING[: len(line)]) or not line.strip(b"\0")


def _not_ours(number: int) -> BatchFileError:
    return BatchFileError(
        f"Line {number} of the results is none of this program's: name another --output."
    )


def _identity(line: bytes, roots: Collection[str]) -> tuple[str, str]:
    result = json.loads(line)
    if result["certificate_chain"][-1] not in roots:
        raise BatchFileError(
            "The results are of another authority: name the database that they were made with, or"
            " another --output."
        )
    return result["provisioning_id"], result["request_sha256"]


def _serial(line: bytes) -> str:
    return str(json.loads(line)["device_serial"])


def _numbers(provisioning_id: str, request_digest: str) -> tuple[int, int]:
    id_ = int(provisioning_id.rpartition("-")[2], 16)
    return id_, id_ ^ int(request_digest[:16], 16)
