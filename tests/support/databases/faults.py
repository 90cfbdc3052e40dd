"""Faults of a PostgreSQL that answers: played and undone in SQL, with a server that runs on it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg

from tests.support.databases.postgres import create_database, drop_database
from tests.support.databases.standby import require_standby
from tests.support.programs.running import Running, start


class Fault(NamedTuple):
    """How a fault is brought about and undone in SQL, what is said, and its name in metrics."""

    play: str
    undo: str
    said: str
    name: str


def raising(code: str) -> tuple[str, str]:
    """SQL that lets every row of the audit trail end in an error of this SQLSTATE."""
    return (
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'as played, secret-words' USING ERRCODE = '{code}'; END $$;"
        " CREATE TRIGGER fail BEFORE INSERT ON validation_history"
        " FOR EACH ROW EXECUTE FUNCTION fail()",
        "DROP FUNCTION fail CASCADE",
    )


CUT_OFF = (
    "; SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
ON_POSTGRESQL = {
    "schema gone": Fault(
        "ALTER SCHEMA public RENAME TO elsewhere",
        "ALTER SCHEMA elsewhere RENAME TO public",
        "lacks a table",
        "schema",
    ),
    "table gone": Fault(
        "ALTER TABLE validation_history RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO validation_history",
        "lacks a table",
        "schema",
    ),
    "permission": Fault(
        "REVOKE INSERT ON validation_history FROM {role}",
        "GRANT INSERT ON validation_history TO {role}",
        "permission",
        "refused",
    ),
    "read-only": Fault(
        "ALTER DATABASE {database} SET default_transaction_read_only = on" + CUT_OFF,
        "SET default_transaction_read_only = off;"
        " ALTER DATABASE {database} RESET default_transaction_read_only" + CUT_OFF,
        "read-only",
        "read_only",
    ),
    "too many connections": Fault(
        "ALTER ROLE {role} CONNECTION LIMIT 0" + CUT_OFF,
        "ALTER ROLE {role} CONNECTION LIMIT -1",
        "too many connections",
        "connections",
    ),
    "serialization": Fault(*raising("40001"), "too busy", "busy"),
    "deadlock": Fault(*raising("40P01"), "too busy", "busy"),
    "disk full": Fault(*raising("53100"), "no room", "full"),
    "statement cancelled": Fault(*raising("57014"), "too busy", "busy"),
    "data corrupted": Fault(*raising("XX001"), "damaged", "damaged"),
}


def waiting(seconds: int) -> str:
    """Return a function of a trigger that waits once in each transaction."""
    return (
        "CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('test.waited', true) IS DISTINCT FROM txid_current()::text THEN"
        " PERFORM set_config('test.waited', txid_current()::text, true);"
        f" PERFORM pg_sleep({seconds}); END IF; RETURN NULL; END $$;"
    )


SLOW_COMMITS = Fault(
    waiting(12) + "DROP TRIGGER IF EXISTS wait ON validation_history;"
    " CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON validation_history"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    waiting(0),  # to drop the trigger would wait for the commits, or end in a deadlock with them
    "",
    "",
)


@contextmanager
def server_of_a_clerk(
    admin_url: str, directory: Path, **environ: str
) -> Iterator[tuple[Running, str]]:
    """Start a server whose user is no superuser. Yield it, and the administrator's URL."""
    name, role = f"faults_{secrets.token_hex(6)}", f"clerk_{secrets.token_hex(6)}"
    url = create_database(admin_url, name)
    run_statements(url, f"CREATE ROLE {role} LOGIN PASSWORD 'clerk'")
    run_statements(url, f"GRANT ALL ON SCHEMA public TO {role}")
    host = urlsplit(url).netloc.rpartition("@")[2]
    running = start(directory / "data", f"postgresql://{role}:clerk@{host}/{name}", **environ)
    try:
        yield running, url
    finally:
        running.server.close()
        drop_database(admin_url, name)
        run_statements(admin_url, f"DROP ROLE {role}")


def run_statements(url: str, statements: str) -> None:
    """Run statements, each by itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        if "FUNCTION" in statements:
            connection.execute(statements.encode())
            return
        for statement in statements.split(";"):
            connection.execute(statement.encode())


@contextmanager
def played(running: Running, admin_url: str, fault: Fault) -> Iterator[None]:
    """Let a fault last for a block."""
    parts = urlsplit(running.database_url)

    def named(statements: str) -> str:
        named = statements.replace("{role}", str(parts.username))
        return named.replace("{database}", parts.path[1:])

    run_statements(admin_url, named(fault.play))
    try:
        yield
    finally:
        run_statements(admin_url, named(fault.undo))


@contextmanager
def locked(admin_url: str) -> Iterator[None]:
    """Lock the audit log, as an operator's ALTER TABLE does."""
    with psycopg.connect(admin_url) as connection:
        connection.execute("LOCK TABLE validation_history IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


@contextmanager
def standby_away(admin_url: str) -> Iterator[None]:
    """Let every commit wait for a synchronous standby that does not exist."""
    require_standby(admin_url, "nobody")
    yield
    require_standby(admin_url, "")


@contextmanager
def without_partitions(admin_url: str) -> Iterator[None]:
    """Detach every partition of the audit log, also the one that takes what no other takes."""
    with psycopg.connect(admin_url, autocommit=True) as admin:
        partitions = admin.execute(
            "SELECT oid::regclass::text, pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid IN"
            " (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'validation_history'::regclass)"
        ).fetchall()
        for name, _ in partitions:
            admin.execute(f"ALTER TABLE validation_history DETACH PARTITION {name}".encode())
        yield
        for name, bounds in partitions:
            attach = f"ALTER TABLE validation_history ATTACH PARTITION {name} {bounds}"
            admin.execute(attach.encode())
