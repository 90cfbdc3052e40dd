"""Restore a backup into an empty place, and prove that it equals what was saved.

`sma restore` calls `restore_backup`. All checks come before the first write: the kind of database,
an existing target, a wrong passphrase, a damaged file. No database and no secret is lost: if a
previous passphrase becomes current again, the one that it replaces is kept.
"""

import fcntl
import os
import shutil
from contextlib import closing, suppress
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.ca.ceremony import root_key_files
from birthmark_sma.authority.ca.root_key_file import RootKey
from birthmark_sma.authority.initialisation import remember_authority
from birthmark_sma.authority.kek.passphrase_file import (
    PASSPHRASE_FILE,
    PassphraseFile,
    find_passphrase,
)
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import open_secrets
from birthmark_sma.authority.operations import pg_dump
from birthmark_sma.authority.operations.backup import Bar
from birthmark_sma.authority.operations.backup_manifest import (
    MANIFEST,
    Manifest,
    Progress,
    check_files,
    pump,
    read_manifest,
)
from birthmark_sma.authority.operations.restore_proof import Proof, prove
from birthmark_sma.authority.operations.secrets_in_backup import (
    check_secrets_free,
    place_secrets,
    secret_places,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BackupError,
    BackupPlaceTakenError,
    ConfigurationError,
    WrongSecretError,
)
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    new_private_file,
    read_private_file,
    sync_directory,
)
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.postgresql.server_role import grant_to_servers
from birthmark_sma.storage.schema import HEAD_REVISION, metadata

_JOURNALS = ("-journal", "-wal", "-shm")
"""Files that must not exist at the target: SQLite would apply them to the restored file. Lock files
(`storage.locks`) may exist: a killed process leaves them behind, and they do no harm."""


def restore_backup(
    settings: Settings, folder: Path, bar: Bar, actor: Actor
) -> tuple[Manifest, Proof]:
    """Restore a backup into the database that the settings name; return its manifest and the proof.

    The restored database records the act, and the data directory which authority it has. SQLite's
    file gets its name last, after the proof. PostgreSQL is filled in one transaction, before the
    proof: if that fails, the error tells the operator to drop the database. Raises BackupError,
    BackupPlaceTakenError, WrongSecretError, ConfigurationError, PrivateFileError or
    DatabaseUnavailableError.
    """
    # All checks come before the first write. The checksums come last: they read all files.
    manifest = read_manifest(folder)
    _check_kind(manifest, settings, folder)
    proving = _with_passphrase_of_backup(settings, folder, manifest)
    reinstated = _previous_in(settings, proving)
    if (file := settings.sqlite_file) is not None:
        for suffix in ("", *_JOURNALS):
            check_target_is_empty(file.with_name(file.name + suffix))
    if reinstated is None:
        check_secrets_free(settings, folder, manifest)
    open_secrets(manifest.kek_records, KekSecret.of(proving))
    if file is not None:
        _check_content(folder, manifest, bar)
        proof = _into_sqlite(
            proving, folder, manifest, file, bar, actor=actor, reinstated=reinstated
        )
    else:
        proof = _into_postgresql(proving, folder, manifest, bar, actor)
    with closing(open_database(settings.resolved_database_url)) as database:
        remember_authority(settings, database)
    return manifest, proof


# --- checks before the first write


def _check_kind(manifest: Manifest, settings: Settings, folder: Path) -> None:
    if manifest.schema_revision > HEAD_REVISION:
        raise BackupError(
            f"{folder} has schema {manifest.schema_revision}, made by a newer program; this one"
            f" knows {HEAD_REVISION}. Install the newer program."
        )
    if manifest.schema_revision != HEAD_REVISION:
        raise BackupError(
            f"{folder} has schema {manifest.schema_revision}: restore it with birthmark-sma"
            f" {manifest.made_by}, then type sma migrate with this one."
        )
    if set(manifest.rows) != set(metadata.tables):
        raise BackupError(f"{folder / MANIFEST} does not list every table. Use another backup.")
    if manifest.kind == "sqlite" and not settings.uses_sqlite:
        raise BackupError(f"{folder} is a backup of SQLite. Unset DATABASE_URL to restore it.")
    if manifest.kind == "postgresql" and settings.uses_sqlite:
        raise BackupError(
            f"{folder} is a backup of PostgreSQL. Set DATABASE_URL to an empty database."
        )


