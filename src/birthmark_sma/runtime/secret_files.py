"""Files that hold secrets: readable by their owner alone, and whole or absent after a crash."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from birthmark_sma.errors import PrivateFileError

_OWNER_ONLY = 0o600


def write_private_file(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file of mode 0600 that exists whole, on disk, or not at all.

    Raises PrivateFileError where it exists already and `replace` is false, or cannot be written.
    """
    if path.exists() and not replace:
        raise PrivateFileError(f"{path} exists already and is never overwritten.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        _write_durably(partial, content)
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)  # unlike a rename, this never replaces a file made meanwhile
        sync_directory(path.parent)
    except FileExistsError:
        raise PrivateFileError(f"{path} exists already and is never overwritten.") from None
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_private_file(path: Path) -> bytes:
    """Return the content of a file that nobody but its owner can read.

    Raises PrivateFileError where it is missing, unreadable, or open to others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        raise PrivateFileError(f"{path} does not exist.") from None
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise PrivateFileError(f"{path} can be read by others. Type: chmod 600 {path}")
    return content


def others_can_read(path: Path) -> bool:
    """Say whether anybody but its owner can read, write or enter a file or directory."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, of mode 0700; one that exists stays as it is."""
    try:
        for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PrivateFileError(f"The directory {path} cannot be made: {error.strerror}.") from None
    if not path.is_dir():
        raise PrivateFileError(f"The directory {path} cannot be made: a file is there.")


def sync_directory(path: Path) -> None:
    """Make what was created or renamed in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_private_file(path: Path) -> Iterator[BinaryIO]:
    """Make a file of mode 0600 to write into; it is on disk when the block ends. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, _OWNER_ONLY)  # whatever the umask left of it
        yield file
        file.flush()
        os.fsync(descriptor)


def _write_durably(path: Path, content: bytes) -> None:
    with new_private_file(path) as file:
        file.write(content)
