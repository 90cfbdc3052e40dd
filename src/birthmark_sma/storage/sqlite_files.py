"""Detect that SQLite's database file was removed or replaced while it is open.

A process can keep writing to a file that was removed. SQLite would commit to it, and these commits
would be lost when the last process ends. The same applies to the write-ahead log (`-wal`), which
holds the newest commits, and to its index (`-shm`). Both lie beside the database file while any
connection is open. `storage.engine` calls this module around each transaction.
"""

import contextlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError

_Identity: TypeAlias = tuple[int, int] | None
"""Device number and inode of a file, or None if there is no file."""

_IDENTITIES = "sma_files"
_JOURNALS = ("-wal", "-shm")


class SqliteFile:
    """The path of a database file, and the identity that the file had when it was first opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: tuple[Path, ...] = (path,)
        self._first: _Identity = None
        self.lost = False
        """True if the last check found that the file was removed or replaced."""

    @property
    def wal_bytes(self) -> int:
        """The size of the write-ahead log in bytes; 0 if there is none."""
        try:
            real = self.path.resolve()
            return real.with_name(real.name + _JOURNALS[0]).stat().st_size
        except OSError:
            return 0

    @property
    def is_known(self) -> bool:
        """True once the file has been opened."""
        return self._first is not None

    def prepare(self) -> None:
        """Create the file with mode 0600 if needed. Called before each new connection.

        Raises DatabaseUnavailableError if the file is not the one that was opened first.
        """
        # SQLite would replace a missing file by an empty one, and with the umask's mode. It gives
        # its journals the mode of the file.
        if self._first is not None:
            self._compare((self._first,))
            return
        with contextlib.suppress(OSError):
            self.path.touch(mode=0o600, exist_ok=True)
        real = self.path.resolve()  # SQLite puts its journals beside the target of a symbolic link
        self._places = (self.path, *(real.with_name(real.name + each) for each in _JOURNALS))

    def remember(self, connection_info: MutableMapping[str, Any]) -> None:
        """Record in `connection_info` which files a new connection has open.

        Raises DatabaseUnavailableError if the file was replaced while the connection was made.
        """
        found = tuple(map(_identity, self._places))
        if self._first is None:
            self._first = found[0]
        self._compare((self._first,))
        connection_info[_IDENTITIES] = found

    def check(self, connection_info: MutableMapping[str, Any]) -> None:
        """Raise DatabaseUnavailableError if a file of this connection was removed or replaced."""
        self._compare(connection_info[_IDENTITIES])

    def _compare(self, known: tuple[_Identity, ...]) -> None:
        # Files that did not exist when the connection was made (None) are not compared. Not strict,
        # because some callers compare the database file only.
        self.lost = any(
            each is not None and _identity(place) != each
            for each, place in zip(known, self._places, strict=False)
        )
        if self.lost:
            raise DatabaseUnavailableError(
                "The database file was removed or replaced while it was open",
                "verdicts given before may be in the removed file alone. Put that very file and its"
                " -wal back, and it goes on by itself; or restore a backup, and restart",
                DatabaseFault.MOVED,
            )


def _identity(place: Path) -> _Identity:
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