def check_target_is_empty(path: Path) -> None:
    """Raise BackupPlaceTakenError if there is a file, directory or link at the path."""
    if path.exists() or path.is_symlink():
        raise BackupPlaceTakenError(
            f"{path} exists already and is never overwritten. Restore into an empty place."
        )


def _check_empty(database: Database, manifest: Manifest) -> pg_dump.Program:
    with database.read() as connection:
        taken = health.list_tables(connection)
        major = health.ask_postgresql(connection).version // 10_000
    if taken:
        raise BackupPlaceTakenError(
            f"The database is not empty: it has {taken[0]}. Restore into a new one."
        )
    # pg_restore must be at least as new as the pg_dump that made the file, and as this server.
    made = manifest.postgresql_major or major
    return pg_dump.find_program("pg_restore", at_least=max(made, major))


def _check_content(folder: Path, manifest: Manifest, bar: Bar) -> None:
    with bar("Checking the backup", "bytes") as progress:
        check_files(folder, manifest, progress)


def _with_passphrase_of_backup(settings: Settings, folder: Path, manifest: Manifest) -> Settings:
    """Return the settings with the passphrase that opens the backup, if none is given.

    Only with SQLite. If the data directory has no passphrase file, the one in the backup is used.
    If it has one that does not open the backup, the previous passphrases kept there are tried.
    """
    if settings.ca_password is not None or not settings.uses_sqlite:
        return settings
    if PassphraseFile.in_force(settings) is None:
        if PASSPHRASE_FILE not in manifest.files:
            return settings
        return _with_passphrase(settings, read_private_file(folder / PASSPHRASE_FILE).strip())
    previous = PassphraseFile.of(settings).list_previous()
    if not previous or _can_open(manifest, settings):
        return settings
    tried = (_with_passphrase(settings, each) for each in previous)
    return next((each for each in tried if _can_open(manifest, each)), settings)


def _with_passphrase(settings: Settings, passphrase: bytes) -> Settings:
    text = passphrase.decode("utf-8", "replace")
    return settings.model_copy(update={"ca_password": SecretStr(text)})


def _can_open(manifest: Manifest, settings: Settings) -> bool:
    try:
        open_secrets(manifest.kek_records, KekSecret.of(settings))
    except WrongSecretError:
        return False
    return True


def _previous_in(settings: Settings, proving: Settings) -> bytes | None:
    """Return the previous passphrase that opens the backup and has to become current again.

    None if the current passphrase opens it, or if there is no passphrase file.
    """
    if proving is settings or PassphraseFile.in_force(settings) is None:
        return None
    return find_passphrase(proving)


# --- writing


def _into_sqlite(
    settings: Settings,
    folder: Path,
    manifest: Manifest,
    file: Path,
    bar: Bar,
    *,
    actor: Actor,
    reinstated: bytes | None,
) -> Proof:
    make_private_directory(settings.data_dir)
    make_private_directory(file.parent)
    partial = file.with_name(f".{file.name}.restoring")
    # This lock lets one restore at a time write or remove the unfinished file.
    held = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise BackupPlaceTakenError(
            f"Another restore into {file.parent} is running. Wait for it."
        ) from None
    try:
        _forget(partial)  # the rest of a restore that was interrupted
        with bar("Copying", "bytes") as progress:
            _copy(folder / manifest.database_file, partial, progress)
        database = open_database(f"sqlite:///{partial}")
        try:
            proof = prove(database, settings, manifest, bar)
            database.transact(lambda transaction: _record(transaction, actor, manifest))
        finally:
            database.close()
        _put_in_place(settings, folder, manifest, file, partial, reinstated=reinstated)
    except OSError as error:
        raise BackupError(
            f"{file.parent} cannot be written: {error.strerror}. Nothing is left there."
        ) from None
    finally:
        _forget(partial)
        os.close(held)
    return proof


