"""First answers to requests that carried an Idempotency-Key, sealed, for a day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select

from birthmark_sma.storage.dialects import insert_or_skip, is_any_of
from birthmark_sma.storage.schema import idempotent_responses as responses


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """A sealed answer, under the digests of its Idempotency-Key and of its request."""

    idempotency_key: bytes
    request_digest: bytes
    sealed_response: bytes
    kek_id: int
    created_at: datetime


def claim(transaction: Connection, answers: Sequence[FirstAnswer]) -> None:
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


def find(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, FirstAnswer]:
    """Return the first answers under these keys."""
    table = responses.c
    rows = connection.execute(
        select(
            table.idempotency_key,
            table.request_digest,
            table.sealed_response,
            table.kek_id,
            table.created_at,
        ).where(is_any_of(connection, table.idempotency_key, keys))
    )
    return {row.idempotency_key: FirstAnswer(*row) for row in rows}


def release(transaction: Connection, keys: Sequence[bytes]) -> None:
    """Give keys back whose request was refused after all."""
    transaction.execute(
        delete(responses).where(is_any_of(transaction, responses.c.idempotency_key, keys))
    )


def forget_before(transaction: Connection, when: datetime) -> None:
    """Delete answers that were given before a time."""
    transaction.execute(delete(responses).where(responses.c.created_at < when))
