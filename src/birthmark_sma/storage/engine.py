"""Open a database and provide transactions on it.

PostgreSQL URLs are passed to libpq unchanged, so all forms that hosting platforms use work:
`postgres://`, `?sslmode=require`, several hosts. SQLite runs in WAL mode with synchronous=FULL, so
committed data survives a power cut. All other modules get their connections here. Errors that mean
a fault of the database become DatabaseUnavailableError (`storage.faults`). Error messages never
contain the URL or its password.
"""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, text
from sqlalchemy.pool import ConnectionPoolEntry

from birthmark_sma.errors import ConfigurationError, DatabaseUnavailableError
from birthmark_sma.storage import interruption, postgresql_driver
from birthmark_sma.storage.clock import DatabaseClock
from birthmark_sma.storage.faults import translate
from birthmark_sma.storage.outages import deadlines
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS, USUAL_SECONDS, WatchedConnection
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.sqlite_files import SqliteFile

Result = TypeVar("Result")

_POOL_SECONDS = 3  # the longest wait for a connection of the pool
_SQLITE_BUSY_SECONDS = 10  # how long SQLite waits for a lock of another connection
# While a checkpoint waits for readers, all writers wait for the checkpoint. So it is short.
_CHECKPOINT_MILLISECONDS = 250
_MOST_WAL_BYTES = 16 * 1024 * 1024
"""SQLite writes its log into the file after each 4 MB, unless a reader needs the older pages. What
was written meanwhile makes the log longer, and SQLite would never make it shorter by itself."""
_MOST_SQL_CHARACTERS = 300  # of a slow statement in the log
_BEGAN = "sma_statement_began"
_SQLITE_CACHE = "cache_size = -16384"
"""A page cache of 16 MiB for each connection. With SQLite's default of 2 MiB, pages of a large
device table are read again and again (docs/performance.md)."""


_log = logging.getLogger(__name__)


