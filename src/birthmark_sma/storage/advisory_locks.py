"""The numbers of all PostgreSQL advisory locks that this program takes.

Advisory lock numbers are shared by a whole database: two jobs with the same number would block each
other. So all numbers are defined here, and no other module may define one.
"""

from enum import IntEnum, unique

from sqlalchemy import Connection, text


@unique
class AdvisoryLock(IntEnum):
    """One lock for each job that must not run twice at the same time.

    A number is never reused for another job.
    """

    MIGRATION = 0x5_3A_0001
    PARTITIONS = 0x5_3A_0002
    ABUSE_FLAGS = 0x5_3A_0003
    KEY_ROTATION = 0x5_3A_0004
    CRL_PUBLICATION = 0x5_3A_0005


def wait_for_lock(transaction: Connection, lock: AdvisoryLock) -> None:
    """Wait for the lock and hold it until the transaction ends.

    On SQLite this does nothing: a write transaction excludes all other writers already.
    """
    if transaction.dialect.name == "postgresql":
        transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock.value})
