"""The checks of `sma doctor` that only a SQLite database needs. `runner` calls them."""

import os
from collections.abc import Iterator
from pathlib import Path

from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    check_disk,
    critical,
    info,
    ok,
    size,
)
from birthmark_sma.storage import health
from birthmark_sma.storage.engine import Database


def find_absent(file: Path) -> Finding | None:
    """Return a finding if the file is missing or empty. Call it first: opening would create it."""
    if not file.exists():
        return critical(
            f"There is no authority in {file.parent}: {file.name} is missing",
            "Type sma init, name another directory with --data-dir, or restore a backup",
            "database",
        )
    if file.is_file() and file.stat().st_size == 0:
        return critical(f"{file} is empty", "Type sma init, or restore a backup", "database")
    return None


def check_file(database: Database, file: Path) -> Iterator[Finding]:
    """Check that the file and its directory can be written."""
    with database.read() as connection:
        version = health.sqlite_version(connection)
    yield ok(f"SQLite {version} answers: {size(file.stat().st_size)} in {file}")
    locked = [path for path in (file, file.parent) if not os.access(path, os.W_OK)]
    if locked:
        yield critical(
            f"This user cannot write {locked[0]}",
            "Give it to the user that the server runs as, or type this command as that user",
            "writing",
        )
    else:
        yield ok("The file and its directory can be written", "writing")


def check_integrity(
    database: Database, file: Path, file_bytes: int | None = None
) -> Iterator[Finding]:
    """Read the whole file, and report damage. A file larger than `file_bytes` is not read."""
    if file_bytes is not None and file.stat().st_size > file_bytes:
        yield info(
            f"The file was not read for damage, because it is larger than {size(file_bytes)}",
            "Type sma doctor where the authority runs",
        )
        return
    with database.read() as connection:
        damage = health.find_damage(connection)
    if damage:
        yield critical(
            f"The file is damaged: {damage[0].splitlines()[0]}",
            "Stop the server, keep the file, and restore the newest backup",
        )
    else:
        yield ok("The whole file was read. It is not damaged")


def check_free_space(file: Path) -> Iterator[Finding]:
    """Check the free space of the disk that the file is on."""
    directory = file.absolute().parent
    if directory.is_dir():
        yield check_disk(directory)