class Database:
    """An open database. `read`, `write` and `transact` are the only ways to get a connection.

    All raise DatabaseUnavailableError if the database cannot be reached or fails, and if SQLite's
    file was removed or replaced. They raise AbandonedWorkError if the work of the current context
    was interrupted. `seconds` is the time that PostgreSQL has for each statement: one of those in
    `storage.outages.deadlines`. Safe to use from any thread.
    """

    def __init__(self, engine: Engine, file: SqliteFile | None = None) -> None:
        event.listen(engine, "before_cursor_execute", _check_interruption)
        self._reading = engine
        # The same connection pool, with an option that makes SQLite begin with BEGIN IMMEDIATE.
        self._writing = engine.execution_options(sma_write=True)
        self._file = file
        # Written by whichever thread wrote last: it is only a time to wait.
        self._commit_seconds = deadlines.COMMIT_SECONDS
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
    def read(self, seconds: float = USUAL_SECONDS) -> Iterator[Connection]:
        """Open a transaction for reading. On SQLite all its queries see one snapshot."""
        with self._connected(self._reading, seconds) as connection, connection.begin():
            self._check_file(connection)
            yield connection

    def transact(
        self,
        work: Callable[[Connection], Result],
        seconds: float = USUAL_SECONDS,
        *,
        erase: bool = False,
    ) -> Result:
        """Call `work` in a transaction for writing; return its result once it is durable.

        If the database asks for it, all of it is done again (`storage.outages.retries`). So `work`
        must change nothing outside the database that a second call does not repair. Raises what
        `work` raises, and what `write` raises.
        """

        def attempt() -> Result:
            with self.write(seconds, erase=erase) as transaction:
                return work(transaction)

        return retry(attempt)

    @contextmanager
    def write(
        self,
        seconds: float = USUAL_SECONDS,
        *,
        erase: bool = False,
        mark: CommitMark | None = None,
    ) -> Iterator[Connection]:
        """Open a transaction for writing. It is durable once the block ends without an error.

        Use `transact` instead, unless the caller tries again itself: a block cannot be repeated. If
        the block raises, the transaction is rolled back. If the commit itself raises
        DatabaseUnavailableError, it may or may not have happened (`may_have_committed`). SQLite
        allows one writer at a time. The write lock is taken at the start, so that no transaction
        fails half way because another one was faster.

        With `erase`, SQLite overwrites with zeros what this transaction deletes or replaces.
        Otherwise the bytes stay in the file. On PostgreSQL, VACUUM is responsible for that. With
        `mark`, PostgreSQL stores it in the transaction (`storage.outages.commit_marks`).
        """
        committing = False
        driver: Any = None
        try:
            with self._connected(self._writing, seconds, mark) as connection:
                driver = connection.connection.driver_connection
                with connection.begin():
                    if erase and self._file is not None:
                        connection.exec_driver_sql("PRAGMA secure_delete = ON")
                    yield connection
                    self._check_file(connection)  # before the commit, so that nothing is lost
                    # Last in the block: an error from here on comes from the commit itself.
                    committing = True
                # Again after it: a commit into a removed file must not be answered.
                self._check_file(connection)
            self._commit_seconds = deadlines.COMMIT_SECONDS
        except DatabaseUnavailableError as error:
            is_certain = error.try_again or getattr(driver, "failed_before_commit", False)
            error.may_have_committed = committing and not is_certain
            if error.may_have_committed:
                longest = deadlines.LONGEST_COMMIT_SECONDS
                self._commit_seconds = min(2 * self._commit_seconds, longest)
            raise

    @contextmanager
    def _connected(
        self, engine: Engine, seconds: float, mark: CommitMark | None = None
    ) -> Iterator[Connection]:
        with _translated(), engine.connect() as connection:
            if self._file is None:
                driver: Any = connection.connection.driver_connection
                driver.seconds, driver.commit_seconds = seconds, self._commit_seconds
                driver.mark = mark
            current = interruption.CURRENT.get()
            if current is None:  # work that nobody can interrupt, such as a writer thread's
                yield connection
            else:
                with current.holding(connection):
                    yield connection

    def warn_when_slow(self, seconds: float) -> None:
        """Log each statement that takes longer, by up to 300 characters of its text.

        The text has placeholders instead of values.
        """

        def begin(connection: Connection, *_: object) -> None:
            connection.info[_BEGAN] = time.perf_counter()

        def end(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
            took = time.perf_counter() - connection.info[_BEGAN]
            tell(statement, took)

        def tell(statement: str, took: float) -> None:
            if took > seconds:
                text = " ".join(statement.split())[:_MOST_SQL_CHARACTERS]
                _log.warning("a statement took %.1f ms: %s", took * 1000, text)

        event.listen(self._reading, "before_cursor_execute", begin)
        event.listen(self._reading, "after_cursor_execute", end)
        if self._file is None:
            dialect: Any = self._reading.dialect
            dialect.on_ending = tell

    def _ask_time(self) -> datetime:
        with self.read(QUICK_SECONDS) as connection:
            return database_time(connection)

    def ping(self) -> None:
        """Run a trivial query. Raises DatabaseUnavailableError if the database does not answer."""
        with self.read(QUICK_SECONDS) as connection:
            connection.execute(text("SELECT 1"))

    @property
    def wal_bytes(self) -> int | None:
        """The size of SQLite's write-ahead log in bytes; None for PostgreSQL."""
        return None if self._file is None else self._file.wal_bytes

    def shrink_wal(self) -> None:
        """Truncate a log of more than 16 MiB, unless a reader needs pages of it.

        It makes no writer wait for a reader. Raises DatabaseUnavailableError.
        """
        if (self.wal_bytes or 0) <= _MOST_WAL_BYTES:
            return
        with _translated(), self._reading.connect() as connection:
            passive = connection.connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
            _busy, pages, written = passive.fetchone()
        if pages == written:
            self.truncate_wal()

    def truncate_wal(self) -> None:
        """Write SQLite's write-ahead log into its file and truncate it to zero bytes.

        The log may hold old pages. If readers block this for 250 ms, the log stays as it is. Later
        writes overwrite it. On PostgreSQL this does nothing.
        """
        if self._file is None:
            return
        connection = self._reading.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MILLISECONDS}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        if self._file is not None and self._file.is_known:
            with contextlib.suppress(DatabaseUnavailableError):
                # This updates `lost` while the journal still exists: SQLite removes it when the
                # last connection closes.
                self.ping()
        self._reading.dispose()

    @property
    def lost(self) -> bool:
        """True if SQLite's file was found removed or replaced at its last use."""
        return self._file is not None and self._file.lost

    def _check_file(self, connection: Connection) -> None:
        if self._file is not None:
            self._file.check(connection.info)


