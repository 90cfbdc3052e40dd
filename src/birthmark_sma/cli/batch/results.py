"""What provisioning in bulk leaves: results exactly once, whenever the process ended.

A result is first written, durably, to a file of its chunk in a directory beside the results; then
the devices are committed; then the results are appended. So a result stands in the results only
once its device is registered, and whatever was committed is found again: at the start of a run,
chunks that were left are looked up in the register, and results of registered devices appended.
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Finds the provisioning ids of those of these serials that are registered, or ever will be."""

_PATIENCE_SECONDS = 10
_BEGINNING = b'{"device_certificate":"-----BEGIN CERTIFICATE'
"""What every result begins with."""


class ResultState(Enum):
    """What the results have of a device that is registered."""

    WRITTEN = auto()
    """The result of this very line."""
    ANOTHER_REQUEST = auto()
    """A result of another line for the same serial."""
    ABSENT = auto()
    """Nothing for this line: somebody else registered it, or another line of the same text."""


class Results:
    """The results, and the chunks on their way there.

    Of what earlier runs wrote it holds 17 bytes a device, and never a line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file = file
        self._pending = _pending_directory(path)
        self._written = _Written()

    def recover(self, registered: Registered, root: str) -> int:
        """Read what is there, mend a torn end, append what was committed but not yet written.

        Returns how many results were appended. Raises BatchFileError, with nothing touched, where
        the file is another's, or where results are not of the authority with this root: a register
        that knows nothing of their devices must not decide that they were never committed.
        """
        pending = dict(_pending_lines(self._pending, root))
        for result in _whole_lines(self._file, root):
            self._written.note(*result)
            pending.pop(result[0], None)
        found = registered([_serial(line) for line in pending.values()]) if pending else {}
        lines = [line for id_, line in pending.items() if found.get(_serial(line)) == id_]
        for line in lines:
            self._written.note(*_identity(line, root))
        self._append(b"".join(lines))
        for part in self._pending.iterdir():
            part.unlink()
        self._written.sort()
        return len(lines)

    def keep(self, lines: Sequence[bytes]) -> Path:
        """Make results durable before their devices are committed. Runs in any process."""
        part = self._pending / f"{secrets.token_hex(8)}.jsonl"
        write_private_file(part, b"".join(lines))
        return part

    def write(self, lines: bytes, part: Path | None) -> None:
        """Append the results of devices that are committed now, and let go of their chunk."""
        self._append(lines)
        if part is not None:
            part.unlink()

    def claim(self, provisioning_id: str, request_digest: str) -> ResultState:
        """Say what earlier runs wrote of a device; the same line is recognised only once."""
        return self._written.claim(provisioning_id, request_digest)

    def close(self) -> None:
        """Leave nothing but the results, unless something is still on its way."""
        if not any(self._pending.iterdir()):
            self._pending.rmdir()
        with contextlib.suppress(OSError):  # what was written is on disk, and the rest is pending
            self._file.close()

    def _append(self, lines: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())


class _Written:
    """Which results there are: sorted 64-bit numbers in place of strings, which would be tenfold.

    A provisioning id ends in 64 random bits, and of a digest 64 bits tell two requests apart.
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
    """Open or make the results, which one run at a time may do.

    The lock is inherited by processes that are forked off, so a run that was killed holds it until
    the last of them has ended. Raises BatchFileError where another run goes on, and
    PrivateFileError where the file cannot be written or is open to others.
    """
    try:
        make_private_directory(path.absolute().parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}.") from None
    if os.fstat(descriptor).st_mode & 0o077:
        os.close(descriptor)
        raise PrivateFileError(f"{path} can be read by others. Type: chmod 600 {path}")
    _lock(descriptor, path)
    make_private_directory(_pending_directory(path))
    sync_directory(path.absolute().parent)
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


def _pending_lines(directory: Path, root: str) -> Iterator[tuple[str, bytes]]:
    """Return the results of chunks that were left. A torn chunk was never committed."""
    for part in directory.glob("*.jsonl"):
        for line in part.read_bytes().splitlines(keepends=True):
            yield _identity(line, root)[0], line


def _whole_lines(file: BinaryIO, root: str) -> Iterator[tuple[str, str]]:
    """Return what each result is of, and cut off a last line that a crash has torn.

    Nothing is cut off that this program cannot have written.
    """
    file.seek(0)
    whole = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            if not _is_torn_result(line):
                raise _not_ours(number)
            break
        try:
            identity = _identity(line, root)
        except (ValueError, KeyError, TypeError, IndexError):
            raise _not_ours(number) from None
        yield identity
        whole += len(line)
    file.truncate(whole)


def _is_torn_result(line: bytes) -> bool:
    """Whether a crash can have left this of a result; of a lost block, file systems leave zeros."""
    return line.startswith(_BEGINNING[: len(line)]) or not line.strip(b"\0")


def _not_ours(number: int) -> BatchFileError:
    return BatchFileError(
        f"Line {number} of the results is none of this program's: name another --output."
    )


def _identity(line: bytes, root: str) -> tuple[str, str]:
    result = json.loads(line)
    if result["certificate_chain"][-1] != root:
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
