"""The manifest of a backup (manifest.json): row counts, checksums and certificates.

`backup` writes it, `restore` reads it and treats it as untrusted input. It contains no secret in
the clear. To verify a passphrase it holds the same value as the database: a secret wrapped under
the key-encryption key.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, BinaryIO, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from sqlalchemy import Connection, func, select

from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.errors import BackupError
from birthmark_sma.runtime.secret_files import write_private_file
from birthmark_sma.storage.schema import metadata
from birthmark_sma.storage.schema.validations import validation_history

Progress = Callable[[int, int | None], None]
"""Called with the work done and the total (None if unknown), in bytes or steps."""

MANIFEST = "manifest.json"
SQLITE_FILE = "database.sqlite"
POSTGRESQL_FILE = "database.dump"
FORMAT = 1
"""The version of the manifest's format."""
_CHUNK = 1 << 20
_HEX = r"^([0-9a-f]{2})+$"
_MOST_BYTES = 1 << 20  # of a manifest that is read
FileName = Annotated[
    str,
    Field(
        pattern=r"^(database\.sqlite|database\.dump|ca-password(\.previous)?"
        r"|simulated-mfg-root-ca(-[2-9][0-9]{0,3})?\.key)$"
    ),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _from_hex(value: object) -> bytes:
    if isinstance(value, bytes):  # from the database: JSON has no bytes
        return value
    if not isinstance(value, str) or re.fullmatch(_HEX, value) is None:
        raise ValueError("these are no bytes in hex")
    return bytes.fromhex(value)


_Hex = Annotated[
    bytes,
    BeforeValidator(_from_hex),
    PlainSerializer(bytes.hex, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": _HEX}),
]


class FileInBackup(_Part):
    """The size in bytes and the SHA-256 (hex) of a file."""

    size: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Kek(_Part):
    """The record of a key-encryption key, as in table `key_encryption_keys`; bytes are in hex."""

    kek_id: int
    source: str
    salt: _Hex = Field(repr=False)
    wrapped_nuc_hash_key: _Hex = Field(repr=False)
    created_at: datetime
    wrapped_successor: _Hex | None = Field(default=None, repr=False)
    wrapped_predecessor: _Hex | None = Field(default=None, repr=False)


class Manifest(_Part):
    """The contents of a backup.

    `rows` has the number of rows of each table, `certificates` the SHA-256 fingerprints (hex) by
    name. `postgresql_major` is the version of pg_dump, None for SQLite.
    """

    format: Literal[1]
    made_by: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")
    made_at: datetime
    kind: Literal["sqlite", "postgresql"]
    schema_revision: str = Field(pattern=r"^[0-9]{4}$")
    postgresql_major: int | None
    rows: dict[str, int]
    highest_audit_id: int | None
    newest_audit_at: datetime | None
    certificates: dict[str, str]
    key_encryption_keys: list[Kek] = Field(min_length=1)
    files: dict[FileName, FileInBackup]

    @property
    def database_file(self) -> FileName:
        """The name of the file that holds the database."""
        return "database.sqlite" if self.kind == "sqlite" else "database.dump"

    @property
    def kek_records(self) -> list[KekRecord]:
        """The records of the key-encryption keys, in the form that the database returns."""
        return [KekRecord(**dict(each)) for each in self.key_encryption_keys]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest file atomically. Raises PrivateFileError."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
    write_private_file(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises BackupError if it is missing, damaged, or of a newer format.
    """
    if not folder.is_dir():
        raise BackupError(f"{folder} does not exist, or is not a directory.")
    try:
        with _open(folder / MANIFEST) as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise BackupError(f"{folder} is not a backup: it has no {MANIFEST}.") from None
    except OSError as error:
        raise BackupError(f"{folder / MANIFEST} cannot be read: {error.strerror}.") from None
    try:
        told = json.loads(content)
        # Before validation, so that a newer format is reported as such and not as damage.
        if isinstance(told, dict) and int(told.get("format", 0)) > FORMAT:
            raise BackupError(
                f"{folder} was made by a newer program, in a format that this one does not know."
                " Install the newer program."
            )
        manifest = Manifest.model_validate(told)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BackupError(
            f"{folder / MANIFEST} is damaged or incomplete. Use another backup."
        ) from None
    if manifest.database_file not in manifest.files:
        raise BackupError(f"{folder / MANIFEST} lists no database. Use another backup.")
    return manifest


@dataclass(frozen=True, slots=True)
class Inventory:
    """The number of rows of each table, and the highest id and newest time of the audit log."""

    rows: dict[str, int]
    highest_audit_id: int | None
    newest_audit_at: datetime | None


def take_inventory(connection: Connection, progress: Progress) -> Inventory:
    """Count the rows of all tables by reading them. `progress` counts tables.

    The numbers are exact if the transaction has one snapshot.
    """
    rows: dict[str, int] = {}
    tables = metadata.sorted_tables
    for done, table in enumerate(tables):
        progress(done, len(tables))
        counting = select(func.count()).select_from(table)
        rows[table.name] = connection.execute(counting).scalar_one()
    trail = validation_history.c
    highest, newest = connection.execute(
        select(func.max(trail.id), func.max(trail.validated_at))
    ).one()
    progress(len(tables), len(tables))
    return Inventory(rows, highest, newest)


def measure(path: Path, progress: Progress) -> FileInBackup:
    """Return the size and checksum of a file. `progress` counts bytes. Raises OSError."""
    digest = hashlib.sha256()
    with _open(path) as file:
        size = pump(file, digest.update, progress, total=os.fstat(file.fileno()).st_size)
    return FileInBackup(size=size, sha256=digest.hexdigest())


def pump(
    source: IO[bytes], write: Callable[[bytes], object], progress: Progress, *, total: int | None
) -> int:
    """Pass all bytes of `source` to `write`, 1 MiB at a time; return their number."""
    done = 0
    while chunk := source.read(_CHUNK):
        write(chunk)
        done += len(chunk)
        progress(done, total)
    return done


def check_files(folder: Path, manifest: Manifest, progress: Progress) -> None:
    """Compare all files with the manifest. `progress` counts bytes.

    Raises BackupError with the name of the first file that is missing or differs.
    """
    for name, wanted in manifest.files.items():
        path = folder / name
        try:
            found = measure(path, progress)
        except FileNotFoundError:
            raise BackupError(f"{path} is missing. Use another backup.") from None
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror}.") from None
        if found != wanted:
            raise BackupError(f"{path} was changed after the backup was made. Use another backup.")


def _open(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else, such as a pipe."""
    # O_NONBLOCK, because to open a named pipe would block until somebody writes to it.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a file")
    return file
