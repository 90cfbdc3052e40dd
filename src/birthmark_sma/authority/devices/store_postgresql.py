"""Statements of `devices.store` and `devices.uniqueness` for PostgreSQL: see their Protocols.

Each runs in one blocking call of libpq, because every call of the driver costs a signing thread
more than the statement itself. These two are the only callers.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, any_, literal, text

from birthmark_sma.storage.locks import AdvisoryLock
from birthmark_sma.storage.postgresql.arrays import TRUE, ColumnArrays
from birthmark_sma.storage.postgresql_driver import NamedStatement
from birthmark_sma.storage.schema.devices import registered_devices as devices

_COLUMNS = ColumnArrays(devices, [each.name for each in devices.columns])
_INSERT = NamedStatement(
    """
INSERT INTO registered_devices ({names}) SELECT {values} FROM unnest({arrays}) AS new ({names})
ON CONFLICT DO NOTHING RETURNING provisioning_id
""",
    names=_COLUMNS.names,
    values=_COLUMNS.values,
    arrays=_COLUMNS.arrays,
)
# Sent with COMMIT, so that validations wait for no round trip of this program.
_AWAIT_VERDICTS = NamedStatement(
    "SELECT pg_advisory_xact_lock({lock})", lock=str(AdvisoryLock.VERDICTS.value)
)
_in_order = itemgetter(*(each.name for each in devices.columns))
# The exact serial is compared as well, because rows that operators inserted have no folded serial.
_CONFLICTS = NamedStatement("""
SELECT EXISTS (SELECT FROM registered_devices WHERE serial_folded = :folded::text)
           OR EXISTS (SELECT FROM registered_devices WHERE device_serial = :serial::text),
       EXISTS (SELECT FROM registered_devices WHERE public_key_fingerprint = :fingerprint::bytea)
           OR EXISTS (SELECT FROM earlier_certificates
                      WHERE public_key_fingerprint = :fingerprint::bytea),
       EXISTS (SELECT FROM registered_devices WHERE nuc_hash = :nuc_hash::bytea)
""")


def insert_devices(transaction: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert rows that violate no UNIQUE constraint; return their provisioning ids."""
    added = _INSERT.run(transaction, **_COLUMNS.encode(map(_in_order, rows)))
    return {(added.get_value(row, 0) or b"").decode() for row in range(added.ntuples)}


def await_inserts(transaction: Connection) -> None:
    """Wait up to ten seconds until every transaction that called `hold_inserts` has ended.

    Raises DatabaseUnavailableError if one has not.
    """
    # LOCAL: the timeout ends with the transaction, so the pooled connection does not keep it.
    transaction.execute(text("SET LOCAL lock_timeout = '10s'"))
    transaction.execute(text("SELECT id FROM authority FOR UPDATE"))


def hold_inserts(transaction: Connection) -> None:
    """Make `await_inserts` of other transactions wait until this one has ended."""
    # The weakest lock that conflicts with FOR UPDATE. Many transactions can hold it at once.
    transaction.execute(text("SELECT id FROM authority FOR KEY SHARE"))


def await_verdicts(transaction: Connection) -> None:
    """Let the commit wait for the validations under way, and new ones for the commit.

    If this program or its network stops before the commit, the server ends the transaction after
    three seconds: all validations wait for it, for up to 4.8 seconds.
    """
    transaction.execute(text("SET LOCAL idle_in_transaction_session_timeout = '3s'"))
    transaction.execute(text("SET LOCAL lock_timeout = '10s'"))
    _AWAIT_VERDICTS.run_at_commit(transaction)


def has_table(table_id: int) -> ColumnElement[bool]:
    """Return the condition that a key table is assigned to the device."""
    return literal(table_id) == any_(devices.c.table_assignments)


def find_conflicts(
    connection: Connection, serial: str, folded: str, fingerprint: bytes, nuc_hash: bytes
) -> Sequence[bool]:
    """Return whether another device has the serial, the public key, the NUC hash."""
    found = _CONFLICTS.run(
        connection,
        folded=folded.encode(),
        serial=serial.encode(),
        fingerprint=fingerprint,
        nuc_hash=nuc_hash,
    )
    return [found.get_value(0, column) == TRUE for column in range(3)]
