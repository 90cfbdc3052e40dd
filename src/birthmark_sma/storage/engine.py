"""Open a database and hand out transactions on it.

PostgreSQL URLs go to libpq as they are, so every form that hosting platforms hand out works:
`postgres://`, `?sslmode=require`, several hosts. SQLite runs in WAL mode with synchronous=FULL:
what was committed survives a power cut.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, text
from sqlalchemy.pool import ConnectionPoolEntry

from birthmark_sma.errors import ConfigurationError, DatabaseUnavailableError
from birthmark_sma.storage import interruption, postgresql_driver
from birthmark_sma.storage.clock import DatabaseClock
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.faults import translate
from birthmark_sma.storage.sqlite_file import SqliteFile

_CONNECT_TIMEOUT_SECONDS = 3
_SQLITE_BUSY_SECONDS = 10
_MOST_SQL_CHARACTERS = 300
_BEGAN = "sma_statement_began"
_SQLITE_CACHE = "cache_size = -16384"
"""16 MiB a connection. With the 2 that SQLite takes, a large register is read again and again."""


_log = logging.getLogger(__name__)


class Database:
    """An open database. `read` and `write` are the only ways to a connection.

    Both raise DatabaseUnavailableError where the database cannot be reached or gives up, and where
    SQLite's `file` is no longer the one that is open.
    """

    def __init__(self, engine: Engine, file: SqliteFile | None = None) -> None:
        event.listen(engine, "before_cursor_execute", interruption.check)
        self._reading = engine
        self._writing = engine.execution_options(sma_write=True)
        self._file = file
        self.clock = DatabaseClock(self._ask_time if self.dialect_name == "postgresql" else None)

    @property
    def dialect_name(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._reading.dialect.name

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, for migrations."""
        return self._reading

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, on one snapshot on SQLite."""
        with self._connected(self._reading) as connection, connection.begin():
            self._check_file(connection)
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable once the block ends without an error, or never happened.

        SQLite admits one writer at a time: it is taken at the start, so that no writer finds out
        half way that another was faster.
        """
        with self._connected(self._writing) as connection:
            with connection.begin():
                yield connection
                self._check_file(connection)  # before the commit, so that nothing is lost
            self._check_file(connection)  # what was removed during the commit holds nothing

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Connection]:
        with (
            _translated(),
            engine.connect() as connection,
            interruption.interruptible(connection),
        ):
            yield connection

    def warn_when_slow(self, seconds: float) -> None:
        """Log every statement that takes longer, by its text, in which no value stands."""

        def begin(connection: Connection, *_: object) -> None:
            connection.info[_BEGAN] = time.perf_counter()

        def end(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
            took = time.perf_counter() - connection.info[_BEGAN]
            if took > seconds:
                text = " ".join(statement.split())[:_MOST_SQL_CHARACTERS]
                _log.warning("a statement took %.1f ms: %s", took * 1000, text)

        event.listen(self._reading, "before_cursor_execute", begin)
        event.listen(self._reading, "after_cursor_execute", end)

    def _ask_time(self) -> datetime:
        with self.read() as connection:
            return database_time(connection)

    def ping(self) -> None:
        """Ask the database for an answer. Raises DatabaseUnavailableError."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        if self._file is not None and self._file.is_known:
            with contextlib.suppress(DatabaseUnavailableError):
                self.ping()  # SQLite's file is looked at while its journal is still there
        self._reading.dispose()

    @property
    def lost(self) -> bool:
        """Say whether SQLite's file was found removed or replaced the last time it was used."""
        return self._file is not None and self._file.lost

    def _check_file(self, connection: Connection) -> None:
        if self._file is not None:
            self._file.check(connection.info)


def open_database(url: str) -> Database:
    """Open a database by its URL without touching it yet.

    Raises ConfigurationError for a URL that is neither `sqlite:///FILE` nor one that libpq reads.
    """
    if url.startswith("sqlite:///"):
        file = SqliteFile(Path(url.removeprefix("sqlite:///")))
        return Database(_sqlite(file), file)
    scheme, separator, rest = url.partition("://")
    if separator and scheme.partition("+")[0] in {"postgresql", "postgres"}:
        return Database(_postgresql(f"postgresql://{rest}"))
    raise ConfigurationError(
        "DATABASE_URL is neither PostgreSQL (postgresql://user:password@host/database) nor SQLite"
        " (sqlite:///file)."
    )


def measure(connection: Connection) -> int:
    """Return how many bytes the database occupies."""
    if connection.dialect.name == "postgresql":
        size = text("SELECT pg_database_size(current_database())")
    else:
        size = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    return int(connection.execute(size).scalar_one())


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.SQLAlchemyError as error:
        unavailable = translate(error)
        if unavailable is None:
            raise
        raise unavailable from error


def _sqlite(file: SqliteFile) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(file.path)),
        hide_parameters=True,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "do_connect")
    def _keep_private(*_: object) -> None:
        file.prepare()

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says so
        _enter_wal_mode(connection)
        for pragma in ("synchronous = FULL", "foreign_keys = ON", _SQLITE_CACHE):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("SELECT count(*) FROM sqlite_master")  # this opens the journal
        file.remember(record.info)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("sma_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL mode, which SQLite refuses at once while another connection does."""
    deadline = time.monotonic() + _SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _postgresql(conninfo: str) -> Engine:
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"DATABASE_URL cannot be read: {_first_line(error)}.") from None
    defaults: dict[str, Any] = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "application_name": "birthmark-sma",
        "keepalives_idle": 30,
        # psycopg would prepare by itself, and throw away all that is prepared with each rollback.
        "prepare_threshold": None,
    }
    extra = {name: value for name, value in defaults.items() if name not in given}
    # What `storage.postgresql` sends and reads past psycopg is UTF-8, whatever the database is in.
    extra["client_encoding"] = "UTF8"
    return postgresql_driver.create(
        lambda: psycopg.connect(conninfo, **extra),
        hide_parameters=True,
        pool_size=5,
        max_overflow=10,
        pool_timeout=_CONNECT_TIMEOUT_SECONDS,
        pool_pre_ping=True,
    )


def _first_line(error: Exception) -> str:
    # libpq quotes the offending part, which may be a password: keep to what precedes it.
    return str(error).partition('"')[0].strip(" :") or "it is malformed"
