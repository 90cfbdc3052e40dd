"""Erase deleted and replaced values from SQLite's files.

SQLite only marks deleted content as free and leaves the bytes in the file. The rotation of the
key-encryption key calls this module so that old wrapped secrets do not remain. On PostgreSQL both
functions do nothing: VACUUM and the operator of its write-ahead log are responsible there.
"""

from sqlalchemy import Connection

from birthmark_sma.storage.engine import Database

# While the checkpoint waits for readers, all writers wait for the checkpoint. So it is short.
_WAITING_MILLISECONDS = 250


def enable_secure_delete(transaction: Connection) -> None:
    """Make SQLite overwrite with zeros what this connection deletes or replaces from now on."""
    if transaction.dialect.name == "sqlite":
        transaction.exec_driver_sql("PRAGMA secure_delete = ON")


def truncate_wal(database: Database) -> None:
    """Write SQLite's write-ahead log into the database file and truncate it to zero bytes.

    The log may hold old pages. If readers block this for 250 ms, the log stays as it is. Later
    writes overwrite it.
    """
    if database.dialect_name == "sqlite":
        connection = database.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_WAITING_MILLISECONDS}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
