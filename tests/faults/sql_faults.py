"""Faults of a PostgreSQL that answers: refusals, locks, slow commits, and "try again"."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from urllib.parse import urlsplit

import psycopg

from tests.faults.beds import Bed, BedKind
from tests.faults.fault import HANGING_SECONDS, QUICK_SECONDS, Fault
from tests.faults.postgresql_faults import repeated
from tests.support.databases import faults
from tests.support.databases.faults import CUT_OFF, ON_POSTGRESQL
from tests.support.databases.postgres import on_server
from tests.support.databases.standby import cancel_waiting_commits

_SLOW_COMMIT_SECONDS = 14.0  # longer than callers wait for an answer
_ROUNDS = 3


def _in_sql(play: str, undo: str) -> Callable[[Bed], AbstractContextManager[None]]:
    fault = faults.Fault(play, undo, "", "")
    return lambda bed: faults.played(bed.running, bed.rows_url, fault)


def _known(name: str) -> Callable[[Bed], AbstractContextManager[None]]:
    return lambda bed: faults.played(bed.running, bed.rows_url, ON_POSTGRESQL[name])


def _holding(statement: str) -> Callable[[Bed], AbstractContextManager[None]]:
    """Hold the locks that a statement takes."""

    @contextmanager
    def play(bed: Bed) -> Iterator[None]:
        with psycopg.connect(bed.rows_url) as connection:
            connection.execute(statement.encode())
            yield
            connection.rollback()

    return play


@contextmanager
def _commits_cancelled(bed: Bed) -> Iterator[None]:
    """Cancel the wait for a standby that is away, as an administrator does."""
    with (
        faults.standby_away(bed.postgres.url),
        repeated(lambda: cancel_waiting_commits(bed.postgres.url), 0.5),
    ):
        yield


@contextmanager
def _no_connection_left(bed: Bed) -> Iterator[None]:
    """Let other programs of the same role take every connection."""
    role = urlsplit(bed.running.database_url)
    host = urlsplit(bed.rows_url).netloc.rpartition("@")[2]
    url = role._replace(netloc=f"{role.username}:{role.password}@{host}").geturl()
    with ExitStack() as taken:
        for _ in range(_ROUNDS):
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    taken.enter_context(psycopg.connect(url, application_name="taken"))
            bed.sql(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                " WHERE usename = '{role}' AND application_name <> 'taken'"
            )
        yield


@contextmanager
def _database_renamed(bed: Bed) -> Iterator[None]:
    admin = bed.postgres.url
    play = "ALTER DATABASE {database} ALLOW_CONNECTIONS false"
    cut = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'"
    )
    undo = "ALTER DATABASE {database}_away RENAME TO {database}"
    for each in (play, cut, "ALTER DATABASE {database} RENAME TO {database}_away"):
        faults.run_statements(admin, bed.named(each))
    yield
    for each in (undo, "ALTER DATABASE {database} ALLOW_CONNECTIONS true"):
        faults.run_statements(admin, bed.named(each))


def _now_and_then(code: str) -> Callable[[Bed], AbstractContextManager[None]]:
    """Let one in three transactions that write audit rows end in an error of this SQLSTATE."""
    return _in_sql(
        "CREATE FUNCTION sometimes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF random() < 0.33 THEN RAISE EXCEPTION 'as played' USING ERRCODE = '{code}'; END IF;"
        " RETURN NULL; END $$;"
        " CREATE TRIGGER sometimes BEFORE INSERT ON validation_history"
        " FOR EACH STATEMENT EXECUTE FUNCTION sometimes()",
        "DROP FUNCTION sometimes CASCADE",
    )


@contextmanager
def _deadlocks(bed: Bed) -> Iterator[None]:
    """Lock the same rows as the writers, in the opposite order."""

    def lock() -> None:
        with (
            contextlib.suppress(psycopg.errors.DeadlockDetected),
            psycopg.connect(bed.rows_url) as connection,
        ):
            connection.execute("SELECT 1 FROM running_totals FOR UPDATE")
            connection.execute("SELECT pg_sleep(0.1)")
            connection.execute("SELECT 1 FROM writer_commits FOR UPDATE")
            connection.rollback()

    with repeated(lock, 0.2):
        yield


@contextmanager
def _nothing(_: Bed) -> Iterator[None]:
    yield


REFUSALS = (
    Fault("read-only (default_transaction_read_only)", _known("read-only")),
    Fault("disk full (53100, from a trigger)", _known("disk full")),
    Fault("INSERT revoked", _known("permission")),
    Fault("table of the audit log gone", _known("table gone")),
    Fault("schema gone", _known("schema gone")),
    Fault(
        "partitions of the audit log detached", lambda bed: faults.without_partitions(bed.rows_url)
    ),
    Fault("data corrupted (XX001, from a trigger)", _known("data corrupted")),
    Fault("no connections allowed to the role", _known("too many connections")),
    Fault("max_connections used up by others", _no_connection_left),
    Fault(
        "password of the role changed",
        _in_sql(
            "ALTER ROLE {role} PASSWORD 'another'" + CUT_OFF, "ALTER ROLE {role} PASSWORD 'clerk'"
        ),
    ),
    Fault("database renamed", _database_renamed),
    Fault(
        "statement_timeout of the role at 1 ms",
        _in_sql(
            "ALTER ROLE {role} SET statement_timeout = 1" + CUT_OFF,
            "ALTER ROLE {role} RESET statement_timeout" + CUT_OFF,
        ),
    ),
    Fault(
        "schema one revision ahead",
        _in_sql(
            "UPDATE alembic_version SET version_num = 'next-' || version_num",
            "UPDATE alembic_version SET version_num = replace(version_num, 'next-', '')",
        ),
    ),
)
WAITS = (
    Fault(
        "table of the audit log locked (ACCESS EXCLUSIVE)",
        lambda bed: faults.locked(bed.rows_url),
        HANGING_SECONDS,
    ),
    Fault(
        "rows of the counters locked",
        _holding("SELECT 1 FROM running_totals FOR UPDATE"),
        HANGING_SECONDS,
    ),
    Fault(
        "12 s a commit (a deferred trigger)",
        lambda bed: faults.played(bed.running, bed.rows_url, faults.SLOW_COMMITS),
        _SLOW_COMMIT_SECONDS,
    ),
    Fault(
        "synchronous standby away: commits wait",
        lambda bed: faults.standby_away(bed.postgres.url),
        _SLOW_COMMIT_SECONDS,
    ),
    Fault("synchronous commits cancelled, twice a second", _commits_cancelled, HANGING_SECONDS),
)
TRY_AGAIN = (
    Fault("one transaction in three fails to serialize (40001)", _now_and_then("40001")),
    Fault("every transaction fails to serialize (40001)", _known("serialization"), HANGING_SECONDS),
    Fault("deadlocks, five times a second", _deadlocks, 2 * QUICK_SECONDS),
    Fault("every transaction ends in a deadlock (40P01)", _known("deadlock"), HANGING_SECONDS),
    Fault("SERIALIZABLE everywhere", _nothing, bed=BedKind.SERIALIZABLE),
)


@contextmanager
def _pooler_restarted(bed: Bed) -> Iterator[None]:
    bed.pooler.restart()
    yield


POOLER = (
    Fault("transaction mode, nothing else", _nothing, bed=BedKind.PGBOUNCER),
    Fault("PgBouncer killed and started again", _pooler_restarted, 0.0, BedKind.PGBOUNCER),
    Fault(
        "connections of PgBouncer terminated, twice a second",
        lambda bed: repeated(
            lambda: faults.run_statements(
                on_server(bed.rows_url, "postgres"),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{urlsplit(bed.rows_url).path[1:]}'",
            ),
            0.5,
        ),
        bed=BedKind.PGBOUNCER,
    ),
)
