"""Threat 46: rows with values that no program of ours writes are findings, and never an error."""

from pathlib import Path

import pytest

from birthmark_sma.authority.audit_chain.batches import ROW_FIELDS
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import metadata
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """A batch, an act and a checkpoint."""
    trail = ChainedTrail(database, tmp_path)
    trail.validate("aa")
    trail.act("one", "two")
    trail.checkpoint()
    return trail


def first_row(trail: ChainedTrail) -> int:
    """Return the id of the first audit row."""
    [(number,)] = rows_of(trail.database, "SELECT min(id) FROM validation_history")
    return int(number)


@pytest.mark.parametrize("year", ["9990", "0500"])
def test_rows_of_another_age(trail: ChainedTrail, year: str) -> None:
    """On PostgreSQL they are in the default partition."""
    names = ", ".join(each for each in ROW_FIELDS if each != "validated_at")
    execute(
        trail.database,
        f"INSERT INTO validation_history (id, validated_at, {names})"
        f" SELECT -5, '{year}-01-01 00:00:00.000000+00:00', {names}"
        f" FROM validation_history WHERE id = {first_row(trail)}",
    )
    assert [each[:2] for each in trail.verify()] == [("inserted", "row -5")]


STRANGE = {
    "postgresql": ["'infinity'", "'-infinity'", "'0044-03-15 00:00:00+00 BC'", "'20000-01-01'"],
    "sqlite": ["'yesterday'", "''", "5", "x'00ff'", "'2026-02-31 00:00:00.000000+00:00'"],
}


def test_times_that_nobody_can_read(trail: ChainedTrail) -> None:
    """They are findings, in each table, and no error."""
    some = first_row(trail)
    for table, column, row, named in (
        ("validation_history", "validated_at", f"id = {some}", f"row {some}"),
        ("audit_batches", "hour", "writer = 'aa'", "batch 1 of chain aa"),
        ("audit_checkpoints", "made_at", "number = 1", "checkpoint 1"),
        ("administrative_acts", "acted_at", "id = 1", "act 1"),
    ):
        for value in STRANGE[trail.database.dialect_name]:
            [(before,)] = rows_of(trail.database, f"SELECT {column} FROM {table} WHERE {row}")
            change = f"UPDATE {table} SET {column} = {{}} WHERE {row}"
            execute(trail.database, change.format(value))
            assert ("changed", named) in [each[:2] for each in trail.verify()], (table, value)
            execute(trail.database, change.format(f"'{before}'"))
    assert trail.verify() == []


TABLES = {
    "validation_history": {"id"},
    "audit_batches": {"writer", "sequence"},
    "audit_checkpoints": {"number"},
    "administrative_acts": {"id"},
    "act_subjects": {"act_id", "subject"},
    "audit_keys": {"key_id", "wrapped_private_key", "kek_id", "created_at"},
}
"""Each table, and columns that name a row or are no part of the trail."""
KEYS = "SELECT conname FROM pg_constraint WHERE conrelid = '{}'::regclass AND contype = 'p'"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", TABLES)
def test_values_of_another_type(trail: ChainedTrail, table: str) -> None:
    """SQLite stores anything in any column."""
    for column in set(metadata.tables[table].columns.keys()) - TABLES[table]:
        for value in ("x'00ff'", "'text'", "987654", "1.5", "9223372036854775807"):
            with trail.database.engine.connect() as connection, connection.begin() as transaction:
                connection.exec_driver_sql(f"UPDATE {table} SET {column} = {value} WHERE rowid = 1")
                found = list(verify(DatabaseReader(connection), None, (), Verified()))
                transaction.rollback()
            assert found, (column, value)
    assert trail.verify() == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"audit_keys"}))
def test_no_value_where_there_must_be_one(trail: ChainedTrail, table: str) -> None:
    """An owner of the database can drop constraints. Python has no order of None and numbers."""
    columns = [each for each in metadata.tables[table].columns if not each.nullable]
    for column in columns:
        with trail.database.engine.connect() as connection, connection.begin() as transaction:
            for name in rows_of(trail.database, KEYS.format(table)):
                connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name[0]} CASCADE")
            connection.exec_driver_sql(f"ALTER TABLE {table} ALTER {column.name} DROP NOT NULL")
            connection.exec_driver_sql(f"UPDATE {table} SET {column.name} = NULL")
            found = list(verify(DatabaseReader(connection), None, (), Verified()))
            transaction.rollback()
        assert found, column.name
    assert trail.verify() == []
