"""Move an authority from SQLite to PostgreSQL, or undo a move.

`sma move` calls `move_authority` and `undo_move`. SQLite's file is marked before the first row is
copied, and stays as it was otherwise: whatever happens, one of the two databases is usable or
becomes usable when the same command runs again, and never both.
"""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, Table

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.ca.ceremony import root_key_file, root_key_files
from birthmark_sma.authority.ca.store import find_authority_id
from birthmark_sma.authority.data_directory import describe_database, remember
from birthmark_sma.authority.kek.passphrase_file import find_passphrase
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.operations.backup import Bar
from birthmark_sma.authority.operations.backup_manifest import Progress as Shown
from birthmark_sma.authority.operations.moving import store_postgresql as target
from birthmark_sma.authority.operations.moving import store_sqlite as source
from birthmark_sma.authority.operations.moving.proof import MoveProof, prove_move
from birthmark_sma.authority.operations.moving.store_postgresql import Progress, Stage
from birthmark_sma.authority.operations.moving.store_sqlite import Mark, locked_source
from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError, MoveError, NotInitialisedError
from birthmark_sma.runtime.secret_files import sync_directory
from birthmark_sma.storage import health
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import check_revision
from birthmark_sma.storage.schema import metadata

CHUNK_ROWS = 10_000
"""The number of rows that are copied in one transaction."""
_FEWER = 10  # after a row that PostgreSQL refuses, chunks are so many times smaller


@dataclass(frozen=True, slots=True)
class Moved:
    """A finished move.

    `proof` is None if an earlier run had finished it, but could not say so. `copied` is the number
    of rows that this run copied, `seconds` the time that it took for that.
    """

    authority_id: str
    mark: Mark
    proof: MoveProof | None
    copied: int
    seconds: float


def move_authority(
    old: Settings, new: Settings, bar: Bar, actor: Actor, begun: Callable[[], None]
) -> Moved:
    """Move the authority of `old`, on SQLite, to the empty PostgreSQL of `new`, or go on with it.

    `begun` is called once the old database is marked: from then on it is refused by every command
    until the move is finished or undone. Raises MoveError, DatabaseUnavailableError, and the errors
    of opening the authority's secrets.
    """
    file = _sqlite_file(old)
    new = _with_secrets(old, new)
    _check_old(old)
    with closing(open_database(new.resolved_database_url)) as database, locked_source(file) as left:
        authority_id, mark, stage = _begin(left, database, old, new)
        if mark.moved_at is None:
            begun()
        began, copied, proof = time.monotonic(), 0, None
        if stage is not Stage.COMPLETE:
            if stage is Stage.EMPTY:
                target.prepare(database, authority_id, mark)
            target.create_days(database, source.list_days(left))
            copied = _copy(left, database, bar)
            seconds = time.monotonic() - began
            proof = prove_move(left, database, new, bar)
            rows = {each.table: each.rows for each in proof.tables}
            target.finish(database, actor, mark, rows)
        else:
            seconds = 0.0
        mark = replace(mark, moved_at=mark.moved_at or datetime.now(UTC))
        _rename_root_keys(old, new)
        source.put_mark(left, mark)
    remember(new, authority_id)
    return Moved(authority_id, mark, proof, copied, seconds)


def undo_move(old: Settings, actor: Actor) -> Mark:
    """Let the old database be the authority's again, as it was when the move began.

    Return the mark of the move. The caller must know that no server uses the new database. Raises
    MoveError if the authority is not being moved and was not moved.
    """
    file = _sqlite_file(old)
    with closing(open_database(old.resolved_database_url)) as database, database.read() as reading:
        check_revision(reading)
    with locked_source(file) as left:
        mark = source.read_mark(left)
        if mark is None:
            raise MoveError(f"{file} was not moved, so there is nothing to undo.")
        with left.begin():
            authority_id = find_authority_id(left)
            source.write_mark(left, None)
            states = (
                {"database": mark.moving_to},
                {"database": describe_database(f"sqlite:///{file}")},
            )
            trail.record(left, actor, ActKind.AUTHORITY_UNDO_MOVE, [Subject(None, *states)])
    # The name on PostgreSQL of the root's key does not depend on the URL.
    new = old.model_copy(update={"database_url": SecretStr("postgresql://")})
    _rename_root_keys(new, old)
    if authority_id is not None:
        remember(old, authority_id)
    return mark


def _sqlite_file(settings: Settings) -> Path:
    file = settings.sqlite_file
    assert file is not None  # noqa: S101  the command checks it
    return file


