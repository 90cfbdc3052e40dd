"""Make a backup while servers run: a copy of the database at one moment, and a manifest.

`sma backup` calls `make_backup`. The backup is written to a hidden directory beside the target and
renamed when everything is on disk. An interrupted backup keeps its hidden name, so it is never
mistaken for a complete one; the next backup to the same parent directory removes it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import Connection, text

from birthmark_sma import __version__
from birthmark_sma.authority.authority import opened_database
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations import pg_dump
from birthmark_sma.authority.operations.backup_manifest import (
    FORMAT,
    POSTGRESQL_FILE,
    SQLITE_FILE,
    Manifest,
    Progress,
    measure,
    take_inventory,
    write_manifest,
)
from birthmark_sma.authority.operations.secrets_in_backup import copy_secrets
from birthmark_sma.authority.operations.sqlite_copy import copy_sqlite
from birthmark_sma.config import Settings
from birthmark_sma.errors import BackupError, BackupPlaceTakenError, NotInitialisedError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    new_private_file,
    sync_directory,
)
from birthmark_sma.storage import health
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.locks import hold_snapshot
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.schema import HEAD_REVISION

Bar = Callable[[str, Literal["bytes", "steps"]], AbstractContextManager[Progress]]
"""Opens a progress bar. Its arguments are a label, and whether bytes or steps are counted."""

_UNFINISHED = ".sma-backup"
_UNFINISHED_NAMES = f".*{_UNFINISHED}"


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup: its directory and its manifest."""

    folder: Path
    manifest: Manifest


def make_backup(settings: Settings, target: Path, bar: Bar, *, with_secrets: bool) -> Backup:
    """Copy the database, as it is at one moment, into the new directory `target`.

    Servers are not blocked; what they commit during the copy is not in it. `with_secrets` also
    copies the files beside the database: the generated passphrase (SQLite only) and the root's
    encrypted key. Raises NotInitialisedError, BackupPlaceTakenError, BackupError, or the errors of
    opening the database. After an error nothing is left at the target.
    """
    target = target.absolute()
    if target.exists() or target.is_symlink():
        raise BackupPlaceTakenError(f"{target} exists already and is never overwritten.")
    if target.match(_UNFINISHED_NAMES):
        raise BackupError(
            f"An unfinished backup has a name like {target.name}, and the next backup removes it."
            " Choose another name."
        )
    with opened_database(settings) as database, _unfinished(target) as folder:
        with database.read() as connection:
            if key_table_store.find_sizes(connection) is None:
                raise NotInitialisedError
        try:
            manifest = _fill(database, settings, folder, bar, with_secrets=with_secrets)
            # All files are on disk before the rename, and the new name after it: a power cut
            # leaves a complete backup or none.
            write_manifest(folder, manifest)
            sync_directory(folder)
            folder.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            if target.exists():
                raise BackupPlaceTakenError(f"{target} exists already.") from None
            raise BackupError(
                f"{target} cannot be written: {error.strerror}. Nothing is left of it."
            ) from None
    return Backup(target, manifest)


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Create the hidden directory of a backup, locked, and remove it unless it was renamed.

    The lock (flock) marks it as in use: see `_remove_abandoned`.
    """
    make_private_directory(target.parent)
    _remove_abandoned(target.parent)
    folder = target.with_name(f".{target.name}{_UNFINISHED}")
    try:
        folder.mkdir(mode=0o700)
        held = os.open(folder, os.O_RDONLY)
    # FileNotFoundError: another backup removed the directory before it was locked here.
    except (FileExistsError, FileNotFoundError):
        raise BackupPlaceTakenError(
            f"Another backup to {target} is running. Wait for it."
        ) from None
    except OSError as error:
        raise BackupError(f"{target} cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of interrupted backups: those that no process has locked."""
    for left in parent.glob(_UNFINISHED_NAMES):
        with suppress(OSError):  # BlockingIOError: this backup is still being made
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(held)


def _fill(
    database: Database, settings: Settings, folder: Path, bar: Bar, *, with_secrets: bool
) -> Manifest:
    beside = copy_secrets(settings, folder) if with_secrets else {}
    if (file := settings.sqlite_file) is not None:
        described = _from_sqlite(file, folder, bar)
    else:
        described = _from_postgresql(database, settings, folder, bar)
    name = described.database_file
    with bar("Taking checksums", "bytes") as progress:
        files = {**beside, name: measure(folder / name, progress)}
    return described.model_copy(update={"files": files})


def _from_sqlite(source: Path, folder: Path, bar: Bar) -> Manifest:
    file = folder / SQLITE_FILE
    needed, free = source.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise BackupError(
            f"The disk of {folder.parent} has too little free space: {needed:,} bytes are needed,"
            f" {free:,} are free."
        )
    with bar("Copying", "steps") as progress:
        copy_sqlite(source, file, progress)
    copy = open_database(f"sqlite:///{file}")
    try:
        with copy.read() as connection, bar("Reading the copy", "steps") as progress:
            if health.find_damage(connection):
                raise BackupError(
                    "The database is damaged, so it was not backed up. Keep all older backups, and"
                    " type sma doctor."
                )
            described = _describe(connection, "sqlite", None, progress)
    finally:
        copy.close()  # this also removes the copy's journal
    # Only now, as the checksum too: opening the copy above may have changed the file.
    with file.open("rb") as copied:
        os.fsync(copied.fileno())
    return described


def _from_postgresql(database: Database, settings: Settings, folder: Path, bar: Bar) -> Manifest:
    with database.read(LONG_SECONDS) as connection:
        # Rows are counted and dumped on one snapshot, which exists as long as this transaction.
        hold_snapshot(connection)
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        major = health.ask_postgresql(connection).version // 10_000
        program = pg_dump.find_program("pg_dump", at_least=major)
        with (
            new_private_file(folder / POSTGRESQL_FILE) as file,
            bar("Dumping", "bytes") as progress,
        ):
            url = settings.resolved_database_url
            pg_dump.dump(program, url, snapshot, file, progress)
        with bar("Counting", "steps") as progress:
            return _describe(connection, "postgresql", program.major, progress)


def _describe(connection: Connection, kind: str, major: int | None, progress: Progress) -> Manifest:
    inventory = take_inventory(connection, progress)
    return Manifest.model_validate(
        {
            "format": FORMAT,
            "made_by": __version__,
            "made_at": datetime.now(UTC),
            "kind": kind,
            "schema_revision": HEAD_REVISION,
            "postgresql_major": major,
            "rows": inventory.rows,
            "highest_audit_id": inventory.highest_audit_id,
            "newest_audit_at": inventory.newest_audit_at,
            "certificates": fingerprints(connection),
            "key_encryption_keys": [asdict(each) for each in kek_store.list_keks(connection)],
            "files": {},
        }
    )


def fingerprints(connection: Connection) -> dict[str, str]:
    """Return the SHA-256 fingerprints (hex) of the authority's certificates, by name."""
    return {ca.name: ca.load().fingerprint(SHA256()).hex() for ca in ca_store.list_cas(connection)}
