"""Store encrypted responses to requests with an Idempotency-Key, for 24 hours.

SQL only: `provisioning.idempotency` and `idempotency.sealing` encrypt and decrypt. `kek.rotation`
encrypts them again, and `sma secrets check` reads all. This module must never see a response in the
clear.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from birthmark_sma.storage.portable_sql import insert_or_skip, is_any_of
from birthmark_sma.storage.schema.devices import idempotent_responses as responses


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An encrypted response, with the digests of its Idempotency-Key and of its request."""

    idempotency_key: bytes = field(repr=False)
    request_digest: bytes
    sealed_response: bytes = field(repr=False)
    kek_id: int
    created_at: datetime


def claim(transaction: Connection, answers: Sequence[StoredResponse]) -> None:
    """Store responses whose key is unused. Existing rows stay unchanged.

    If an open transaction has taken a key, this waits until that transaction ends.
    """
    rows = [asdict(answer) for answer in answers]
    transaction.execute(insert_or_skip(transaction, responses), rows)


def find(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, StoredResponse]:
    """Return the stored responses by their keys. Unknown keys are missing in the result."""
    rows = connection.execute(
        _whole().where(is_any_of(connection, responses.c.idempotency_key, keys))
    )
    return {row.idempotency_key: StoredResponse(*row) for row in rows}


def given_at(connection: Connection, time: datetime) -> list[StoredResponse]:
    """Return the responses created at `time`, which is also when their devices were provisioned."""
    rows = connection.execute(_whole().where(responses.c.created_at == time))
    return [StoredResponse(*row) for row in rows]


def release(transaction: Connection, keys: Sequence[bytes]) -> None:
    """Delete the responses under these keys, whose requests were refused."""
    transaction.execute(
        delete(responses).where(is_any_of(transaction, responses.c.idempotency_key, keys))
    )


def fill(transaction: Connection, key: bytes, sealed_response: bytes) -> None:
    """Set the response under a key that this transaction has claimed."""
    transaction.execute(
        update(responses)
        .where(responses.c.idempotency_key == key)
        .values(sealed_response=sealed_response)
    )


def forget_before(transaction: Connection, when: datetime) -> None:
    """Delete the responses created before `when`."""
    transaction.execute(delete(responses).where(responses.c.created_at < when))


def count_by_kek(connection: Connection) -> dict[int, int]:
    """Return the number of responses by the id of their key-encryption key."""
    table = responses.c
    rows = connection.execute(select(table.kek_id, func.count()).group_by(table.kek_id))
    return {row[0]: row[1] for row in rows}


def take_outdated(
    transaction: Connection, kek_id: int, after: bytes, limit: int
) -> list[StoredResponse]:
    """Lock and return up to `limit` responses that are not encrypted under the key `kek_id`.

    They have keys above `after`, in ascending order. The locks last until the transaction ends.
    Rows that another transaction has locked are skipped (SKIP LOCKED), so this never waits.
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
    """Replace the responses of `take_outdated` with the same ones, encrypted again."""
    # The parameter has another name than the column, which SQLAlchemy reserves for SET.
    transaction.execute(
        update(responses).where(responses.c.idempotency_key == bindparam("place")),
        [
            {"place": a.idempotency_key, "sealed_response": a.sealed_response, "kek_id": a.kek_id}
            for a in answers
        ],
    )


def list_some(connection: Connection, after: bytes, limit: int) -> list[StoredResponse]:
    """Return up to `limit` responses with keys above `after`, in ascending order."""
    rows = connection.execute(
        _whole()
        .where(responses.c.idempotency_key > after)
        .order_by(responses.c.idempotency_key)
        .limit(limit)
    )
    return [StoredResponse(*row) for row in rows]


def _whole() -> Select[Any]:
    return select(*(responses.c[each.name] for each in fields(StoredResponse)))
