"""Migrate a database to the schema of this program, and refuse any other schema.

`sma init` and `sma migrate` call `migrate`; every other command calls `check_schema`. Alembic is
imported only to migrate, because a server must start fast. There is no downgrade. Neither opens a
database that `sma move` has filled in part, and `check_schema` none that it has emptied.
"""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    inspect,
    select,
    text,
)

from birthmark_sma.errors import AuthorityMovedError, SchemaMismatchError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import UtcDateTime, database_time
from birthmark_sma.storage.postgresql.server_role import grant_to_servers
from birthmark_sma.storage.schema import HEAD_REVISION
from birthmark_sma.storage.schema.authority import authority

move_progress = Table(
    "move_progress",
    MetaData(),
    Column("table_name", String(64), primary_key=True),
    Column("rows_copied", BigInteger, nullable=False),
    Column("last_rowid", BigInteger),
    Column("authority_id", String(64), nullable=False),
    Column("moving_since", UtcDateTime, nullable=False),
)
"""The progress of `sma move`, in the new database alone and until the move is complete: a row for
each table. It is not part of the schema. `last_rowid` is that of SQLite, NULL before the first
row."""

_SCRIPTS = Path(__file__).parent / "migrations"


def schema_revision(connection: Connection) -> str | None:
    """Return the schema revision of the database, or None if it was never migrated.

    Raises AuthorityMovedError if `sma move` has not finished with this database.
    """
    inspector = inspect(connection)
    if inspector.has_table(move_progress.name):
        since = connection.execute(select(move_progress.c.moving_since).limit(1)).scalar()
        raise AuthorityMovedError(
            "This database has a part of an authority that is being moved here"
            f"{'' if since is None else f' since {since:%Y-%m-%d %H:%M:%S} UTC'}. To finish the"
            " move, type sma move again where the SQLite file is. To give it up, drop this"
            " database, and type there: sma move --undo"
        )
    if not inspector.has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check_schema(database: Database) -> None:
    """Raise SchemaMismatchError unless the database has this program's schema revision.

    Raise AuthorityMovedError if `sma move` takes or has taken the authority elsewhere, or has not
    finished with this database. The messages contain the command to type.
    """
    with database.read() as connection:
        check_revision(connection)
        columns = authority.c.moving_to, authority.c.moving_since, authority.c.moved_at
        row = connection.execute(select(*columns)).one_or_none()
    if row is None or row.moving_to is None:
        return
    if row.moved_at is not None:
        raise AuthorityMovedError(
            f"This authority was moved to {row.moving_to}, at {row.moved_at:%Y-%m-%d %H:%M:%S} UTC."
            " Set DATABASE_URL to that database. To go back to the state of that time, drop that"
            " database, and type: sma move --undo"
        )
    raise AuthorityMovedError(
        f"This authority is being moved to {row.moving_to}, since"
        f" {row.moving_since:%Y-%m-%d %H:%M:%S} UTC. To finish, type the same sma move again. To"
        " stay here, drop that database, and type: sma move --undo"
    )


def check_revision(connection: Connection) -> None:
    """Raise SchemaMismatchError unless the database has this program's schema revision."""
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

    def upgrade(transaction: Connection) -> str | None:
        return migrate_in(transaction, record)

    return database.transact(upgrade, LONG_SECONDS), HEAD_REVISION


def migrate_in(
    transaction: Connection, record: Callable[[Connection, str], None] | None = None
) -> str | None:
    """Migrate the schema in a transaction of the caller's; return the revision before.

    Otherwise as `migrate`.
    """
    from alembic import command  # noqa: PLC0415  a second of imports that only migrations need
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    # Alembic interpolates % in its options.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
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
