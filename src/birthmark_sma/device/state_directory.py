"""Store files in a camera's private directory, with a lock, and safe against power cuts.

Other users cannot read the directory, and one process owns it. When `write`, `rename` or `remove`
has returned, the change survives a power cut. If it raised, or the process was killed meanwhile,
the file is in its old state or in its new state, and never in between. `camera`, `bundle_queue`,
`clock`, `nonces` and `state` use it.
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
"""No file of a camera is a tenth as large. A larger one is not from this program."""


class DirectoryLock:
    """The lock of this process on a camera's directory, until `release` or the end of the process.

    Threads share it. Wrap everything that only the holder may do in `in_use`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._process = os.getpid()
        self._released = False
        self._users: dict[object, int] = {}
        """An entry for each `in_use` block that has not ended, with the id of its thread."""
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the lock until the end of the block, even if another thread releases it.

        Raises DeviceBusyError in a forked process, and DeviceStorageError after `release`.
        """
        # Check before taking the condition's lock: a forked process may have inherited it locked by
        # a thread that does not exist there.
        if os.getpid() != self._process:
            raise DeviceBusyError(
                "This process was forked from the process that started the camera. Start the"
                " camera after the fork."
            )
        user = object()
        try:
            try:
                with self._changed:
                    self._users[user] = threading.get_ident()
                # Check only after registering as a user: a signal handler that calls `release` at
                # this point then leaves closing the file to this block.
                if self._released:
                    raise DeviceStorageError("This camera is closed. Start it again.")
                yield
            finally:
                self._leave(user)
        except BaseException:
            # Again, because a KeyboardInterrupt may have ended the first call early.
            self._leave(user)
            raise

    def release(self) -> None:
        """Release the directory for other processes, after all threads have left `in_use`."""
        self._released = True
        if os.getpid() != self._process:
            self._users.clear()  # threads of the parent process
            self._close_if_over()
            return
        with self._changed:
            # A signal handler may call this inside `in_use`: waiting for its own thread would be a
            # deadlock. The interrupted block then closes the file.
            if threading.get_ident() not in self._users.values():
                self._changed.wait_for(lambda: not self._users)
            self._close_if_over()

    def _leave(self, user: object) -> None:
        with self._changed:
            self._users.pop(user, None)
            self._changed.notify_all()
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._released and not self._users:
            # Clear the attribute before closing: a signal handler at this point would otherwise
            # close a descriptor whose number already belongs to another file.
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class PrivateDirectory:
    """A directory of mode 0700 with files of mode 0600. POSIX systems only."""

    def __init__(self, path: Path) -> None:
        """Create the directory, or check the existing one.

        Raises DeviceStorageError if it cannot be created, or if other users can access it.
        """
        self.path = path
        with _usable(path):
            _make(path)
            _check_mode(path, path.lstat(), _DIRECTORY_MODE)

    def lock(self) -> DirectoryLock:
        """Lock the directory against all other processes.

        The lock ends with the process, however the process ends. Raises DeviceBusyError if another
        process holds it.
        """
        path = self.path / LOCK
        with _usable(path):
            # O_NOFOLLOW here and below: never follow a symbolic link that someone else put there.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise DeviceBusyError(
                        f"Another process uses {self.path}. Stop it first: only one process may"
                        " use a camera."
                    ) from None
                raise
        return DirectoryLock(descriptor)

    def clear_unfinished(self) -> None:
        """Remove the partial files of a killed process. The caller must hold the lock."""
        with _usable(self.path):
            for path in self.path.glob(f".*{_PARTIAL}"):
                path.unlink()

    def names(self) -> list[str]:
        """Return the names of the complete files, sorted."""
        with _usable(self.path):
            return sorted(path.name for path in self.path.iterdir() if path.suffix != _PARTIAL)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist.

        Raises DeviceStorageError if other users can read it or if it cannot be read, and
        DamagedDeviceStateError if it is larger than 1 MiB.
        """
        path = self.path / name
        with _usable(path):
            try:
                # O_NONBLOCK: opening a FIFO in its place must not wait for a writer.
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                _check_mode(path, os.fstat(descriptor), _FILE_MODE)
                content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise DamagedDeviceStateError(
                f"{path} has more than {_MAX_FILE_BYTES} bytes, so it is not a file of a camera."
                " Restore it."
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file: complete and on disk, or not at all.

        Raises DeviceStorageError, for example on a full disk.
        """
        path = self.path / name
        partial = self.path / f".{name}.{secrets.token_hex(4)}{_PARTIAL}"
        with _usable(path):
            try:
                # Order matters: sync the content, then rename, then sync the directory. A power
                # cut between two steps leaves the old or the new file.
                _write_durably(partial, content)
                partial.replace(path)
                _sync(self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise

    def create(self, name: str, content: bytes) -> None:
        """Create a new file: complete and on disk, or not at all. The caller must hold the lock.

        Raises DeviceStorageError, also if a file of this name exists; that file stays unchanged.
        """
        path = self.path / name
        # Checking first is safe under the lock. A hard link would need no check, but FAT and exFAT
        # have none.
        with _usable(path):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.write(name, content)

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file. Raises DeviceStorageError."""
        with _usable(self.path / name):
            (self.path / name).replace(self.path / new_name)
            _sync(self.path)

    def remove(self, name: str) -> None:
        """Remove a file. A missing file is no error. Raises DeviceStorageError."""
        with _usable(self.path / name):
            (self.path / name).unlink(missing_ok=True)
            _sync(self.path)


def _make(path: Path) -> None:
    """Create a directory and its missing parents, and sync each to the disk."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        _sync(missing.parent)


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, _FILE_MODE)  # independent of the umask
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    """Sync a directory, so that created, renamed and removed files survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_mode(path: Path, status: os.stat_result, mode: int) -> None:
    right_kind = stat.S_ISDIR if mode == _DIRECTORY_MODE else stat.S_ISREG
    if not right_kind(status.st_mode):
        raise DeviceStorageError(f"{path} is not a file or directory of a camera. Move it away.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DeviceStorageError(f"Other users can access {path}. Run: chmod {mode:o} {path}")
    if status.st_uid != os.geteuid():
        raise DeviceStorageError(
            f"{path} belongs to another user. Change its owner, or run the program as that user."
        )


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Raise DeviceStorageError in place of an OSError of the block. `path` is in the message."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or "unknown error"
        raise DeviceStorageError(f"{path} cannot be used: {reason}.") from None
