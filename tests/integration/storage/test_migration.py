"""Migrations: from nothing to this program's schema, once, and refusals that say what to type."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, inspect, text

from birthmark_sma.errors import (
    AuthorityMovedError,
    DatabaseUnavailableError,
    SchemaMismatchError,
)
from birthmark_sma.storage import migration
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import (
    check_schema,
    migrate,
    move_progress,
    schema_revision,
)
from birthmark_sma.storage.partitions import list_partitions
from birthmark_sma.storage.schema import HEAD_REVISION, metadata
from tests.support.authorities import execute, rows_of

MIGRATE = """
import sys
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import migrate
database = open_database(sys.argv[1])
sys.stdin.read()
print(migrate(database)[0])
database.close()
"""


def tables_of(database: Database) -> set[str]:
    """Return the names of the tables that exist; partitions count as their table."""
    with database.read() as connection:
        names = inspect(connection).get_table_names()
        partitions = {partition.name for partition in list_partitions(connection)}
    return set(names) - partitions


def together(work: Callable[[], Any], times: int) -> list[Any]:
    """Let as many threads do the same at once; return what each of them got, or its error."""
    results: list[Any] = []
    start = threading.Barrier(times)

    def run() -> None:
        start.wait(30)
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


# --- what a migration does


def test_from_nothing(empty_database: Database) -> None:
    """An empty database gets every table, and is then accepted."""
    assert migrate(empty_database) == (None, HEAD_REVISION)
    assert tables_of(empty_database) == {*metadata.tables, "alembic_version"}
    check_schema(empty_database)


def test_a_second_migration_changes_nothing(database: Database) -> None:
    """Rows stay, and the answer says that nothing was to do."""
    statement = "INSERT INTO authority (id, tables, keys_per_table, created_at)"
    execute(database, statement + " VALUES (1, 10, 100, '2026-01-01 00:00:00+00:00')")
    assert migrate(database) == (HEAD_REVISION, HEAD_REVISION)
    assert rows_of(database, "SELECT tables FROM authority") == [(10,)]


def test_a_migration_that_is_cut_off_never_happened(empty_database: Database) -> None:
    """It happens wholly or not at all, and can be repeated."""

    class PowerCutError(BaseException):
        """Nobody catches this."""

    def cut(*arguments: Any) -> None:
        if "CREATE TABLE validation_history" in arguments[2]:
            raise PowerCutError

    event.listen(empty_database.engine, "before_cursor_execute", cut)
    with pytest.raises(PowerCutError):
        migrate(empty_database)
    event.remove(empty_database.engine, "before_cursor_execute", cut)
    assert tables_of(empty_database) == set()
    assert migrate(empty_database) == (None, HEAD_REVISION)


def test_threads_that_migrate_at_once_take_turns(database_url: str) -> None:
    """Four of them, each with connections of its own: one migrates, the others find it done."""

    def run() -> str | None:
        database = open_database(database_url)
        try:
            return migrate(database)[0]
        finally:
            database.close()

    results = together(run, 4)
    assert sorted(results, key=str) == [HEAD_REVISION] * 3 + [None]


def test_programs_that_migrate_at_once_take_turns(database_url: str) -> None:
    """Two machines that are upgraded together do not disturb each other."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.close()
        program.stdin = None
    said = [program.communicate(timeout=60) for program in programs]
    assert sorted(out.strip() for out, _ in said) == [HEAD_REVISION, "None"], said


# --- what is in the migrations


