"""A move from SQLite to PostgreSQL: everything arrives, or the message says what to do."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.initialisation import initialise, is_initialised
from birthmark_sma.authority.operations.moving import move as moving
from birthmark_sma.authority.operations.moving import store_postgresql as target
from birthmark_sma.authority.operations.moving import store_sqlite as source
from birthmark_sma.authority.operations.moving.move import undo_move
from birthmark_sma.authority.operations.moving.proof import take_digest
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    AuthorityMovedError,
    BirthmarkError,
    ConfigurationError,
    DatabaseUnavailableError,
    MoveError,
    WrongSecretError,
)
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import move_progress
from birthmark_sma.storage.partitions import UNFORESEEN
from birthmark_sma.storage.schema import metadata
from tests.support.authorities import execute, new_camera, opened, quiet, rows_of
from tests.support.cameras.camera import Camera
from tests.support.databases.moving import DAYS, fill, move, to_postgresql
from tests.support.databases.postgres import Postgres
from tests.support.devices.actors import ACTOR


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Settings, list[Camera]]:
    """An authority on SQLite, and its cameras."""
    return fill(tmp_path)


@pytest.fixture
def settings(filled: tuple[Settings, list[Camera]]) -> Settings:
    """The settings of this authority."""
    return filled[0]


@pytest.fixture
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy three rows in each transaction."""
    monkeypatch.setattr(moving, "CHUNK_ROWS", 3)


@contextmanager
def database_of(settings: Settings) -> Iterator[Database]:
    """Open the database of these settings, past all checks."""
    with closing(open_database(settings.resolved_database_url)) as database:
        yield database


def rows_by_table(settings: Settings) -> dict[str, tuple[int, str]]:
    """Return number and digest of the rows of each table."""
    with database_of(settings) as database, database.read() as connection:
        taken = [take_digest(connection, table) for table in metadata.sorted_tables]
    return {each.table: (each.rows, each.digest) for each in taken}


def sqlite(settings: Settings, statement: str, *values: Any) -> None:
    """Change SQLite behind the authority's back."""
    assert settings.sqlite_file is not None
    with closing(sqlite3.connect(settings.sqlite_file, isolation_level=None)) as connection:
        connection.execute(statement, values)


def test_everything_arrives(
    filled: tuple[Settings, list[Camera]], postgres_url: str, chunks_of_three: None
) -> None:
    """All rows of all tables; each day has its partition; cameras pass, new rows get new ids."""
    settings, cameras = filled
    before = rows_by_table(settings)
    moved = move(settings, postgres_url)
    assert moved.proof is not None
    proved = {each.table: (each.rows, each.digest) for each in moved.proof.tables}
    changed = {"authority"}
    assert {name: before[name] for name in before.keys() - changed} == {
        name: proved[name] for name in proved.keys() - changed
    }
    assert moved.copied == moved.proof.rows == sum(rows for rows, _ in before.values())
    assert (moved.proof.key_tables, moved.proof.devices) == (settings.tables, len(cameras))
    new = to_postgresql(settings, postgres_url)
    with opened(new) as authority:
        assert rows_of(authority.database, f"SELECT count(*) FROM {UNFORESEEN}") == [(0,)]
        partitions = "SELECT count(DISTINCT tableoid) FROM validation_history"
        assert rows_of(authority.database, partitions) == [(len(DAYS),)]
        late = new_camera(authority, "late")
        for camera in (*cameras, late):
            answer = authority.validator.submit(camera.token(), Caller(None)).result()
            assert (answer.verdict, answer.device_serial) == (Verdict.PASS, camera.serial)
        numbers = [
            row[0] for row in rows_of(authority.database, "SELECT id FROM validation_history")
        ]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        acts = "SELECT act, details FROM administrative_acts ORDER BY id"
        [*_, (act, details)] = rows_of(authority.database, acts)
    assert (act, json.loads(details)["rows"]) == ("authority.move", moved.copied)


