"""Copy a SQLite database with the online backup API (https://sqlite.org/backup.html).

`backup` calls it while servers write to the database.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from birthmark_sma.authority.operations.backup_manifest import Progress
from birthmark_sma.errors import BackupError

_PAGES_A_STEP = 1_000
_BUSY_SECONDS = 10


def copy_sqlite(source: Path, target: Path, progress: Progress) -> None:
    """Copy a database, as it is at this moment, to a new file of mode 0600.

    Writers are not blocked; what they commit during the copy is not in it. `progress` counts pages.
    Raises BackupError if the source cannot be read or the copy cannot be written.
    """
    # SQLite would create the file with the umask's mode.
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(_uri(source), uri=True, timeout=_BUSY_SECONDS)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.isolation_level = None  # the sqlite3 module must not begin transactions itself
            # One read transaction from the first page to the last. Without it SQLite restarts the
            # copy after each commit of another process, and on a busy database it never ends.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(
                writing,
                pages=_PAGES_A_STEP,
                progress=lambda _, left, total: progress(total - left, total),
            )
    except sqlite3.Error as error:
        raise BackupError(f"The database cannot be copied: {_reason(error)}.") from None


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=rw"


def _reason(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorname", ""):
        case "SQLITE_FULL":
            return "the disk is full"
        case name if name.startswith("SQLITE_IOERR"):
            return "the disk fails, or is full"
        case name:
            return f"SQLite says {name or 'no more'}"
