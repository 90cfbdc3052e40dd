"""Let each COMMIT on a PostgreSQL server wait for a synchronous standby that does not exist.

Tests call this to hold a COMMIT up for as long as they want.

PostgreSQL answers pg_reload_conf() before its processes have read the new configuration. Whether a
COMMIT waits is known to the checkpointer first, and that may be busy. So a change returns only when
a COMMIT of its own behaves as the new configuration says.
"""

import psycopg
from psycopg import sql

from tests.support.programs.running import wait_until

_SECONDS = 120.0
_COMMIT = b"SELECT pg_logical_emit_message(true, 'probe', '')"  # writes WAL, changes no row


def require_standby(url: str, name: str) -> None:
    """Let each COMMIT wait for a standby of this name. With an empty name, let them go on.

    `url` is that of a superuser. Return when new commits behave like this.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        setting = sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}")
        connection.execute("SET synchronous_commit = local")
        connection.execute(setting.format(sql.Literal(name)))
        connection.execute("SELECT pg_reload_conf()")
    wait_until(lambda: _commit_waits(url) == bool(name), _SECONDS)


def waiting_commits(url: str) -> dict[str, int]:
    """Return the processes whose COMMIT waits for a standby, by the start of their statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT query_start::text, pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        return dict(rows.fetchall())


def cancel_waiting_commits(url: str) -> None:
    """Cancel the wait of each COMMIT, as an administrator does: it succeeds, with a warning."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )


def _commit_waits(url: str) -> bool:
    """Commit a transaction. Return whether the COMMIT waits for a standby, and cancel its wait."""
    with psycopg.connect(url, autocommit=True) as connection:
        own = connection.pgconn
        own.send_query(_COMMIT)
        waits = False
        while own.is_busy() and not waits:
            waits = own.backend_pid in waiting_commits(url).values()
            own.consume_input()
        if waits:
            connection.cancel_safe()
        while own.get_result():  # afterwards this COMMIT waits no more, and nobody counts it
            pass
        return waits
