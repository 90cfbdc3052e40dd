"""Make and read checkpoints: signed notes with the heads of all chains.

`background.audit_checkpoints` makes one each minute, retention one before it deletes rows, and
`background.privacy` one before it coarsens them. `sma audit` reads them. Checkpoints are never
changed or deleted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, select

from birthmark_sma.authority.audit_chain import store
from birthmark_sma.authority.audit_chain.batches import End
from birthmark_sma.authority.audit_chain.checkpoint import (
    Checkpoint,
    KeptNote,
    Signed,
    parse,
    text_of,
)
from birthmark_sma.authority.audit_chain.keys import open_key
from birthmark_sma.authority.audit_chain.signed_note import sign
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.errors import AuditTrailChangedError
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.audit_chain import audit_checkpoints

_FULL_EACH = 60
"""Each 60th checkpoint lists all chains. So the sum of all is read from 60 of them at most."""
_columns = audit_checkpoints.c


@dataclass(frozen=True, slots=True)
class Pruning:
    """A deletion by retention: its time, and the ends up to which batches will be gone."""

    before: datetime
    gone: Mapping[str, End]


def make_checkpoint(
    transaction: Connection,
    keks: KeyEncryptionKeys,
    pruning: Pruning | None = None,
    coarse: datetime | None = None,
    *,
    least_age: timedelta = timedelta(0),
) -> Checkpoint | None:
    """Sign the heads of all chains and store the checkpoint.

    With `pruning` or `coarse`, permit that rows are deleted, or that those from before a time lose
    their exact time and address. Return None, with nothing done, if no chain has grown and nothing
    is permitted, if the last one is not as old as `least_age`, or if there is no key yet. A lock
    lets one process at a time do this. Raises AuditTrailChangedError.
    """
    wait_for_lock(transaction, AdvisoryLock.CHECKPOINTS)
    now = database_time(transaction)
    key = open_key(transaction, keks)
    last = transaction.execute(
        select(_columns.made_at).order_by(_columns.number.desc()).limit(1)
    ).scalar_one_or_none()
    if key is None:
        if last is not None:
            raise AuditTrailChangedError("the key that signed them is gone")
        return None
    if last is not None and timedelta(0) <= now - last < least_age:
        return None
    try:
        signed = read_sum(transaction)
    except ValueError as error:
        raise AuditTrailChangedError(str(error)) from None
    ends = store.list_ends(transaction)
    permits = pruning is not None or coarse is not None
    if not permits and ends == signed.chains:
        return None
    gone = {} if pruning is None else pruning.gone
    made = signed.follow(
        ends,
        now,
        lists_all=permits or (signed.number + 1) % _FULL_EACH == 1,
        pruned=None if pruning is None else pruning.before,
        gone=gone,
        coarse=coarse,
    )
    transaction.execute(
        insert(audit_checkpoints).values(
            number=made.number,
            made_at=made.made_at,
            lists_all=made.lists_all,
            pruned_before=made.pruned,
            coarse_before=made.coarse,
            note=sign(made.as_text(), key),
        )
    )
    return made


def permit_coarse(transaction: Connection, keks: KeyEncryptionKeys, before: datetime) -> None:
    """Sign that rows from before a time lose their exact time and address, unless it is signed.

    Raises AuditTrailChangedError.
    """
    signed = find_coarse(transaction)
    if signed is None or signed < before:
        make_checkpoint(transaction, keks, coarse=before)


def read_sum(connection: Connection) -> Signed:
    """Return the sum of all checkpoints, without a look at their signatures.

    `gone`, `pruned` and `coarse` are those of the last 60 at most. Raises ValueError if the
    checkpoints do not fit.
    """
    start = connection.execute(
        select(_columns.number).where(_columns.lists_all).order_by(_columns.number.desc()).limit(1)
    ).scalar_one_or_none()
    signed = Signed()
    for _, note in read_notes(connection, since=start or 0):
        checkpoint = parse(text_of(note))
        begins = checkpoint.number == start
        signed = (signed.skip_to if begins else signed.add)(checkpoint, note)
    return signed


def find_pruning(connection: Connection) -> Pruning | None:
    """Return the last pruning that was signed."""
    note = connection.execute(
        select(_columns.note)
        .where(_columns.pruned_before.is_not(None))
        .order_by(_columns.number.desc())
        .limit(1)
    ).scalar_one_or_none()
    if note is None:
        return None
    checkpoint = parse(text_of(note))
    return Pruning(checkpoint.pruned, checkpoint.gone) if checkpoint.pruned else None


def find_coarse(connection: Connection) -> datetime | None:
    """Return the time before which rows were permitted to be coarse at last."""
    query = select(_columns.coarse_before).where(_columns.coarse_before.is_not(None))
    return connection.execute(query.order_by(_columns.number.desc()).limit(1)).scalar()


def read_notes(connection: Connection, since: int = 0) -> Iterator[KeptNote]:
    """Yield the checkpoints from a number on."""
    rows = connection.execute(
        select(_columns.number, _columns.note)
        .where(_columns.number >= since)
        .order_by(_columns.number)
        .execution_options(yield_per=1_000)
    )
    yield from (KeptNote(*row) for row in rows)