def _put_in_place(
    settings: Settings,
    folder: Path,
    manifest: Manifest,
    file: Path,
    partial: Path,
    *,
    reinstated: bytes | None,
) -> None:
    """Write the secrets, then give the database its name, so that it can be opened from the start.

    Secrets are never removed again. Raises BackupPlaceTakenError, BackupError or PrivateFileError;
    the first two say what is there.
    """
    secrets = [
        str(place)
        for name, place in secret_places(settings).items()
        if reinstated is not None or name in manifest.files
    ]
    left = f" These secrets of the backup may be there: {', '.join(secrets)}." if secrets else ""
    try:
        if reinstated is not None:
            _reinstate(settings, reinstated)
        place_secrets(settings, folder, manifest)
        file.hardlink_to(partial)  # unlike rename, it fails if the file was created meanwhile
    except FileExistsError:
        raise BackupPlaceTakenError(
            f"{file} exists already and is never overwritten.{left}"
        ) from None
    except OSError as error:
        raise BackupError(
            f"{file.parent} cannot be written: {error.strerror}."
            f"{left or ' Nothing is left there.'} Type the same command again."
        ) from None
    try:
        sync_directory(file.parent)
    except OSError as error:
        raise BackupError(
            f"{file} is restored, but a power cut may still remove it: {error.strerror}.{left}"
            " Check the disk, remove this file, and type the same command again."
        ) from None


def _reinstate(settings: Settings, passphrase: bytes) -> None:
    """Make a previous passphrase current again, and re-encrypt the root's key files with it."""
    file = PassphraseFile.of(settings)
    for path in root_key_files(settings):
        root_key = RootKey(path, passphrase)
        with suppress(ConfigurationError):  # a key file with another passphrase stays unchanged
            root_key.prepare([file.current(), *file.list_previous()])
            root_key.put_in_place()
    file.reinstate(passphrase)


def _copy(source: Path, target: Path, progress: Progress) -> None:
    total = source.stat().st_size
    if shutil.disk_usage(target.parent).free < total:
        raise BackupError(
            f"The disk of {target.parent} has too little free space: {total:,} bytes are needed."
        )
    with source.open("rb") as reading, new_private_file(target) as writing:
        pump(reading, writing.write, progress, total=total)


def _forget(partial: Path) -> None:
    for path in (partial, *partial.parent.glob(f"{partial.name}-*")):
        path.unlink(missing_ok=True)


def _into_postgresql(
    settings: Settings, folder: Path, manifest: Manifest, bar: Bar, actor: Actor
) -> Proof:
    with closing(open_database(settings.resolved_database_url)) as database:
        program = _check_empty(database, manifest)
        _check_content(folder, manifest, bar)
        with (
            (folder / manifest.database_file).open("rb") as file,
            bar("Restoring", "bytes") as progress,
        ):
            pg_dump.restore(program, settings.resolved_database_url, file, progress)
        try:
            proof = prove(database, settings, manifest, bar)
        except BackupError as error:
            raise BackupError(
                f"{str(error).rstrip('.')}. Drop this database, and restore another backup."
            ) from None
        # Only after the proof: it may still fail, and then no secret has been written.
        place_secrets(settings, folder, manifest)
        database.transact(lambda each: _finish(each, actor, manifest), LONG_SECONDS)
    return proof


def _finish(transaction: Connection, actor: Actor, manifest: Manifest) -> None:
    """Do what a dump leaves out. It has no statistics, and no privileges."""
    health.gather_statistics(transaction)
    partitions.create_future_partitions(transaction, database_time(transaction).date())
    grant_to_servers(transaction)
    _record(transaction, actor, manifest)


def _record(transaction: Connection, actor: Actor, manifest: Manifest) -> None:
    """Record the restore in the restored database, after its proof."""
    subject = Subject(None, None, {"backup_made_at": manifest.made_at})
    trail.record(transaction, actor, ActKind.AUTHORITY_RESTORE, [subject])
