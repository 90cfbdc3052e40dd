"""Bring a database to the schema that this program expects, and refuse every other one.

Alembic is imported only to migrate: a server that finds the right version starts without it.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from birthmark_sma.errors import SchemaMismatchError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.advisory_locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import HEAD_REVISION

_SCRIPTS = Path(__file__).parent / "migrations"


def schema_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at, or None where it was never migrated."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check_schema(database: Database) -> None:
    """Raise SchemaMismatchError, saying what to type, unless the schema is this program's."""
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


def migrate(database: Database) -> tuple[str | None, str]:
    """Bring the schema to this program's revision; return the revisions before and after.

    One transaction, which also makes the history's first partitions: it happens wholly or not at
    all. Two programs that migrate at once take turns.
    Raises SchemaMismatchError for a database made by a newer program.
    """
    from alembic import command  # noqa: PLC0415  a second of imports that only migrations need
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    with database.write() as transaction:
        wait_for_lock(transaction, AdvisoryLock.MIGRATION)
        before = schema_revision(transaction)
        if before is not None and before > HEAD_REVISION:
            raise SchemaMismatchError(
                f"The database has schema {before}, made by a newer program. Install that program."
            )
        if before != HEAD_REVISION:
            config.attributes["connection"] = transaction
            command.upgrade(config, HEAD_REVISION)
            partitions.create_future_partitions(transaction, database_time(transaction).date())
    return before, HEAD_REVISION
