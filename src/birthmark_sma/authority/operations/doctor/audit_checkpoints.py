"""Check that the audit log and the acts are signed: the key, and the age of the last checkpoint.

`runner` calls it. It reads the ends of the chains and no rows: `sma audit verify` verifies those.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from birthmark_sma.authority.audit_chain import checkpoints, keys, store
from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    critical,
    info,
    ok,
    warning,
)
from birthmark_sma.counts import counted
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.acts import administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_checkpoints
from birthmark_sma.storage.schema.validations import validation_history

_MOST_UNSIGNED = timedelta(minutes=5)
_VERIFY = (
    "Somebody changed them in the database. Verify with the checkpoints that you kept elsewhere:"
    " sma audit verify --checkpoints FILE"
)
_SIGN = (
    "A server signs each minute. Start one; if one runs, look in its log for audit-checkpoints."
    " Until then, whoever can change the database can change what is not signed"
)


def check_checkpoints(database: Database) -> Iterator[Finding]:
    """Tell the key, and warn if nothing was signed for minutes although a chain has grown."""
    with database.read() as connection:
        key = keys.find_verifier(connection)
        newest, number = connection.execute(
            select(func.max(audit_checkpoints.c.made_at), func.max(audit_checkpoints.c.number))
        ).one()
        if key is None:
            yield _find_no_key(number)
            return
        try:
            signed = checkpoints.read_sum(connection)
        except ValueError as error:
            yield critical(f"The checkpoints do not fit each other: {error}", _VERIFY)
            return
        waiting = timedelta(0)
        if store.list_ends(connection) != signed.chains:
            waiting = _find_waiting_time(connection, newest)
    yield info(
        f"The key of audit checkpoints is {key}",
        "Keep this public key elsewhere, with the output of sma audit checkpoints --follow",
    )
    if waiting > _MOST_UNSIGNED:
        minutes = counted(int(waiting.total_seconds()) // 60, "minute")
        yield warning(f"Nothing was signed for {minutes}, although the trail has grown", _SIGN)
    else:
        yield ok(f"{counted(number or 0, 'checkpoint')} cover the trail")


def _find_no_key(checkpoint: int | None) -> Finding:
    if checkpoint is None:
        return info("There is no key of audit checkpoints yet", "A server creates it: sma serve")
    return critical("The key of audit checkpoints is gone, but there are checkpoints", _VERIFY)


def _find_waiting_time(connection: Connection, newest: datetime | None) -> timedelta:
    """Return for how long the oldest row or act since the newest checkpoint has not been signed."""
    firsts = []
    for column in (validation_history.c.validated_at, administrative_acts.c.acted_at):
        query = select(func.min(column))
        if newest is not None:
            query = query.where(column > newest)
        firsts.append(connection.execute(query).scalar_one())
    now = database_time(connection)
    return max((now - first for first in firsts if first is not None), default=timedelta(0))
