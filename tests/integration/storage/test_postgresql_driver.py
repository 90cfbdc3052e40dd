"""Statements that go to libpq whole: what PostgreSQL reads of them, and what they raise."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import exc, text

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import postgresql_driver
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.postgresql import arrays
from birthmark_sma.storage.schema.validations import validation_counters

INTEGERS = st.integers(-(2**31), 2**31 - 1)
# PostgreSQL's text has no NUL.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-7)), timezone(timedelta(hours=5.5))])
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=ZONES)  # noqa: DTZ001


@pytest.fixture(scope="module")
def database(postgres_admin_url: str) -> Iterator[Database]:
    """A PostgreSQL without any table of ours."""
    opened = open_database(postgres_admin_url)
    yield opened
    opened.close()


def read_back(database: Database, kind: str, parameter: bytes) -> list[Any]:
    """What PostgreSQL takes an array for, read the ordinary way."""
    with database.write() as transaction:
        transaction.execute(text(f"CREATE TEMPORARY TABLE {kind}s (it {kind}[]) ON COMMIT DROP"))
        postgresql_driver.execute_blocking(
            transaction, f"INSERT INTO {kind}s VALUES ($1)", [parameter]
        )
        taken: list[Any] = transaction.execute(text(f"SELECT it FROM {kind}s")).scalar_one()
    return taken


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=64) | st.none(), min_size=1))
def test_bytes(database: Database, values: list[bytes | None]) -> None:
    """Any bytes, the empty ones too, and NULL."""
    assert read_back(database, "bytea", arrays.array_of_bytes(values)) == values


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(INTEGERS, min_size=1))
def test_integers(database: Database, values: list[int]) -> None:
    """Every 32-bit integer, there and back."""
    assert read_back(database, "integer", arrays.array_of_integers(values)) == values
    assert arrays.parse_integer_array(arrays.array_of_integers(values)) == tuple(values)
    nullable = [*values, None]
    assert read_back(database, "integer", arrays.array_of_integers(nullable)) == nullable


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(INTEGERS))
def test_integers_of_another_width(database: Database, values: list[int]) -> None:
    """CockroachDB has eight bytes for an `integer`, as the array says. Others are refused."""
    with database.read() as connection:
        for width in ("int4", "int8", "int2"):
            literal = f"{{{','.join(map(str, values))}}}"
            if width == "int2":
                literal = "{1,2}"
            answer = postgresql_driver.execute_blocking(
                connection, f"SELECT $1::text::{width}[]", [literal.encode()]
            ).get_value(0, 0)
            assert answer is not None
            if width == "int2":
                with pytest.raises(ValueError, match="OID 21"):
                    arrays.parse_integer_array(answer)
            else:
                assert arrays.parse_integer_array(answer) == tuple(values)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXT | st.none(), min_size=1))
def test_text(database: Database, values: Sequence[str | None]) -> None:
    """Any text, among it what looks like syntax, and NULL."""
    values = [*values, "NULL", "{}", '"', "\\", ",", None]
    assert read_back(database, "text", arrays.array_of_text(values)) == values


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TIMES | st.none(), min_size=1))
def test_times(database: Database, values: list[datetime | None]) -> None:
    """To the microsecond, whatever the zone, and NULL."""
    assert read_back(database, "timestamptz", arrays.array_of_times(values)) == values


def test_results_come_as_bytes(database: Database) -> None:
    """Rows and NULLs."""
    with database.read() as connection:
        found = postgresql_driver.execute_blocking(
            connection, "SELECT unnest($1::text[])", [arrays.array_of_text(["é", None])]
        )
    assert [found.get_value(row, 0) for row in range(found.ntuples)] == ["é".encode(), None]


def test_parameters_by_name(database: Database) -> None:
    """Each name is one parameter, however often it occurs. A cast is no parameter."""
    statement = postgresql_driver.NamedStatement(
        "SELECT :word::text || {middle} || :other::text || :word", middle="'-'"
    )
    with database.read() as connection:
        found = statement.run(connection, other=b"b", word="é".encode())
    assert found.get_value(0, 0) == "é-bé".encode()


def test_a_column_without_an_encoding_is_refused_at_once() -> None:
    """When the statement is built, and not when the first row is written."""
    with pytest.raises(TypeError, match="times"):
        arrays.ColumnArrays(validation_counters, ["minute", "times"])


def test_a_fault_of_the_statement_is_what_it_always_is(database: Database) -> None:
    """Errors carry PostgreSQL's code and pass through SQLAlchemy's classes."""
    with pytest.raises(exc.ProgrammingError) as raised, database.write() as transaction:
        postgresql_driver.execute_blocking(transaction, "SELECT FROM WHERE", [])
    assert getattr(raised.value.orig, "sqlstate", None) == "42601"
    with database.write() as transaction:  # and the connection is as good as before
        assert transaction.execute(text("SELECT 1")).scalar_one() == 1


def use_cut_connection(database: Database, moment: str) -> None:
    """Lose the connection in the middle of a transaction, and notice at one moment or the other."""
    with database.write() as transaction:
        own = transaction.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.write() as other:
            other.execute(text("SELECT pg_terminate_backend(:own, 5000)"), {"own": own})
        if moment == "statement":
            postgresql_driver.execute_blocking(transaction, "SELECT 1", [])


@pytest.mark.parametrize("moment", ["statement", "commit"])
def test_a_connection_that_is_cut(database: Database, moment: str) -> None:
    """Threat 19: it is said to be unavailable, and the next transaction gets a good connection."""
    with pytest.raises(DatabaseUnavailableError):
        use_cut_connection(database, moment)
    for _ in range(3):
        with database.write() as transaction:
            assert postgresql_driver.execute_blocking(transaction, "SELECT 1", []).ntuples == 1


def test_a_statement_that_is_no_longer_prepared(postgres_admin_url: str) -> None:
    """As behind a pooler that changes servers: unavailable once, and then prepared again."""
    database = open_database(postgres_admin_url)  # with one connection
    ask = "SELECT 'prepared once'"
    with database.write() as transaction:
        postgresql_driver.execute_blocking(transaction, ask, [])
        transaction.execute(text("DEALLOCATE ALL"))
    with pytest.raises(DatabaseUnavailableError), database.write() as transaction:
        postgresql_driver.execute_blocking(transaction, ask, [])
    with database.write() as transaction:
        assert (
            postgresql_driver.execute_blocking(transaction, ask, []).get_value(0, 0)
            == b"prepared once"
        )
    database.close()


def test_what_psycopg_does_leaves_statements_prepared(database: Database) -> None:
    """Neither a rollback nor a DROP beside them."""
    ask = "SELECT 'still prepared'"
    for ending in ("DROP TABLE IF EXISTS nowhere", "SELECT 1"):
        with database.write() as transaction:
            postgresql_driver.execute_blocking(transaction, ask, [])
            transaction.execute(text(ending))
            transaction.rollback()
    with database.write() as transaction:
        assert postgresql_driver.execute_blocking(transaction, ask, []).ntuples == 1


def test_a_commit_that_committed_nothing(database: Database) -> None:
    """PostgreSQL answers ROLLBACK, and no error, where an error before it went unheeded."""
    with (
        pytest.raises(DatabaseUnavailableError),
        database.write() as transaction,
        contextlib.suppress(exc.DBAPIError),
    ):
        transaction.execute(text("SELECT 1 / 0"))
    with database.write() as transaction:  # and the connection is as good as before
        assert postgresql_driver.execute_blocking(transaction, "SELECT 1", []).ntuples == 1


def test_a_statement_that_another_has_prepared(postgres_admin_url: str) -> None:
    """As behind a pooler that shares servers: unavailable once, and never another's statement."""
    database = open_database(postgres_admin_url)  # with one connection
    ask, other = "SELECT 'shared'", "SELECT 'not shared'"
    with database.write() as transaction:
        postgresql_driver.execute_blocking(transaction, ask, [])
        driver: Any = transaction.connection.driver_connection
        driver.prepared.clear()  # as if a program that knows nothing of it came here
    with database.write() as transaction:
        assert (
            postgresql_driver.execute_blocking(transaction, other, []).get_value(0, 0)
            == b"not shared"
        )
    with pytest.raises(DatabaseUnavailableError), database.write() as transaction:
        postgresql_driver.execute_blocking(transaction, ask, [])
    with database.write() as transaction:
        assert postgresql_driver.execute_blocking(transaction, ask, []).get_value(0, 0) == b"shared"
    database.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_is_utf8_whatever_the_session_would_be_in(
    postgres_admin_url: str, encoding: str
) -> None:
    """A serial that is not ASCII is the same through psycopg and past it."""
    database = open_database(f"{postgres_admin_url}?client_encoding={encoding}")
    with database.write() as transaction:
        found = postgresql_driver.execute_blocking(
            transaction, "SELECT unnest($1::text[])", [arrays.array_of_text(["Ü"])]
        )
        assert found.get_value(0, 0) == "Ü".encode()
        assert transaction.execute(text("SHOW client_encoding")).scalar_one() == "UTF8"
        assert transaction.execute(text("SELECT length('Ü')")).scalar_one() == 1
    database.close()