def test_the_old_database_is_refused(
    settings: Settings, postgres_url: str, own_postgres: Postgres
) -> None:
    """It says where the authority is. Undone, it is as before, with one act more."""
    before = rows_by_table(settings)
    move(settings, postgres_url)
    (settings.data_dir / "authority.json").unlink()  # which would refuse it first
    with pytest.raises(AuthorityMovedError, match=r"was moved to PostgreSQL, database .*at 20"):
        is_initialised(settings)
    with pytest.raises(AuthorityMovedError):
        initialise(settings, quiet, ACTOR)
    assert move(settings, postgres_url).proof is None  # the same command again
    with pytest.raises(MoveError, match=r"was moved to .* already"):
        move(settings, own_postgres.create_database("elsewhere"))
    undo_move(settings, ACTOR)
    after = rows_by_table(settings)
    for grown in ("administrative_acts", "audit_batches"):
        assert after.pop(grown)[0] == before.pop(grown)[0] + 1
    assert after == before
    with pytest.raises(MoveError, match="was not moved"):
        undo_move(settings, ACTOR)


def test_the_root_key_goes_along(settings: Settings, postgres_url: str) -> None:
    """Under the name that it has with PostgreSQL; undone, it has its old name."""
    names = [settings.data_dir / f"simulated-mfg-root-ca{each}.key" for each in ("", "-2")]
    names[1].write_text("a later root's")
    moved = [
        settings.data_dir / f"simulated-mfg-root-ca.postgresql{each}.key" for each in ("", "-2")
    ]
    move(settings, postgres_url)
    assert ([each.exists() for each in names], [each.exists() for each in moved]) == (
        [False] * 2,
        [True] * 2,
    )
    undo_move(settings, ACTOR)
    assert [each.exists() for each in names] == [True] * 2


def test_the_root_key_of_another_authority_is_in_the_way(
    settings: Settings, postgres_url: str
) -> None:
    """Refused before anything is marked."""
    (settings.data_dir / "simulated-mfg-root-ca.postgresql.key").write_text("another")
    with pytest.raises(MoveError, match="root key of another authority"):
        move(settings, postgres_url)
    assert is_initialised(settings)


# --- what else may use the databases


@pytest.mark.parametrize("kind", ["idle", "reading", "writing"])
def test_a_file_in_use_is_not_moved(
    settings: Settings, postgres_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: two authorities with one identity. A server that does nothing is noticed, too."""
    monkeypatch.setattr(source, "_LOCK_SECONDS", 0.3)
    with database_of(settings) as database:
        database.ping()  # the connection stays in the pool
        if kind == "idle":
            with pytest.raises(MoveError, match="A server or another command uses"):
                move(settings, postgres_url)
        elif kind == "reading":
            with database.read() as connection:
                connection.exec_driver_sql("SELECT * FROM authority").all()
                with pytest.raises(MoveError, match="A server"):
                    move(settings, postgres_url)
        else:
            with database.write(), pytest.raises(MoveError, match="A server"):
                move(settings, postgres_url)
    assert is_initialised(settings)
    move(settings, postgres_url)


def test_the_file_is_locked_during_the_move(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other program reads or writes it between the first row and the proof."""
    refused = []
    copy = target.copy_rows

    def looking(*arguments: Any) -> Any:
        assert settings.sqlite_file is not None
        with closing(sqlite3.connect(settings.sqlite_file, timeout=0)) as other:
            try:
                other.execute("SELECT count(*) FROM authority")
            except sqlite3.OperationalError as error:
                refused.append(str(error))
        return copy(*arguments)

    monkeypatch.setattr(target, "copy_rows", looking)
    move(settings, postgres_url)
    assert set(refused) == {"database is locked"}


def test_targets_that_are_not_empty(settings: Settings, postgres_url: str, tmp_path: Path) -> None:
    """A foreign table, another authority, and this authority itself. Nothing is changed."""
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("CREATE TABLE mine (id int)")
        with pytest.raises(MoveError, match="is not empty: it has mine"):
            move(settings, postgres_url)
        other.execute("DROP TABLE mine")
    second, _ = fill(tmp_path / "second", devices=1)
    move(second, postgres_url)
    with pytest.raises(MoveError, match="another authority"):
        move(settings, postgres_url)
    undo_move(second, ACTOR)
    with pytest.raises(MoveError, match="this very authority"):
        move(second, postgres_url)
    assert is_initialised(settings)


def test_a_table_that_is_called_as_one_of_ours(settings: Settings, postgres_url: str) -> None:
    """A database of an older or another program."""
    with psycopg.connect(postgres_url) as other:
        other.execute("CREATE TABLE authority (id int)")
    with pytest.raises(MoveError, match="is not empty"):
        move(settings, postgres_url)


# --- interruptions


class StoppedError(Exception):
    """Takes the place of a kill."""


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool, times: int = 0) -> None:
    """Let a step of the move end with an error, before or after it, from a call of it on."""
    real: Callable[..., Any] = getattr(target, name)
    calls = iter(range(10_000))

    def stopping(*arguments: Any) -> Any:
        is_due = next(calls) >= times
        if is_due and not after:
            raise StoppedError
        result = real(*arguments)
        if is_due:
            raise StoppedError
        return result

    monkeypatch.setattr(target, name, stopping)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "times"),
    [("prepare", 0), ("create_days", 0), ("copy_rows", 0), ("copy_rows", 6), ("finish", 0)],
)
def test_an_interrupted_move_goes_on(
    filled: tuple[Settings, list[Camera]],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    chunks_of_three: None,
    *,
    name: str,
    times: int,
    after: bool,
) -> None:
    """At each step, before and after its commit; meanwhile nothing opens either database."""
    settings, cameras = filled
    new = to_postgresql(settings, postgres_url)
    with monkeypatch.context() as patched:
        stop_at(patched, name, after=after, times=times)
        with pytest.raises(StoppedError):
            move(settings, postgres_url)
    for each in (settings, new):
        (settings.data_dir / "authority.json").unlink(missing_ok=True)
        if each is new and (name, after) in {("prepare", False), ("finish", True)}:
            continue  # empty, or complete
        with pytest.raises(AuthorityMovedError, match="sma move"):
            is_initialised(each)
        with pytest.raises(AuthorityMovedError, match="sma move"):
            initialise(each, quiet, ACTOR)
    moved = move(settings, postgres_url)
    assert (moved.proof is None) == ((name, after) == ("finish", True))
    with opened(new) as authority:
        for camera in cameras:
            answer = authority.validator.submit(camera.token(), Caller(None)).result()
            assert answer.verdict is Verdict.PASS
        acts = "SELECT count(*) FROM administrative_acts WHERE act = 'authority.move'"
        assert rows_of(authority.database, acts) == [(1,)]
        tables = "SELECT count(*) FROM pg_tables WHERE tablename = :name"
        assert rows_of(authority.database, tables, name=move_progress.name) == [(0,)]


