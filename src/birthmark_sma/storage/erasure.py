"""See to it that what was replaced does not stay behind in SQLite's file.

SQLite marks what is deleted as free, and leaves it there. On PostgreSQL that is the business of
VACUUM, and of whoever keeps its write-ahead log.
"""

from sqlalchemy import Connection

from birthmark_sma.storage.engine import Database

_WAITING_MILLISECONDS = 250  # writers wait as long for the checkpoint as it waits for readers


def enable_secure_delete(transaction: Connection) -> None:
    """Have SQLite overwrite with zeros what this connection deletes or replaces from now on."""
    if transaction.dialect.name == "sqlite":
        transaction.exec_driver_sql("PRAGMA secure_delete = ON")


def truncate_wal(database: Database) -> None:
    """Bring SQLite's write-ahead log, with old pages in it, into the file, and make it empty.

    Where readers are in the way it stays as it is: it is overwritten in time.
    """
    if database.dialect_name == "sqlite":
        connection = database.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_WAITING_MILLISECONDS}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
