"""First answers to requests that carried an Idempotency-Key, sealed, for a day."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from birthmark_sma.storage.dialects import insert_or_skip, is_any_of
from birthmark_sma.storage.schema import idempotent_responses as responses


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A sealed answer, under the digests of its Idempotency-Key and of its request."""

    idempotency_key: bytes = field(repr=False)
    request_digest: bytes
    sealed_response: bytes = field(repr=False)
    kek_id: int
    created_at: datetime


def claim(transaction: Connection, answers: Sequence[StoredResponse]) -> None:
    """Keep answers whose key nobody used before; the others stay as they are.

    Where another transaction has just taken a key, this waits for its outcome.
    """
    transaction.execute(
        insert_or_skip(transaction, responses),
        [
            {
                "idempotency_key": answer.idempotency_key,
                "request_digest": answer.request_digest,
                "sealed_response": answer.sealed_response,
                "kek_id": answer.kek_id,
                "created_at": answer.created_at,
            }
            for answer in answers
        ],
    )


def find(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, StoredResponse]:
    """Return the first answers under these keys."""
    rows = connection.execute(
        _whole().where(is_any_of(connection, responses.c.idempotency_key, keys))
    )
    return {row.idempotency_key: StoredResponse(*row) for row in rows}


def given_at(connection: Connection, time: datetime) -> list[StoredResponse]:
    """Return the first answers of a moment, which is that of their devices' registration too."""
    return [
        StoredResponse(*row)
        for row in connection.execute(_whole().where(responses.c.created_at == time))
    ]


def release(transaction: Connection, keys: Sequence[bytes]) -> None:
    """Give keys back whose request was refused after all."""
    transaction.execute(
        delete(responses).where(is_any_of(transaction, responses.c.idempotency_key, keys))
    )


def forget_before(transaction: Connection, when: datetime) -> None:
    """Delete answers that were given before a time."""
    transaction.execute(delete(responses).where(responses.c.created_at < when))


def count_by_kek(connection: Connection) -> dict[int, int]:
    """Return how many answers are sealed under each key-encryption key."""
    table = responses.c
    rows = connection.execute(select(table.kek_id, func.count()).group_by(table.kek_id))
    return {row[0]: row[1] for row in rows}


def take_outdated(
    transaction: Connection, kek_id: int, after: bytes, limit: int
) -> list[StoredResponse]:
    """Return some answers that are sealed under another key than this, from behind `after`.

    Nobody else touches them before this transaction ends. Those that somebody else is about to
    change are left out, so that this waits for nobody.
    """
    rows = transaction.execute(
        _whole()
        .where(responses.c.kek_id != kek_id, responses.c.idempotency_key > after)
        .order_by(responses.c.idempotency_key)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [StoredResponse(*row) for row in rows]


def put_rewrapped(transaction: Connection, answers: Sequence[StoredResponse]) -> None:
    """Put the same answers, sealed anew, in the place of what was taken."""
    transaction.execute(
        update(responses).where(responses.c.idempotency_key == bindparam("place")),
        [
            {"place": a.idempotency_key, "sealed_response": a.sealed_response, "kek_id": a.kek_id}
            for a in answers
        ],
    )


def list_some(connection: Connection, after: bytes, limit: int) -> list[StoredResponse]:
    """Return answers in the order of their keys' digests, from behind `after`."""
    rows = connection.execute(
        _whole()
        .where(responses.c.idempotency_key > after)
        .order_by(responses.c.idempotency_key)
        .limit(limit)
    )
    return [StoredResponse(*row) for row in rows]


def _whole() -> Select[Any]:
    table = responses.c
    return select(
        table.idempotency_key,
        table.request_digest,
        table.sealed_response,
        table.kek_id,
        table.created_at,
    )