def _with_secrets(old: Settings, new: Settings) -> Settings:
    """Return the new settings with the passphrase of the old ones, which may be in a file."""
    with suppress(ConfigurationError):  # not needed with a key-encryption key from elsewhere
        passphrase = find_passphrase(old).decode("utf-8", "replace")
        return new.model_copy(update={"ca_password": SecretStr(passphrase)})
    return new


def _check_old(settings: Settings) -> None:
    """Check the old database: schema, damage, authority and secrets, before hours are spent."""
    with closing(open_database(settings.resolved_database_url)) as database:
        with database.read() as connection:
            check_revision(connection)
            if health.find_damage(connection):
                raise MoveError("The database is damaged, so it is not moved. Type: sma doctor")
        open_stored_secrets(database, settings)


def _begin(
    left: Connection, database: Database, old: Settings, new: Settings
) -> tuple[str, Mark, Stage]:
    """Check both databases, and mark the old one unless it is marked."""
    with left.begin():
        authority_id = find_authority_id(left)
    if authority_id is None:
        raise NotInitialisedError
    mark, there = source.read_mark(left), describe_database(new.resolved_database_url)
    stage = target.find_stage(database, authority_id, mark)
    if mark is not None and mark.moved_at is not None and stage is not Stage.COMPLETE:
        raise MoveError(
            f"This authority was moved to {mark.moving_to} already, at"
            f" {mark.moved_at:%Y-%m-%d %H:%M:%S} UTC. Nothing was changed."
        )
    if mark is None:
        _check_root_keys(old, new)
        mark = Mark(there, datetime.now(UTC))
        source.put_mark(left, mark)
    elif stage is Stage.EMPTY and mark.moving_to != there:
        raise MoveError(
            f"This authority is being moved to {mark.moving_to}. Finish that move, or drop that"
            " database and type: sma move --undo. Nothing was changed."
        )
    return authority_id, mark, stage


def _copy(left: Connection, database: Database, bar: Bar) -> int:
    """Copy all rows that are not copied yet; return their number."""
    tables = metadata.sorted_tables
    progress = target.read_progress(database)
    before = sum(each.rows for each in progress.values())
    total = sum(source.count_rows(left, table) for table in tables)
    done = 0
    with bar("Copying rows", "steps") as show:
        show(before, total)
        for table in tables:

            def shown(rows: int, _: int | None, done: int = done) -> None:
                show(done + rows, total)

            done += _copy_table(left, database, table, progress[table.name], shown)
    return done - before


def _copy_table(
    left: Connection, database: Database, table: Table, progress: Progress, show: Shown
) -> int:
    """Copy the rest of a table, and return the number of all its rows."""
    limit = CHUNK_ROWS
    while True:
        try:
            rows = source.read_rows(left, table, progress.last_rowid, limit)
            if not rows:
                return progress.rows
            progress = target.copy_rows(database, table, rows, progress)
        except (ValueError, TypeError) as error:
            # The rows before the wrong one are copied first, in ever smaller chunks.
            if limit == 1:
                rowid = source.find_next_rowid(left, table, progress.last_rowid)
                raise MoveError(
                    f"PostgreSQL cannot store a row of {table.name}, that with rowid {rowid}:"
                    f" {error}. Correct the row in SQLite, and type the same command again."
                ) from None
            limit = max(1, limit // _FEWER)
        show(progress.rows, None)


# --- the files of root keys


def _root_key_names(old: Settings, new: Settings) -> list[tuple[Path, Path]]:
    """Return the existing files of root keys under `old`, each with its name under `new`."""
    first, renamed = root_key_file(old), root_key_file(new)
    return [
        (
            path,
            renamed.with_name(f"{renamed.stem}{path.stem.removeprefix(first.stem)}{path.suffix}"),
        )
        for path in root_key_files(old)
        if path.exists()
    ]


def _check_root_keys(old: Settings, new: Settings) -> None:
    for path, renamed in _root_key_names(old, new):
        if renamed != path and renamed.exists():
            raise MoveError(
                f"{renamed} exists: it is the root key of another authority. Move it to a safe"
                " place first. Nothing was changed."
            )


def _rename_root_keys(old: Settings, new: Settings) -> None:
    """Give the files the names that they have with the other kind of database.

    It can be repeated.
    """
    for path, renamed in _root_key_names(old, new):
        if renamed != path and not renamed.exists():
            path.rename(renamed)
            sync_directory(renamed.parent)