def open_database(url: str) -> Database:
    """Return the database of a URL. Connects at the first transaction, not here.

    Raises ConfigurationError if the URL is neither `sqlite:///FILE` nor one that libpq accepts.
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
    """Return the size of the database in bytes."""
    if connection.dialect.name == "postgresql":
        size = text("SELECT pg_database_size(current_database())")
    else:
        size = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    return int(connection.execute(size).scalar_one())


def _check_interruption(*_: object) -> None:
    """Raise AbandonedWorkError if the work was interrupted. Called before each statement."""
    current = interruption.CURRENT.get()
    if current is not None:
        current.check()


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
        # SQLAlchemy's pool hands a connection to one thread at a time, but not always the same.
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "do_connect")
    def _keep_private(*_: object) -> None:
        file.prepare()

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        # Otherwise the sqlite3 module begins transactions itself, and only before a write.
        connection.isolation_level = None
        _enter_wal_mode(connection)
        limit = f"journal_size_limit = {_MOST_WAL_BYTES}"
        for pragma in ("synchronous = FULL", "foreign_keys = ON", _SQLITE_CACHE, limit):
            connection.execute(f"PRAGMA {pragma}")
        # SQLite opens the journal at the first query, and `remember` has to find it.
        connection.execute("SELECT count(*) FROM sqlite_master")
        file.remember(record.info)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("sma_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL mode, and retry for up to 10 seconds.

    SQLite ignores the busy timeout here: it fails at once while another connection switches.
    """
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
    extra = {name: value for name, value in _defaults(given).items() if name not in given}
    # `storage.postgresql_driver` bypasses psycopg's encoding and always sends and reads UTF-8.
    extra["client_encoding"] = "UTF8"
    # Timeouts of the server's that an operator has set in the URL stay in force.
    options = str(given.get("options") or os.environ.get("PGOPTIONS", ""))
    return postgresql_driver.create(
        lambda: WatchedConnection.connect(conninfo, **extra),
        with_timeouts="statement_timeout" not in options and "lock_timeout" not in options,
        hide_parameters=True,
        pool_size=5,
        max_overflow=10,
        pool_timeout=_POOL_SECONDS,
        pool_pre_ping=True,
        # The writer keeps one connection, whose caches stay warm.
        pool_use_lifo=True,
    )


def _defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of libpq and psycopg for what the URL does not set."""
    defaults: dict[str, Any] = {
        **deadlines.TCP_TIMEOUTS,
        "application_name": "birthmark-sma",
        # psycopg would prepare statements itself and discard all of them with each rollback.
        "prepare_threshold": None,
    }
    if "," in str(given.get("host") or given.get("hostaddr") or ""):
        # The nodes of a cluster: ask for the one that can write, at each new connection.
        defaults["target_session_attrs"] = "read-write"
    return defaults


def _first_line(error: Exception) -> str:
    # libpq quotes the part that is wrong, which may be a password. Keep only the text before it.
    return str(error).partition('"')[0].strip(" :") or "it is malformed"