def test_a_move_goes_to_one_database_alone(
    settings: Settings, postgres_url: str, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once begun, it cannot go elsewhere: the first database may be complete. Undone, it can."""
    with monkeypatch.context() as patched:
        stop_at(patched, "finish", after=True)
        with pytest.raises(StoppedError):
            move(settings, postgres_url)
    elsewhere = own_postgres.create_database("elsewhere")
    with pytest.raises(MoveError, match=r"is being moved to .*undo"):
        move(settings, elsewhere)
    undo_move(settings, ACTOR)
    with monkeypatch.context() as patched:
        stop_at(patched, "finish", after=False)
        with pytest.raises(StoppedError):
            move(settings, elsewhere)
    undo_move(settings, ACTOR)
    with pytest.raises(MoveError, match="a part of another move"):
        move(settings, elsewhere)


def test_two_moves_at_once(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that another process has overtaken, nothing is committed."""
    real = target.copy_rows

    def overtaken(database: Database, *arguments: Any) -> Any:
        execute(database, "UPDATE move_progress SET last_rowid = 99, rows_copied = 99")
        return real(database, *arguments)

    monkeypatch.setattr(target, "copy_rows", overtaken)
    with pytest.raises(MoveError, match="Another sma move"):
        move(settings, postgres_url)


def test_the_database_goes_away(
    settings: Settings, own_postgres: Postgres, monkeypatch: Any
) -> None:
    """Stopped during the copy, and started again."""
    monkeypatch.setattr(moving, "CHUNK_ROWS", 3)
    url = own_postgres.create_database("target")
    real, calls = target.copy_rows, iter(range(1_000))

    def losing(*arguments: Any) -> Any:
        if next(calls) == 4:
            own_postgres.kill()
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(target, "copy_rows", losing)
        with pytest.raises(DatabaseUnavailableError):
            move(settings, url)
    own_postgres.start()
    moved = move(settings, url)
    assert moved.proof is not None
    assert moved.copied < moved.proof.rows


# --- rows that PostgreSQL cannot store, and rows that change


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE {} SET request_id = 'a' || char(0) WHERE id = 5", "NUL"),
        ("UPDATE {} SET request_ip = printf('%099d', 1) WHERE id = 5", "too long"),
        ("UPDATE {} SET table_id = 'seven' WHERE id = 5", "integer"),
        ("UPDATE {} SET table_id = 9999999999 WHERE id = 5", "out of range"),
        ("UPDATE {} SET validated_at = '2026-01-01 00:00:00' WHERE id = 5", "UTC"),
        ("UPDATE {} SET validated_at = '2026-01-01 00:00:00+01:00' WHERE id = 5", "UTC"),
        ("UPDATE {} SET validated_at = '2026-01-01 soon' WHERE id = 5", "isoformat"),
    ],
)
def test_a_row_that_postgresql_cannot_store(
    settings: Settings, postgres_url: str, statement: str, said: str, chunks_of_three: None
) -> None:
    """SQLite takes what operators' own SQL writes. The row is named; corrected, all arrives."""
    [(before,)] = read(settings, "SELECT validated_at FROM validation_history WHERE id = 5")
    sqlite(settings, statement.format("validation_history"))
    named = r"row of validation_history, that with rowid 5: .*"
    with pytest.raises(MoveError, match=named + said):
        move(settings, postgres_url)
    sqlite(
        settings,
        "UPDATE validation_history SET request_id = NULL, request_ip = NULL, table_id = 1,"
        " validated_at = ? WHERE id = 5",
        before,
    )
    moved = move(settings, postgres_url)
    assert moved.proof is not None


