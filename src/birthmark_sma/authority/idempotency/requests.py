"""Answer a request once: the work of a request and its stored response, in one transaction.

The administration API uses it. A request that is refused is not stored, so its key can be used
again. Of two equal requests at a time, the second waits for the first and gets its response.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from birthmark_sma.authority.idempotency import store
from birthmark_sma.authority.idempotency.sealing import IDEMPOTENCY_PERIOD, decrypt
from birthmark_sma.authority.idempotency.store import StoredResponse
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.errors import IdempotencyKeyReusedError
from birthmark_sma.storage.clock import DatabaseClock
from birthmark_sma.storage.portable_sql import database_time

_NO_RESPONSE_YET = b""  # only the transaction that claims the key sees it


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request with an Idempotency-Key: the key of its response, and the digest of its content."""

    storage_key: bytes = field(repr=False)
    request_digest: bytes


def answer_once(
    transaction: Connection,
    keks: KeyEncryptionKeys,
    clock: DatabaseClock,
    request: IdempotentRequest,
    work: Callable[[], bytes],
) -> bytes:
    """Return the stored response of a repeated request; else do `work`, and store its response.

    Raises IdempotencyKeyReusedError if another request used the Idempotency-Key within 24 hours,
    KeyEncryptionKeyChangedError, and whatever `work` raises.
    """
    store.forget_before(transaction, clock.expired_before(IDEMPOTENCY_PERIOD))
    kek = keks.lock_newest(transaction)
    # Claimed before the work: another request with this key waits here, and does nothing twice.
    claim = StoredResponse(
        request.storage_key,
        request.request_digest,
        _NO_RESPONSE_YET,
        kek.kek_id,
        database_time(transaction),
    )
    store.claim(transaction, [claim])
    found = store.find(transaction, [request.storage_key])[request.storage_key]
    if found.request_digest != request.request_digest:
        raise IdempotencyKeyReusedError
    if found.sealed_response != _NO_RESPONSE_YET:
        return decrypt(found, keks, transaction)
    response = work()
    store.fill(transaction, request.storage_key, kek.wrap(response, request.storage_key))
    return response
