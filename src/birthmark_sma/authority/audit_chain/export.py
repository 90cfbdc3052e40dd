"""Write the trail to a file, and load it into a database of its own to verify it there.

`sma audit export` and `sma audit verify --export` call it. The file is a zip with one file of JSON
lines for each table (docs/operate/tamper-evidence.md). It has no secret. Whoever loads an export
must not trust it: it is verified by the same code as the database that it came from.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import (
    Column,
    Connection,
    Index,
    LargeBinary,
    MetaData,
    Table,
    insert,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from birthmark_sma.authority.audit_chain.signed_note import THE_KEY, parse_verifier
from birthmark_sma.errors import ConfigurationError, DatabaseUnavailableError
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.audit_chain import (
    audit_batches,
    audit_checkpoints,
    audit_keys,
)
from birthmark_sma.storage.schema.validations import validation_history

FORMAT = "birthmark-sma audit export v1"
_HEAD = "export.json"
_TABLES = (
    validation_history,
    audit_batches,
    administrative_acts,
    act_subjects,
    audit_checkpoints,
)
_AT_ONCE = 5_000
_MOST_BYTES = 64 * 1024**2
"""No line is so long: the leaves of a batch of `verification.trail.MOST_ROWS` rows have half."""
_ENCRYPTED = 1  # a bit of a member's flags
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def write_export(connection: Connection, verifier: str | None, path: Path) -> Mapping[str, int]:
    """Write the trail to a new file, and return the number of rows by table.

    The caller's transaction has one snapshot. Raises FileExistsError, and other OSErrors. If it
    fails, no file is left.
    """
    with path.open("xb") as file:
        try:
            return _write(connection, verifier, file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _write(connection: Connection, verifier: str | None, file: BinaryIO) -> Mapping[str, int]:
    numbers = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        head = {"format": FORMAT, "public_key": verifier}
        archive.writestr(_HEAD, json.dumps(head) + "\n")
        for table in _TABLES:
            with archive.open(_name(table), "w", force_zip64=True) as lines:
                numbers[table.name] = 0
                for line in _lines(connection, table):
                    lines.write(line)
                    numbers[table.name] += 1
    return numbers


def load_export(path: Path, folder: Path) -> Database:
    """Load an export into a new database in a folder, and return it.

    Its tables have no keys, so that it takes rows that are doubled. Raises ConfigurationError if
    the file is no export, or damaged.
    """
    database = open_database(f"sqlite:///{folder / 'export.sqlite3'}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
            head = json.loads(next(_read_lines(archive, _HEAD), b""))
            if head["format"] != FORMAT:
                raise ConfigurationError(f"{path} was exported by another version of this program.")
            for table in _TABLES:
                _load(database, table, archive)
        _load_key(database, head["public_key"])
    except DatabaseUnavailableError as error:
        database.close()
        raise ConfigurationError(
            f"{path} cannot be loaded: {error}. The temporary database needs room for the whole"
            f" trail in {folder.parent}. Let TMPDIR name another folder"
        ) from None
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
        SQLAlchemyError,
    ):
        database.close()
        raise ConfigurationError(
            f"{path} is no export of the trail, or it is damaged. Export it again: sma audit export"
        ) from None
    return database


def _check_members(archive: zipfile.ZipFile) -> None:
    """Raise ValueError unless the members are those of an export, each once.

    Which of two members with one name is read depends on the program. Other compressions than that
    of an export can ask for much memory.
    """
    members = archive.infolist()
    if sorted(each.filename for each in members) != sorted([_HEAD, *map(_name, _TABLES)]):
        raise ValueError("its members are not those of an export")
    usual = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if any(each.compress_type not in usual or each.flag_bits & _ENCRYPTED for each in members):
        raise ValueError("a member is encrypted, or compressed in another way")


def _read_lines(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """Yield the lines of a member. Raises ValueError for one that would fill the memory."""
    with archive.open(name) as file:
        while line := file.readline(_MOST_BYTES):
            if len(line) == _MOST_BYTES:
                raise ValueError("a line is too long")
            yield line


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    rows = connection.execute(select(table).execution_options(yield_per=_AT_ONCE))
    for row in rows:
        values = {name: _encode(value) for name, value in row._mapping.items()}
        yield json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _encode(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value.astimezone(UTC).strftime(_TIME) if isinstance(value, datetime) else value


def _load(database: Database, table: Table, archive: zipfile.ZipFile) -> None:
    copy = _create_without_keys(database, table)
    rows = _decode(copy, _read_lines(archive, _name(table)))
    while some := list(islice(rows, _AT_ONCE)):
        with database.write() as transaction:
            transaction.execute(insert(copy), some)


def _load_key(database: Database, verifier: str | None) -> None:
    copy = _create_without_keys(database, audit_keys)
    if verifier is not None:
        with database.write() as transaction:
            key = parse_verifier(verifier)
            transaction.execute(insert(copy).values(key_id=THE_KEY, public_key=key))


def _create_without_keys(database: Database, table: Table) -> Table:
    columns = [Column(each.name, each.type) for each in table.columns]
    copy = Table(table.name, MetaData(), *columns)
    if copy.name == validation_history.name:
        Index("by_time", copy.c.validated_at)
    with database.write() as transaction:
        copy.metadata.create_all(transaction)
    return copy


def _decode(table: Table, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    of_bytes = {each.name for each in table.columns if isinstance(each.type, LargeBinary)}
    of_times = {each.name for each in table.columns if isinstance(each.type, UtcDateTime)}
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        for name, value in row.items():
            if value is not None and name in of_bytes:
                row[name] = bytes.fromhex(value)
            elif value is not None and name in of_times:
                row[name] = datetime.strptime(value, _TIME).replace(tzinfo=UTC)
        yield {each.name: row[each.name] for each in table.columns}


def _name(table: Table) -> str:
    return f"{table.name}.jsonl"
