"""SQL for the chains: add batches outside the hot path, find the ends of chains.

Called by `acts.trail`, by the checkpoints and by retention. The validation stores write their own
batches, in the statement that appends the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from birthmark_sma.authority.audit_chain.batches import (
    ACTS,
    START,
    AuditBatch,
    End,
    Kind,
    floor_to_hour,
    hash_act,
    seal,
)
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.schema.audit_chain import audit_batches

_batches = audit_batches.c


def add_batches(transaction: Connection, batches: Iterable[AuditBatch]) -> None:
    """Insert batches."""
    rows = [each._asdict() for each in batches]
    if rows:
        transaction.execute(insert(audit_batches), rows)


def find_end(connection: Connection, writer: str) -> End:
    """Return the end of a chain."""
    last = connection.execute(
        select(_batches.sequence, _batches.head)
        .where(_batches.writer == writer)
        .order_by(_batches.sequence.desc())
        .limit(1)
    ).one_or_none()
    return START if last is None else End(*last)


def hash_act_and_subjects(act: Mapping[str, Any], subjects: Iterable[Sequence[Any]]) -> list[bytes]:
    """Return the leaves of an act: its own, and those of its subjects in the order of their names.

    `act` has the columns of `administrative_acts`, in their order; a subject its name, before and
    after.
    """
    in_order = sorted(subjects, key=lambda each: str(each[0]))
    return [
        hash_act(list(act.values())),
        *(hash_act([act["id"], *each]) for each in in_order),
    ]


def chain_act(
    transaction: Connection, act: Mapping[str, Any], subjects: Iterable[Sequence[Any]]
) -> None:
    """Add the batch of an act that this transaction has inserted.

    The acts have one chain. Its lock is held until this transaction ends, so acts wait for each
    other's commits: call it as late as possible.
    """
    wait_for_lock(transaction, AdvisoryLock.ACTS)
    end = find_end(transaction, ACTS)
    add_batches(transaction, [seal_act(end, act, subjects)])


def seal_act(end: End, act: Mapping[str, Any], subjects: Iterable[Sequence[Any]]) -> AuditBatch:
    """Return the batch of an act that follows this end of the chain of acts."""
    acted_at: datetime = act["acted_at"]
    return seal(
        ACTS,
        end,
        Kind.ACTS,
        hash_act_and_subjects(act, subjects),
        hour=floor_to_hour(acted_at),
        first_id=act["id"],
        rows=1,
        salt=None,
    )


def list_ends(connection: Connection) -> dict[str, End]:
    """Return the ends of all chains by their names.

    It looks up one chain after the other in the index of the primary key, so it costs nothing that
    grows with the number of batches.
    """
    ends: dict[str, End] = {}
    writer = ""
    while True:
        following = connection.execute(
            select(_batches.writer)
            .where(_batches.writer > writer)
            .order_by(_batches.writer)
            .limit(1)
        ).scalar_one_or_none()
        if following is None:
            return ends
        writer = following
        ends[writer] = find_end(connection, writer)