def read(settings: Settings, query: str) -> list[Any]:
    """Return rows of SQLite."""
    assert settings.sqlite_file is not None
    with closing(sqlite3.connect(settings.sqlite_file)) as connection:
        return connection.execute(query).fetchall()


def test_a_day_that_is_none(settings: Settings, postgres_url: str) -> None:
    """The partitions come first, so it is noticed before rows are copied."""
    sqlite(settings, "UPDATE validation_history SET validated_at = 'yesterday' WHERE id = 5")
    with pytest.raises(MoveError, match="time that is none"):
        move(settings, postgres_url)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE validation_history SET key_index = key_index + 1 WHERE id = 1",
        "DELETE FROM validation_history WHERE id = 1",
        "UPDATE registered_devices SET table_assignments = '[0, 1, 2]' WHERE rowid = 1",
        "UPDATE key_tables SET created_at = '2026-01-01 00:00:00.000001+00:00' WHERE table_id = 0",
    ],
)
def test_the_proof_finds_what_was_changed_after_its_copy(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """By somebody's own SQL between two runs. With a new database, the same command goes on."""
    with monkeypatch.context() as patched:
        stop_at(patched, "finish", after=False)
        with pytest.raises(StoppedError):
            move(settings, postgres_url)
    sqlite(settings, change)
    with pytest.raises(MoveError, match=r"The proof failed: \w+ has"):
        move(settings, postgres_url)
    with psycopg.connect(postgres_url) as other:
        other.execute("DROP SCHEMA public CASCADE")
        other.execute("CREATE SCHEMA public")
    assert move(settings, postgres_url).proof is not None


def test_a_wrong_passphrase_is_told_at_once(tmp_path: Path, postgres_url: str) -> None:
    """Before anything is marked or copied."""
    settings, _ = fill(tmp_path)
    with_other = settings.model_copy(update={"kek_file": None})
    with pytest.raises((WrongSecretError, ConfigurationError)):
        move(with_other, postgres_url)
    assert is_initialised(settings)


def test_a_damaged_file_is_not_moved(settings: Settings, postgres_url: str) -> None:
    """As no backup is made of it."""
    assert settings.sqlite_file is not None
    with settings.sqlite_file.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\x55" * 4096)
    with pytest.raises((MoveError, BirthmarkError), match="damaged"):
        move(settings, postgres_url)


def test_the_digest_is_that_of_each_value(settings: Settings) -> None:
    """It differs if one byte, one microsecond or one number does."""
    digests = {rows_by_table(settings)["validation_history"]}
    for change in (
        "key_index = 3",
        "encrypted_nuc_hash = x'00'",
        "validated_at = '2026-01-01 00:00:00.000001+00:00'",
        "request_id = ''",
    ):
        sqlite(settings, f"UPDATE validation_history SET {change} WHERE id = 1")
        digests.add(rows_by_table(settings)["validation_history"])
    assert len(digests) == 5
