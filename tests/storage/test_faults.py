"""Errors of drivers, by their codes: what is out of order, and what is a fault of this program."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import exc

from birthmark_sma.errors import DatabaseFault
from birthmark_sma.storage.faults import translate
from birthmark_sma.storage.outages.deadlines import UnreplicatedError

KINDS: dict[type[Exception], Any] = {
    psycopg.OperationalError: exc.OperationalError,
    psycopg.ProgrammingError: exc.ProgrammingError,
    psycopg.DataError: exc.DataError,
    psycopg.InternalError: exc.InternalError,
    psycopg.IntegrityError: exc.IntegrityError,
}


def raised_by_postgresql(code: str) -> exc.DBAPIError:
    """What SQLAlchemy raises for a SQLSTATE."""
    cause = psycopg.errors.lookup(code)("secret words")
    [kind] = [ours for theirs, ours in KINDS.items() if isinstance(cause, theirs)]
    error: exc.DBAPIError = kind("SELECT 1", {}, cause)
    return error


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("08003", DatabaseFault.AWAY),
        ("08006", DatabaseFault.AWAY),
        ("2200H", DatabaseFault.SEQUENCE),
        ("25006", DatabaseFault.READ_ONLY),
        ("25P03", DatabaseFault.AWAY),
        ("26000", DatabaseFault.BUSY),
        ("3F000", DatabaseFault.SCHEMA),
        ("40001", DatabaseFault.BUSY),
        ("40P01", DatabaseFault.BUSY),
        ("42501", DatabaseFault.REFUSED),
        ("42703", DatabaseFault.SCHEMA),
        ("42P01", DatabaseFault.SCHEMA),
        ("42P05", DatabaseFault.BUSY),
        ("53100", DatabaseFault.FULL),
        ("53200", DatabaseFault.BUSY),
        ("53300", DatabaseFault.CONNECTIONS),
        ("55P03", DatabaseFault.LOCKED),
        ("57014", DatabaseFault.BUSY),
        ("57P01", DatabaseFault.AWAY),
        ("57P02", DatabaseFault.AWAY),
        ("57P03", DatabaseFault.AWAY),
        ("58030", DatabaseFault.FAILED),
        ("XX000", DatabaseFault.FAILED),
        ("XX001", DatabaseFault.DAMAGED),
    ],
)
def test_a_state_of_postgresql(code: str, fault: DatabaseFault) -> None:
    """Threat 28: the driver's own words are in neither sentence."""
    error = translate(raised_by_postgresql(code))
    assert error is not None
    assert error.fault is fault
    assert "secret" not in str(error) + error.advice
    assert (str(error), error.advice) == (str(error.again()), error.again().advice)


@pytest.mark.parametrize("code", ["40001", "40P01", "26000", "42P05", "53300"])
def test_the_database_asks_for_the_transaction_again(code: str) -> None:
    """`storage.outages.retries` does it, and nothing else is marked so."""
    again = translate(raised_by_postgresql(code))
    assert again is not None
    assert again.try_again
    for other in ("25006", "40003", "53100", "55P03", "57014", "57P01"):
        error = translate(raised_by_postgresql(other))
        assert error is not None
        assert not error.try_again


UNUSABLE = ("08006", "25006", "25P03", "57P01", "57P02", "57P03")


@pytest.mark.parametrize("code", UNUSABLE)
def test_each_kind_of_unusable_connection_has_its_advice(code: str) -> None:
    """So that an operator who reads one line of the log knows where to look."""
    error = translate(raised_by_postgresql(code))
    assert error is not None
    others = [each for each in UNUSABLE if each != code]
    advice = [getattr(translate(raised_by_postgresql(each)), "advice", "") for each in others]
    assert error.advice
    assert error.advice not in advice


def test_a_commit_that_is_not_replicated() -> None:
    """It is no success, and must not be run again before it was looked up."""
    error = translate(exc.OperationalError("COMMIT", {}, UnreplicatedError("secret words")))
    assert error is not None
    assert error.fault is DatabaseFault.AWAY
    assert "standby" in error.advice
    assert not error.try_again


@pytest.mark.parametrize("code", ["23505", "23514", "22001", "42601", "42804"])
def test_what_is_not_the_database_s_fault_is_left_alone(code: str) -> None:
    """A UNIQUE constraint that decides a race, a value or a statement that is wrong."""
    assert translate(raised_by_postgresql(code)) is None


@pytest.mark.parametrize(("constraint", "is_fault"), [(None, True), ("positive", False)])
def test_a_partition_that_is_missing(constraint: str | None, is_fault: bool) -> None:
    """PostgreSQL has no SQLSTATE of its own for it, and names no constraint."""

    class Violation(psycopg.errors.CheckViolation):
        diag = SimpleNamespace(table_name="validation_history", constraint_name=constraint)  # type: ignore[assignment]

    error = translate(exc.IntegrityError("INSERT", {}, Violation("secret words")))
    assert (error is not None and error.fault is DatabaseFault.SCHEMA) == is_fault


def test_a_connection_that_is_gone_has_no_state() -> None:
    """And a server that lets nobody in says so in words alone."""
    for words, fault in (
        ("server closed the connection unexpectedly", DatabaseFault.AWAY),
        ("FATAL:  sorry, too many clients already", DatabaseFault.CONNECTIONS),
        ("session is read-only", DatabaseFault.READ_ONLY),
        ("FATAL:  the database system is starting up", DatabaseFault.AWAY),
    ):
        error = translate(exc.OperationalError("", {}, psycopg.OperationalError(words)))
        assert error is not None
        assert error.fault is fault


def test_states_of_sqlite(tmp_path: Path) -> None:
    """Each as SQLite itself raises it."""
    file = tmp_path / "a.db"
    sqlite3.connect(file).execute("CREATE TABLE there (x)").connection.close()
    small = sqlite3.connect(file, isolation_level=None)
    small.execute("PRAGMA max_page_count = 2")
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this was never a database" * 200)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    played = [
        (sqlite3.connect(file), "SELECT * FROM missing", DatabaseFault.SCHEMA),
        (sqlite3.connect(damaged), "SELECT * FROM there", DatabaseFault.DAMAGED),
        (
            sqlite3.connect(f"file:{file}?mode=ro", uri=True),
            "INSERT INTO there VALUES (1)",
            DatabaseFault.READ_ONLY,
        ),
        (sqlite3.connect(file, timeout=0), "BEGIN IMMEDIATE", DatabaseFault.LOCKED),
    ]
    for connection, statement, fault in played:
        assert fault_of(connection, statement) is fault
        connection.close()
    holder.close()
    filling = "INSERT INTO there VALUES (zeroblob(100000))"
    assert fault_of(small, filling) is DatabaseFault.FULL
    small.close()


def fault_of(connection: sqlite3.Connection, statement: str) -> DatabaseFault | None:
    """What a statement's error is taken for."""
    with pytest.raises(sqlite3.Error) as raised:
        connection.execute(statement)
    operational = isinstance(raised.value, sqlite3.OperationalError)
    kind = exc.OperationalError if operational else exc.DatabaseError
    error = translate(kind(statement, {}, raised.value))
    return None if error is None else error.fault
