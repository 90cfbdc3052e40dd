"""Copy a SQLite database while others write to it (https://sqlite.org/backup.html)."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from birthmark_sma.authority.operations.row_counts import Progress
from birthmark_sma.errors import BackupError

_PAGES_A_STEP = 1_000
_BUSY_SECONDS = 10


def copy_sqlite(source: Path, target: Path, progress: Progress) -> None:
    """Copy a database as it is at this moment into a new file of mode 0600.

    Writers go on: what they commit meanwhile is not in the copy. `progress` is told pages. Raises
    BackupError where the copy cannot be read or written to its end.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(_uri(source), uri=True, timeout=_BUSY_SECONDS)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.isolation_level = None
            # One read transaction from the first page to the last. Without it a copy would begin
            # anew with every commit of another process, and on a busy database never end.
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
