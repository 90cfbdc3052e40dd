"""Notice that SQLite's file was removed or replaced while it is open.

The system lets a program go on with a file that has lost its name: SQLite would commit to it, and
all of that would be gone with the last process. The journal (`-wal`) and its index (`-shm`) hold
the newest commits, and lie beside the file as long as any connection is open.
"""

import contextlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError

_Identity: TypeAlias = tuple[int, int] | None
"""Device and inode of a file; None where there is none."""

_IDENTITIES = "sma_files"
_JOURNALS = ("-wal", "-shm")


class SqliteFile:
    """A database file by its path, and which file that was when it was first opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: tuple[Path, ...] = (path,)
        self._first: _Identity = None
        self.lost = False
        """It was not the file that is open when it was last looked at."""

    @property
    def is_known(self) -> bool:
        """Say whether it was opened."""
        return self._first is not None

    def prepare(self) -> None:
        """Before a connection: make the file private, and refuse another than the first one.

        SQLite would make an empty file where there is none. Its journals get the mode of the file.
        """
        if self._first is not None:
            self._compare((self._first,))
            return
        with contextlib.suppress(OSError):
            self.path.touch(mode=0o600, exist_ok=True)
        real = self.path.resolve()  # journals lie beside the file that a link leads to
        self._places = (self.path, *(real.with_name(real.name + each) for each in _JOURNALS))

    def remember(self, connection_info: MutableMapping[str, Any]) -> None:
        """After a connection was made: note which files it has open."""
        found = tuple(map(_identity, self._places))
        if self._first is None:
            self._first = found[0]
        self._compare((self._first,))
        connection_info[_IDENTITIES] = found

    def check(self, connection_info: MutableMapping[str, Any]) -> None:
        """Raise DatabaseUnavailableError unless a connection's files are where they were."""
        self._compare(connection_info[_IDENTITIES])

    def _compare(self, known: tuple[_Identity, ...]) -> None:
        # Those that were not there when the connection was made are not compared.
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
