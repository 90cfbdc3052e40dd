"""Read and write files with secrets: mode 0600, and complete or absent after a crash.

The passphrase, the root's encrypted key, backups and local TLS keys are written here. Messages of
errors name the path, never the content.
"""

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
    """Write a file of mode 0600 atomically and durably.

    Raises PrivateFileError if the file exists and `replace` is false, or if it cannot be written.
    """
    if path.exists() and not replace:
        raise PrivateFileError(f"{path} exists already and is never overwritten.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        _write_durably(partial, content)
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)  # unlike rename, it fails if the file was created meanwhile
        sync_directory(path.parent)  # makes the new name survive a power cut
    except FileExistsError:
        raise PrivateFileError(f"{path} exists already and is never overwritten.") from None
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_private_file(path: Path) -> bytes:
    """Return the content of a file that only its owner can read.

    Raises PrivateFileError if it is missing, cannot be read, or is accessible to other users.
    """
    try:
        with path.open("rb") as file:
            # The mode of the open file, so that it cannot be replaced between check and read.
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
    """Return whether other users can read, write or enter a file or directory.

    Raises OSError if it does not exist.
    """
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def make_private_directory(path: Path) -> None:
    """Create a directory and its missing parents with mode 0700; existing ones stay unchanged.

    Raises PrivateFileError if it cannot be created, or if the path is a file.
    """
    try:
        for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PrivateFileError(f"The directory {path} cannot be made: {error.strerror}.") from None
    if not path.is_dir():
        raise PrivateFileError(f"The directory {path} cannot be made: a file is there.")


def sync_directory(path: Path) -> None:
    """Call fsync on a directory, so that new and renamed files in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_private_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file of mode 0600 for writing; it is durable when the block ends without an error.

    Raises OSError, and FileExistsError if the file exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, _OWNER_ONLY)  # the umask may have removed bits from the mode
        yield file
        file.flush()
        os.fsync(descriptor)


def _write_durably(path: Path, content: bytes) -> None:
    with new_private_file(path) as file:
        file.write(content)
