"""The database to which an authority moves: fill it, and finish. Only PostgreSQL.

`move` calls it. Until `finish` has committed, the table `move_progress` is there, and every command
refuses the database. Each chunk of rows is committed together with its progress, so a killed move
goes on where it ended, and no row is copied twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum, auto
from functools import partial
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Integer, Table, exc, func, insert, inspect, select, text, update

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.ca.store import find_authority_id
from birthmark_sma.authority.operations.moving.store_sqlite import Mark
from birthmark_sma.errors import MoveError
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.migration import migrate_in, move_progress
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.schema import metadata
from birthmark_sma.storage.schema.authority import authority

_DAYS_A_TRANSACTION = 30  # PostgreSQL has room for a limited number of locks at a time
_progress = move_progress.c


class Stage(Enum):
    """The state of the new database."""

    EMPTY = auto()
    PARTLY_FILLED = auto()
    COMPLETE = auto()
    """The move was finished, but the old database may not know it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a table: the number of rows that were copied, and the last row id."""

    rows: int = 0
    last_rowid: int | None = None


def find_stage(database: Database, authority_id: str, mark: Mark | None) -> Stage:
    """Return the stage of the move with this mark. None means that it has not begun.

    Raises MoveError if the database holds anything else, and DatabaseUnavailableError.
    """
    with database.read() as connection:
        taken = health.list_tables(connection)
        if not taken:
            return Stage.EMPTY
        known = set(taken)
        if move_progress.name in known:
            row = connection.execute(
                select(_progress.authority_id, _progress.moving_since).limit(1)
            ).one()
            _check_same(mark, (row.authority_id, row.moving_since), authority_id)
            return Stage.PARTLY_FILLED
        if authority.name not in known or "moving_since" not in {
            each["name"] for each in inspect(connection).get_columns(authority.name)
        }:
            raise MoveError(_not_empty(taken[0]))
        since = connection.execute(select(authority.c.moving_since)).scalar()
        found = find_authority_id(connection)
    if found == authority_id and mark is not None and since == mark.moving_since:
        return Stage.COMPLETE
    if found == authority_id:
        raise MoveError(
            "That database holds this very authority already, from a restored backup or another"
            " move. Set DATABASE_URL to use it, or move to an empty database. Nothing was changed."
        )
    raise MoveError(
        _not_empty(taken[0])
        if found is None
        else "That database holds another authority."
        " Move to an empty database. Nothing was changed."
    )


def _check_same(mark: Mark | None, found: tuple[str, Any], authority_id: str) -> None:
    if mark is None or found != (authority_id, mark.moving_since):
        raise MoveError(
            "That database has a part of another move, which was given up or belongs to another"
            " authority. Drop it, and move to an empty database. Nothing was changed."
        )


def _not_empty(name: str) -> str:
    return f"That database is not empty: it has {name}. Move to an empty one. Nothing was changed."


def prepare(database: Database, authority_id: str, mark: Mark) -> None:
    """Create the schema and the progress of each table in an empty database, in one transaction."""
    rows = [
        {
            "table_name": table.name,
            "rows_copied": 0,
            "authority_id": authority_id,
            "moving_since": mark.moving_since,
        }
        for table in metadata.sorted_tables
    ]

    def work(transaction: Connection) -> None:
        migrate_in(transaction)
        move_progress.create(transaction)
        transaction.execute(insert(move_progress), rows)

    database.transact(work, LONG_SECONDS)


def create_days(database: Database, days: Sequence[date]) -> None:
    """Create the partitions of the audit log for these days, some in each transaction."""
    for first in range(0, len(days), _DAYS_A_TRANSACTION):
        some = days[first : first + _DAYS_A_TRANSACTION]
        database.transact(partial(partitions.create_partitions, days=some))


def read_progress(database: Database) -> dict[str, Progress]:
    """Return the progress of each table, by name.

    It waits for the last transaction of a process that was killed.
    """

    def work(transaction: Connection) -> dict[str, Progress]:
        columns = _progress.table_name, _progress.rows_copied, _progress.last_rowid
        rows = transaction.execute(select(*columns).with_for_update())
        return {row[0]: Progress(row[1], row[2]) for row in rows}

    return database.transact(work)


def copy_rows(
    database: Database, table: Table, rows: Sequence[Sequence[Any]], before: Progress
) -> Progress:
    """Copy rows, which begin with their row ids, and record the progress, in one transaction.

    Return the progress after it. Raises ValueError if PostgreSQL refuses a value, MoveError if
    another process has copied rows meanwhile, and DatabaseUnavailableError.
    """
    after = Progress(before.rows + len(rows), rows[-1][0])

    def work(transaction: Connection) -> None:
        same = _progress.last_rowid.is_not_distinct_from(before.last_rowid)
        changed = transaction.execute(
            update(move_progress)
            .where(_progress.table_name == table.name, same)
            .values(rows_copied=after.rows, last_rowid=after.last_rowid)
        )
        if changed.rowcount != 1:
            raise MoveError("Another sma move is filling that database. Wait for its end.")
        _copy(transaction, table, rows)

    database.transact(work, LONG_SECONDS)
    return after


def _copy(transaction: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(sql.Identifier(each.name) for each in table.c),
    )
    driver: Any = transaction.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for _, *values in rows:
                copy.write_row(values)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        # PostgreSQL's first sentence names the rule, never a value.
        raise ValueError(error.diag.message_primary or str(error)) from None
    except psycopg.Error as error:
        raise exc.DBAPIError.instance(  # translated as other errors of the driver
            "COPY", None, error, psycopg.Error, hide_parameters=True, dialect=transaction.dialect
        ) from error


def finish(database: Database, actor: Actor, mark: Mark, rows: Mapping[str, int]) -> None:
    """Make the new database an authority's: sequences, statistics, the act, no progress.

    It is one transaction, after the proof. From its commit on, the authority lives here.
    """

    def work(transaction: Connection) -> None:
        _set_sequences(transaction)
        # `moving_since` stays: a move that is resumed after this commit knows it by that.
        transaction.execute(update(authority).values(moving_to=None))
        subject = Subject(None, {"database": "SQLite"}, {"database": "PostgreSQL"})
        facts = {"moving_since": mark.moving_since, "rows": sum(rows.values())}
        trail.record(transaction, actor, ActKind.AUTHORITY_MOVE, [subject], more=facts)
        health.gather_statistics(transaction)
        move_progress.drop(transaction)

    database.transact(work, LONG_SECONDS)


def _set_sequences(transaction: Connection) -> None:
    """Let each sequence continue after the highest number of its column."""
    owned = text("SELECT pg_get_serial_sequence(:name, :column)")
    for table in metadata.sorted_tables:
        for column in table.c:
            if not isinstance(column.type, Integer):
                continue
            names = {"name": table.name, "column": column.name}
            sequence = transaction.execute(owned, names).scalar()
            if sequence is not None:
                highest = transaction.execute(select(func.max(column))).scalar()
                transaction.execute(
                    text("SELECT setval(CAST(:sequence AS regclass), :next, false)"),
                    {"sequence": sequence, "next": (highest or 0) + 1},
                )
