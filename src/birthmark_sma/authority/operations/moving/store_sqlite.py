"""The database that an authority leaves: read it, and mark it. Only SQLite.

`move` calls it. The file is locked for as long as it is open here, so that no other program reads
or writes it. A running server is found by the same lock: each of its connections holds a shared
one.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    ColumnElement,
    Connection,
    Label,
    Row,
    Select,
    String,
    Table,
    create_engine,
    event,
    exc,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.pool import StaticPool

from birthmark_sma.errors import MoveError
from birthmark_sma.storage.faults import translate
from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.authority import authority
from birthmark_sma.storage.schema.validations import validation_history

_LOCK_SECONDS = 5
_RETRY_SECONDS = 0.1
_ROWID: Label[int] = literal_column("rowid").label("sma_rowid")


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark of a move in its old database: where to, since when, and the end or None."""

    moving_to: str
    moving_since: datetime
    moved_at: datetime | None = None


@contextmanager
def locked_source(file: Path) -> Iterator[Connection]:
    """Open the file, lock it against every other program, and yield a connection.

    Transactions of the connection are durable. The lock ends with the block, or with the process.
    Raises MoveError if another program has the file open, and DatabaseUnavailableError.
    """
    uri = f"file:{quote(str(file.absolute()))}?mode=rw"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        ) as raw:
            _lock(raw, file)
            engine = create_engine(
                "sqlite://", creator=lambda: raw, poolclass=StaticPool, hide_parameters=True
            )
            event.listen(engine, "begin", lambda each: each.exec_driver_sql("BEGIN"))
            with engine.connect() as connection:
                yield connection
    except sqlite3.Error as error:
        raise MoveError(f"{file} cannot be opened: {error}.") from None
    except exc.SQLAlchemyError as error:
        unavailable = translate(error)
        if unavailable is None:
            raise
        raise unavailable from error


def _lock(raw: sqlite3.Connection, file: Path) -> None:
    """Take SQLite's exclusive lock on the file, and keep it until the connection is closed.

    In WAL mode a writer excludes no reader, and an idle server holds no lock of a writer. But to
    leave WAL mode, SQLite needs the file for itself, and every open connection has a shared lock
    on it. The next program that opens the file returns it to WAL mode.
    """
    raw.execute("PRAGMA locking_mode = EXCLUSIVE")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            raw.execute("PRAGMA journal_mode = DELETE")
            raw.execute("PRAGMA synchronous = FULL")
            raw.execute("BEGIN EXCLUSIVE")
            raw.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname.partition("_")[2].split("_")[0] not in {"BUSY", "LOCKED"}:
                raise
            if time.monotonic() > deadline:
                raise MoveError(
                    f"A server or another command uses {file}. Stop it, and type the same command"
                    " again. Nothing was changed."
                ) from None
            time.sleep(_RETRY_SECONDS)
        else:
            return


def read_mark(source: Connection) -> Mark | None:
    """Return the mark of a move, or None if none has begun."""
    columns = authority.c.moving_to, authority.c.moving_since, authority.c.moved_at
    with source.begin():
        row = source.execute(select(*columns)).one()
    return None if row.moving_to is None else Mark(*row)


def put_mark(source: Connection, mark: Mark | None) -> None:
    """Replace the mark of a move, durably. None removes it."""
    with source.begin():
        write_mark(source, mark)


def write_mark(transaction: Connection, mark: Mark | None) -> None:
    """Replace the mark in a transaction of the caller's."""
    transaction.execute(
        update(authority).values(
            moving_to=None if mark is None else mark.moving_to,
            moving_since=None if mark is None else mark.moving_since,
            moved_at=None if mark is None else mark.moved_at,
        )
    )


def count_rows(source: Connection, table: Table) -> int:
    """Return the number of rows of a table."""
    with source.begin():
        return source.execute(select(func.count()).select_from(table)).scalar_one()


def list_days(source: Connection) -> list[date]:
    """Return the UTC days of the audit log, which become partitions. It reads the whole index."""
    day = func.substr(validation_history.c.validated_at, 1, len("2026-01-01"), type_=String())
    with source.begin():
        days = source.execute(select(day).distinct().order_by(day)).scalars().all()
    try:
        return [date.fromisoformat(each) for each in days]
    except (ValueError, TypeError):
        raise MoveError(
            "The audit log has a time that is none: look for it with SELECT DISTINCT"
            " substr(validated_at, 1, 10) FROM validation_history, and correct it."
        ) from None


def read_rows(
    source: Connection, table: Table, after: int | None, limit: int
) -> Sequence[Row[Any]]:
    """Return the next rows of a table in the order of SQLite's row ids, which come first.

    Raises ValueError or TypeError if a value is not of its column's type.
    """
    with source.begin():
        rows = source.execute(_next(_ROWID, *table.c, table=table, after=after, limit=limit)).all()
    times = [at for at, each in enumerate(table.c, 1) if isinstance(each.type, UtcDateTime)]
    for row in rows:
        for at in times:
            # PostgreSQL would take a time without a zone for one of the session's zone.
            if row[at] is not None and row[at].tzinfo is not UTC:
                raise ValueError("a time is not in UTC: it must end with +00:00")
    return rows


def find_next_rowid(source: Connection, table: Table, after: int | None) -> int:
    """Return the row id of the next row."""
    with source.begin():
        query = _next(_ROWID, table=table, after=after, limit=1)
        return int(source.execute(query).scalar_one())


def _next(*columns: ColumnElement[Any], table: Table, after: int | None, limit: int) -> Select[Any]:
    query = select(*columns).select_from(table).order_by(_ROWID).limit(limit)
    return query if after is None else query.where(after < _ROWID)
