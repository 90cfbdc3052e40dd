"""Faults of SQLite: its file, its disk, and other programs that use it."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from tests.faults.beds import Bed, BedKind
from tests.faults.fault import HANGING_SECONDS, QUICK_SECONDS, Fault
from tests.support.databases import sqlite_faults


def _to_file(
    act: Callable[[Path], Callable[[], object]],
) -> Callable[[Bed], AbstractContextManager[None]]:
    @contextmanager
    def play(bed: Bed) -> Iterator[None]:
        undo = act(sqlite_faults.file_of(bed.running))
        yield
        undo()

    return play


def _read_only(file: Path) -> Callable[[], object]:
    mode = file.stat().st_mode
    file.chmod(0o444)
    return lambda: file.chmod(mode)


def _folder_gone(file: Path) -> Callable[[], object]:
    folder = file.parent
    aside = folder.with_name("aside")
    folder.rename(aside)
    return lambda: aside.rename(folder)


def _table_gone(file: Path) -> Callable[[], object]:
    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(file, timeout=30)) as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("validation_history", "elsewhere")
    return lambda: rename("elsewhere", "validation_history")


@contextmanager
def _endless_reader(bed: Bed) -> Iterator[None]:
    file = sqlite_faults.file_of(bed.running)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM validation_history").fetchone()
        yield
        connection.execute("ROLLBACK")


def _fault(
    name: str,
    play: Callable[[Bed], AbstractContextManager[None]],
    seconds: float = QUICK_SECONDS,
) -> Fault:
    return Fault(name, play, seconds, BedKind.SQLITE)


FAULTS = (
    _fault(
        "file locked by another writer",
        lambda bed: sqlite_faults.locked_file(bed.running),
        HANGING_SECONDS,
    ),
    _fault("disk full (no file may grow)", lambda bed: sqlite_faults.full_disk(bed.running)),
    _fault("file made read-only (chmod 0444)", _to_file(_read_only)),
    _fault("file removed, then put back", _to_file(sqlite_faults.removed)),
    _fault("file replaced by a copy", _to_file(sqlite_faults.replaced)),
    _fault("write-ahead log removed", _to_file(sqlite_faults.journal_removed)),
    _fault("folder gone", _to_file(_folder_gone)),
    _fault("table of the audit log gone", _to_file(_table_gone)),
    _fault("endless reader", _endless_reader),
)
