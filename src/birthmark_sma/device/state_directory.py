"""A directory of a camera's own: nobody else reads it, one process has it, no file is ever torn.

The contract of this room: when `write`, `rename` or `remove` has returned, a power cut changes
nothing about it; when it raised, or the process was killed meanwhile, the file is as it was before
or as it should become, and never anything between.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from birthmark_sma.errors import DamagedDeviceStateError, DeviceBusyError, DeviceStorageError

LOCK = "lock"
_PARTIAL = ".partial"
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_MAX_FILE_BYTES = 1_048_576
"""No file of a camera's is a tenth of this; one that is larger is none of ours."""


class DirectoryLock:
    """This process has a camera's directory to itself, until `release` or its own end.

    Threads share it. What only the holder may do is done within `in_use`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._process = os.getpid()
        self._released = False
        self._users: list[int] = []
        """The threads that are within `in_use`."""
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the lock until the end of the block, even if another thread releases it.

        Raises DeviceBusyError in a process that was forked off, DeviceStorageError after `release`.
        """
        # Before the condition: a forked process may have got it from a thread that is not there.
        if os.getpid() != self._process:
            raise DeviceBusyError(
                "This process was forked from the camera's: start the camera after forking."
            )
        thread = threading.get_ident()
        with self._changed:
            self._users.append(thread)
        try:
            # Not before: a handler of signals that releases it just here leaves it to this block.
            if self._released:
                raise DeviceStorageError("This camera is closed.")
            yield
        finally:
            with self._changed:
                self._users.remove(thread)
                self._changed.notify_all()
                self._close_if_over()

    def release(self) -> None:
        """Let another process have the directory, once nobody in this one uses it any more."""
        self._released = True
        if os.getpid() != self._process:
            self._users.clear()  # they are threads of its parent's
            self._close_if_over()
            return
        with self._changed:
            if threading.get_ident() not in self._users:  # else a handler of signals calls this
                self._changed.wait_for(lambda: not self._users)
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._released and not self._users:
            # Forgotten first: a handler of signals that comes just here closes no other's file.
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class PrivateDirectory:
    """A directory of mode 0700 with files of mode 0600. POSIX systems only."""

    def __init__(self, path: Path) -> None:
        """Make the directory, or check the one that is there.

        Raises DeviceStorageError where it cannot be made, or where others can enter it.
        """
        self.path = path
        try:
            _make(path)
            _check_mode(path, path.lstat(), _DIRECTORY_MODE)
        except OSError as error:
            raise _unusable(path, error) from None

    def lock(self) -> DirectoryLock:
        """Keep every other process out until the lock is released.

        The lock ends with the process, however it ends. Raises DeviceBusyError where another
        process has it.
        """
        path = self.path / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(descriptor)
                raise
        except BlockingIOError:
            raise DeviceBusyError(
                f"Another process uses {self.path}: a camera belongs to one process at a time."
            ) from None
        except OSError as error:
            raise _unusable(path, error) from None
        return DirectoryLock(descriptor)

    def clear_unfinished(self) -> None:
        """Remove what a killed process was writing. Only for who keeps all others out."""
        try:
            for path in self.path.glob(f".*{_PARTIAL}"):
                path.unlink()
        except OSError as error:
            raise _unusable(self.path, error) from None

    def names(self) -> list[str]:
        """Return the names of its files, sorted."""
        try:
            return sorted(path.name for path in self.path.iterdir() if path.suffix != _PARTIAL)
        except OSError as error:
            raise _unusable(self.path, error) from None

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is no such file.

        Raises DeviceStorageError where others can read it, or where it cannot be read.
        """
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error) from None
        with os.fdopen(descriptor, "rb") as file:
            _check_mode(path, os.fstat(descriptor), _FILE_MODE)
            try:
                content = file.read(_MAX_FILE_BYTES + 1)
            except OSError as error:
                raise _unusable(path, error) from None
        if len(content) > _MAX_FILE_BYTES:
            raise DamagedDeviceStateError(f"{path} is far too large to be a camera's.")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it: whole and on disk, or not at all.

        Raises DeviceStorageError, on a full disk for example.
        """
        path = self.path / name
        partial = self.path / f".{name}.{secrets.token_hex(4)}{_PARTIAL}"
        try:
            _write_durably(partial, content)
            partial.replace(path)
            _sync(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise _unusable(path, error) from None

    def create(self, name: str, content: bytes) -> None:
        """Write a new file: whole and on disk, or not at all. Only for who keeps all others out.

        Raises DeviceStorageError, also where there is a file of this name, which stays as it is.
        """
        path = self.path / name
        # Not by a hard link, which would need no looking before: FAT and exFAT have none.
        if os.path.lexists(path):
            raise _unusable(path, FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))
        self.write(name, content)

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name. Raises DeviceStorageError."""
        try:
            (self.path / name).replace(self.path / new_name)
            _sync(self.path)
        except OSError as error:
            raise _unusable(self.path / name, error) from None

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error. Raises DeviceStorageError."""
        try:
            (self.path / name).unlink(missing_ok=True)
            _sync(self.path)
        except OSError as error:
            raise _unusable(self.path / name, error) from None


def _make(path: Path) -> None:
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        _sync(missing.parent)


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, _FILE_MODE)  # whatever the umask left of it
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_mode(path: Path, status: os.stat_result, mode: int) -> None:
    right_kind = stat.S_ISDIR if mode == _DIRECTORY_MODE else stat.S_ISREG
    if not right_kind(status.st_mode):
        raise DeviceStorageError(f"{path} is in the way: it is not what a camera keeps there.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DeviceStorageError(f"{path} is open to others. Type: chmod {mode:o} {path}")
    if status.st_uid != os.geteuid():
        raise DeviceStorageError(f"{path} belongs to another user than the one who runs this.")


def _unusable(path: Path, error: OSError) -> DeviceStorageError:
    return DeviceStorageError(f"{path} cannot be used: {error.strerror or 'it cannot be read'}.")