def test_the_head_is_what_the_program_expects() -> None:
    """There is one head, and the schema module knows it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD_REVISION]


POSTGRESQL_ALONE = {
    "sighted_tokens_first_seen_at_idx",
    "registered_devices_serial_idx",
    "validation_history_request_id_idx",
    "audit_batches_hour_idx",
}


def test_alembic_finds_no_difference(database: Database) -> None:
    """Autogeneration would write an empty migration: types, lengths, indexes, all as declared."""
    with database.read() as connection:
        partitions = {partition.name for partition in list_partitions(connection)}
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or name not in partitions,
                # Alembic does not heed what a declaration says of its databases.
                "include_object": lambda _, name, *__: (
                    connection.dialect.name == "postgresql" or name not in POSTGRESQL_ALONE
                ),
            },
        )
        assert compare_metadata(context, metadata) == []


def test_migrated_and_declared_are_the_same(empty_database: Database) -> None:
    """What Alembic does not compare, as checks and the names of constraints, is the same too."""
    migrate(empty_database)
    with empty_database.read() as connection:
        migrated = _described(connection)
    with empty_database.write() as transaction:
        metadata.drop_all(transaction)
        metadata.create_all(transaction)
    with empty_database.read() as connection:
        assert migrated == _described(connection)


def _described(connection: Connection) -> dict[str, dict[str, Any]]:
    inspector = inspect(connection)
    return {
        table: {
            "columns": [
                {**column, "type": str(column["type"])} for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table)
            if (table, connection.dialect.name) != ("validation_history", "postgresql")
            else None,  # partitioned, which SQLAlchemy cannot declare
            "unique": _by_name(inspector.get_unique_constraints(table)),
            "foreign keys": _by_name(inspector.get_foreign_keys(table)),
            "checks": _by_name(inspector.get_check_constraints(table)),
            "indexes": _by_name([_told(index) for index in inspector.get_indexes(table)]),
        }
        for table in metadata.tables
    }


def _told(index: Any) -> dict[str, Any]:
    """An index with its options as text: the condition of one equals nothing but itself."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return {**index, "dialect_options": options}


def _by_name(constraints: list[Any]) -> list[Any]:
    return sorted(constraints, key=lambda constraint: str(constraint["name"]))


# --- what is refused


def test_an_empty_database_is_refused(empty_database: Database) -> None:
    """Whoever opens it is told the command that founds an authority."""
    with pytest.raises(SchemaMismatchError, match=r"Type: sma init$"):
        check_schema(empty_database)
    assert tables_of(empty_database) == set()


def test_a_version_table_without_a_version_counts_as_empty(empty_database: Database) -> None:
    """That is what an interrupted tool of another kind may leave."""
    execute(empty_database, "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)")
    with pytest.raises(SchemaMismatchError, match=r"Type: sma init$"):
        check_schema(empty_database)


def test_an_older_schema_is_refused(database: Database) -> None:
    """Whoever opens it is told the command that migrates."""
    execute(database, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaMismatchError, match=f"0000.*{HEAD_REVISION}.*Type: sma migrate$"):
        check_schema(database)


def test_a_newer_schema_is_refused(database: Database) -> None:
    """An old program neither reads nor migrates what a newer one made."""
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    for use in (check_schema, migrate):
        with pytest.raises(SchemaMismatchError, match=r"9999.*newer program"):
            use(database)
    with database.read() as connection:
        assert schema_revision(connection) == "9999"


def test_an_outage_is_not_an_empty_database(tmp_path: Path) -> None:
    """Threat 19: nobody is told to found an authority because the database was away."""
    database = open_database("postgresql://sma:x@127.0.0.1:1/sma")
    with pytest.raises(DatabaseUnavailableError):
        check_schema(database)
    database.close()


# --- the types that operators' queries rely on


def test_the_types_on_postgresql(postgres_url: str) -> None:
    """Threat 25: every time has its zone, and table assignments are an array of integers."""
    database = open_database(postgres_url)
    migrate(database)
    types = {
        (table, column): kind
        for table, column, kind in rows_of(
            database,
            "SELECT table_name, column_name, udt_name FROM information_schema.columns"
            " WHERE table_schema = 'public'",
        )
    }
    assert types["registered_devices", "table_assignments"] == "_int4"
    assert types["registered_devices", "nuc_hash"] == "bytea"
    assert types["key_tables", "master_key"] == "bytea"
    assert types["validation_history", "id"] == "int8"
    times = {column: kind for (_, column), kind in types.items() if column.endswith("_at")}
    assert set(times.values()) == {"timestamptz"}
    assert len(times) >= 4
    assert not {kind for kind in types.values() if kind in {"timestamp", "time"}}
    assert {column for (_, column), kind in types.items() if kind == "date"} == {"day"}
    assert types["validation_counters", "minute"] == "timestamptz"
    with database.read() as connection:
        assert connection.execute(text("SHOW server_encoding")).scalar() == "UTF8"
    database.close()


def test_a_database_of_an_unfinished_move(database: Database) -> None:
    """Neither opened nor migrated, also if it has no row of progress yet."""
    with database.write() as transaction:
        move_progress.create(transaction)
    for use in (check_schema, migrate):
        with pytest.raises(AuthorityMovedError, match="a part of an authority"):
            use(database)
    with database.write() as transaction:
        move_progress.drop(transaction)
    check_schema(database)
