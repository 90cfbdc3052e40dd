"""Sign what retention deletes from the audit log, and delete its batches.

`background.retention` and a sandbox call `permit` before they delete rows, and `delete_batches`
afterwards. Without the signed permission, `sma audit verify` takes the rows for deleted by a
stranger. The last batch of each chain must stay: it is where the chain goes on.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, select

from birthmark_sma.authority.audit_chain import store
from birthmark_sma.authority.audit_chain.batches import ACTS, End, Kind
from birthmark_sma.authority.audit_chain.checkpoints import (
    Pruning,
    find_pruning,
    make_checkpoint,
)
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.audit_chain import audit_batches

_HOUR = timedelta(hours=1)
_STEP = 5_000  # batches
_batches = audit_batches.c


def permit(
    transaction: Connection, keks: KeyEncryptionKeys, before: datetime, *, acts: bool = False
) -> None:
    """Sign that rows, and with `acts` also acts, from before a time are deleted.

    Nothing is signed if that was signed already, or if no batch is that old. Raises
    AuditTrailChangedError.
    """
    last = find_pruning(transaction)
    if last is not None and last.before >= before:
        return
    gone = {
        writer: end
        for writer in store.list_ends(transaction)
        if (acts or writer != ACTS) and (end := _find_old_end(transaction, writer, before))
    }
    # `gone` alone does not tell: not in a sandbox, which deletes the rows of half an hour, nor for
    # a chain whose first batch is young because a clock went back.
    more = _has_rows_between(transaction, None if last is None else last.before - _HOUR, before)
    if more or (gone and (last is None or gone != last.gone)):
        make_checkpoint(transaction, keks, Pruning(before, gone))


def _has_rows_between(connection: Connection, after: datetime | None, before: datetime) -> bool:
    some = select(_batches.hour).where(
        _batches.kind == Kind.VALIDATIONS.value, _batches.hour < before
    )
    if after is not None:
        some = some.where(_batches.hour > after)
    return connection.execute(some.limit(1)).first() is not None


def _find_old_end(connection: Connection, writer: str, before: datetime) -> End | None:
    """Return the end of the batches of a chain that are all older, or None if its first is not."""
    of_chain = _batches.writer == writer
    newer = (
        select(func.min(_batches.sequence))
        .where(of_chain, _batches.hour > before - _HOUR)
        .scalar_subquery()
    )
    last = connection.execute(
        select(_batches.sequence, _batches.head)
        .where(of_chain, (_batches.sequence < newer) | newer.is_(None))
        .order_by(_batches.sequence.desc())
        .limit(1)
    ).one_or_none()
    return None if last is None else End(*last)


def delete_batches(database: Database) -> Iterator[int]:
    """Delete the batches that the last permission names, in steps; yield the number of each."""
    with database.read() as connection:
        pruning = find_pruning(connection)
    for writer, end in pruning.gone.items() if pruning else ():
        deleted = _STEP
        while deleted:

            def step(transaction: Connection, writer: str = writer, end: End = end) -> int:
                return _delete_some(transaction, writer, end)

            deleted = database.transact(step)
            if deleted:
                yield deleted


def _delete_some(transaction: Connection, writer: str, end: End) -> int:
    of_chain = _batches.writer == writer
    oldest, newest = transaction.execute(
        select(func.min(_batches.sequence), func.max(_batches.sequence)).where(of_chain)
    ).one()
    if oldest is None:
        return 0
    below = min(oldest + _STEP, end.sequence + 1, newest)
    some = delete(audit_batches).where(of_chain, _batches.sequence < below)
    return transaction.execute(some).rowcount
