"""Queries about the database itself: version, settings, privileges, schema, damage, size.

`sma doctor`, backup and restore call these functions. All but `gather_statistics` only read.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, func, inspect, literal_column, select, table, text

from birthmark_sma.storage.partitions import UNFORESEEN
from birthmark_sma.storage.postgresql.server_role import TRAIL
from birthmark_sma.storage.schema import metadata
from birthmark_sma.storage.schema.validations import validation_counters

_DAMAGES_TOLD = 3


@dataclass(frozen=True, slots=True)
class PostgresqlState:
    """The state of a PostgreSQL server.

    `version` is `server_version_num`, such as 160004. `connections` counts client connections,
    `size` is in bytes. `data_directory` is None unless the server runs on this machine and the user
    may read where its files are.
    """

    version: int
    version_text: str
    settings: dict[str, str]
    is_standby: bool
    connections: int
    size: int
    data_directory: Path | None


# Every user may read these numbers. `pg_stat_activity` hides rows of other users. A limit of -1
# means none. `reserved_connections` exists from PostgreSQL 16 on.
_FREE_CONNECTIONS = """
SELECT 1 + least(
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
        - (SELECT sum(numbackends) FROM pg_stat_database),
    (SELECT nullif(datconnlimit, -1) - numbackends
     FROM pg_database JOIN pg_stat_database ON datid = oid
     WHERE pg_database.datname = current_database()),
    (SELECT nullif(rolconnlimit, -1)
        - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user)
     FROM pg_roles WHERE rolname = current_user))
"""
_ASKED = (
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "default_transaction_read_only",
    "max_connections",
)


def ask_postgresql(connection: Connection) -> PostgresqlState:
    """Return the state of the server."""
    settings = {
        row.name: row.setting
        for row in connection.execute(
            text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)"),
            {"names": list(_ASKED)},
        )
    }
    # inet_server_addr() is NULL on a Unix socket, and then the server is on this machine.
    row = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int AS number,"
            " current_setting('server_version') AS version, pg_is_in_recovery() AS standby,"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
            " AS connections, pg_database_size(current_database()) AS size,"
            " inet_server_addr() IS NULL OR inet_server_addr() <<= inet '127.0.0.0/8'"
            " OR inet_server_addr() = inet '::1' AS here"
        )
    ).one()
    place = text("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    # Only members of pg_read_all_settings see this row.
    directory = connection.execute(place).scalar_one_or_none()
    return PostgresqlState(
        version=row.number,
        version_text=row.version.partition(" ")[0],
        settings=settings,
        is_standby=row.standby,
        connections=row.connections,
        size=row.size,
        data_directory=Path(directory) if row.here and directory else None,
    )


def missing_privileges(connection: Connection) -> list[str]:
    """Return the privileges that the service needs and the user lacks, as `INSERT on key_tables`.

    Columns with a sequence also need USAGE of the sequence. A GRANT on the table does not include
    it. To the tables of the trail a server only adds. SQLite has no users, so the list is empty
    there.
    """
    if connection.dialect.name != "postgresql":
        return []
    wanted = ("SELECT", "INSERT", "UPDATE", "DELETE")
    # CASE fixes the order of evaluation: has_sequence_privilege fails for other relations.
    rows = connection.execute(
        text(
            "SELECT privilege || ' on ' || name FROM unnest(CAST(:names AS text[])) AS name,"
            " unnest(CAST(:wanted AS text[])) AS privilege"
            " WHERE NOT has_table_privilege(name, privilege)"
            " AND NOT (name = ANY(CAST(:trail AS text[])) AND privilege IN ('UPDATE', 'DELETE'))"
            " UNION ALL SELECT 'USAGE on ' || sequence.relname FROM pg_depend"
            " JOIN pg_class AS sequence ON sequence.oid = objid"
            " WHERE refobjid = ANY(CAST(CAST(:names AS text[]) AS regclass[])) AND deptype = 'a'"
            " AND CASE relkind WHEN 'S' THEN NOT has_sequence_privilege(sequence.oid, 'USAGE')"
            " ELSE false END"
        ),
        {
            "names": [each.name for each in metadata.sorted_tables],
            "wanted": list(wanted),
            "trail": list(TRAIL),
        },
    )
    return sorted(rows.scalars())


def count_free_connections(connection: Connection) -> int:
    """Return how many more connections PostgreSQL accepts from this user, for this database.

    The connection that asks is counted as free: it is closed again.
    """
    return int(connection.execute(text(_FREE_CONNECTIONS)).scalar_one())


def sqlite_version(connection: Connection) -> str:
    """Return the version of the SQLite library."""
    return str(connection.execute(text("SELECT sqlite_version()")).scalar_one())


def find_damage(connection: Connection) -> list[str]:
    """Run `PRAGMA quick_check` on SQLite and return up to 3 faults; an empty list means none.

    It reads the whole file, but does not compare the content of indexes with their tables.
    """
    rows = connection.execute(text(f"PRAGMA quick_check({_DAMAGES_TOLD})")).scalars()
    return [row for row in rows if row != "ok"]


def missing_parts(connection: Connection) -> list[str]:
    """Return the tables, and the columns as `table.column`, that the database lacks.

    Only the default schema of the connection is inspected: others may belong to other programs.
    """
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    missing = []
    if connection.dialect.name == "postgresql" and UNFORESEEN not in present:
        missing.append(UNFORESEEN)
    for wanted in metadata.sorted_tables:
        if wanted.name not in present:
            missing.append(wanted.name)
            continue
        columns = {column["name"] for column in inspector.get_columns(wanted.name)}
        missing += [f"{wanted.name}.{each.name}" for each in wanted.c if each.name not in columns]
    return missing


def newest_minute(connection: Connection) -> datetime | None:
    """Return the minute of the newest audit row, read from the counters; None if there is none."""
    newest: datetime | None = connection.execute(
        select(func.max(validation_counters.c.minute))
    ).scalar_one()
    return newest


def count_unforeseen(connection: Connection, *, limit: int) -> int:
    """Return the number of rows in PostgreSQL's default partition, at most `limit`."""
    # The limit keeps the query short when very many rows lie there.
    some = select(literal_column("1")).select_from(table(UNFORESEEN)).limit(limit).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def list_tables(connection: Connection) -> list[str]:
    """Return the names of tables, views and sequences in the current schema of PostgreSQL.

    This is the schema in which new tables are created. Restore refuses one that is not empty.
    """
    rows = connection.execute(
        text(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')"
            " AND relnamespace = to_regnamespace(current_schema()) ORDER BY relname"
        )
    )
    return list(rows.scalars())


def gather_statistics(transaction: Connection) -> None:
    """Run ANALYZE, because a restored database has no statistics for the query planner yet."""
    transaction.execute(text("ANALYZE"))
