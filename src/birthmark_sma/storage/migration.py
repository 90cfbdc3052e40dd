"""Migrate a database to the schema of this program, and refuse any other schema.

`sma init` and `sma migrate` call `migrate`; every other command calls `check_schema`. Alembic is
imported only to migrate, because a server must start fast. There is no downgrade.
"""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from birthmark_sma.errors import SchemaMismatchError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.postgresql.server_role import grant_to_servers
from birthmark_sma.storage.schema import HEAD_REVISION

_SCRIPTS = Path(__file__).parent / "migrations"


def schema_revision(connection: Connection) -> str | None:
    """Return the schema revision of the database, or None if it was never migrated."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check_schema(database: Database) -> None:
    """Raise SchemaMismatchError unless the database has this program's schema revision.

    The message contains the command to type.
    """
    with database.read() as connection:
        revision = schema_revision(connection)
    if revision is None:
        raise SchemaMismatchError("The database is empty. Type: sma init")
    if revision > HEAD_REVISION:
        raise SchemaMismatchError(
            f"The database has schema {revision}, made by a newer program; this one knows"
            f" {HEAD_REVISION}. Install the newer program."
        )
    if revision != HEAD_REVISION:
        raise SchemaMismatchError(
            f"The database has schema {revision}; this program needs {HEAD_REVISION}."
            " There is no way back: take a backup with the older program first. Type: sma migrate"
        )


def migrate(
    database: Database, record: Callable[[Connection, str], None] | None = None
) -> tuple[str | None, str]:
    """Migrate the schema to this program's revision; return the revisions before and after.

    `record` is called in the transaction after a schema was changed, with the revision before it.

    One transaction does all of it and also creates the first partitions of the audit log, so it
    happens completely or not at all. It also grants what is new to PostgreSQL's role for servers.
    An advisory lock serialises processes that migrate at the same time. Raises SchemaMismatchError
    if a newer program made the database.
    """
    from alembic import command  # noqa: PLC0415  a second of imports that only migrations need
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    # Alembic interpolates % in its options.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))

    def upgrade(transaction: Connection) -> str | None:
        wait_for_lock(transaction, AdvisoryLock.MIGRATION)
        # Read under the lock: another process may just have migrated.
        before = schema_revision(transaction)
        if before is not None and before > HEAD_REVISION:
            raise SchemaMismatchError(
                f"The database has schema {before}, made by a newer program. Install that program."
            )
        if before != HEAD_REVISION:
            config.attributes["connection"] = transaction
            command.upgrade(config, HEAD_REVISION)
            partitions.create_future_partitions(transaction, database_time(transaction).date())
            if before is not None and record is not None:
                record(transaction, before)
        grant_to_servers(transaction)
        return before

    return database.transact(upgrade, LONG_SECONDS), HEAD_REVISION
