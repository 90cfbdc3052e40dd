"""The numbers of PostgreSQL's advisory locks, for every module that takes one.

PostgreSQL has one space of numbers for a whole database: two jobs with one number exclude each
other, and each fails while the other runs. No module defines a number of its own.
"""

from enum import IntEnum, unique

from sqlalchemy import Connection, text


@unique
class AdvisoryLock(IntEnum):
    """One member per job that excludes itself. A number is never used again for another job."""

    MIGRATION = 0x5_3A_0001
    PARTITIONS = 0x5_3A_0002
    ABUSE_FLAGS = 0x5_3A_0003
    KEY_ROTATION = 0x5_3A_0004
    CRL_PUBLICATION = 0x5_3A_0005


def wait_for_lock(transaction: Connection, lock: AdvisoryLock) -> None:
    """Hold the lock until the transaction ends. SQLite has one writer at a time in any case."""
    if transaction.dialect.name == "postgresql":
        transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock.value})
