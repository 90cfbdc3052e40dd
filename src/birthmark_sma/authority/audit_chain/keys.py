"""The key that signs checkpoints: Ed25519, wrapped under the key-encryption key.

`ensure_key` creates it before the first signature, `checkpoints` signs with it, and `kek.rotation`
rewraps it. The private key must never leave this module unwrapped, but as an object that signs.
"""

import logging
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, LargeBinary, cast, func, select, update

from birthmark_sma.authority.audit_chain.signed_note import THE_KEY, format_verifier
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time, insert_or_skip
from birthmark_sma.storage.schema.audit_chain import audit_checkpoints, audit_keys

_PLACE = b"audit checkpoint key"
_keys = audit_keys.c
_is_the_key = _keys.key_id == THE_KEY  # `sma audit verify` names any other
_log = logging.getLogger(__name__)


def ensure_key(database: Database, keks: KeyEncryptionKeys) -> None:
    """Create the key, unless there is one, in a transaction of its own, and log its public key."""
    created = database.transact(lambda each: create_key(each, keks, database_time(each)))
    if created is not None:
        _log.info("the key of audit checkpoints was created; keep its public key: %s", created)


def create_key(transaction: Connection, keks: KeyEncryptionKeys, now: datetime) -> str | None:
    """Create the key, unless there is one; return the public key as text if it was created.

    If there are checkpoints, somebody deleted the key that signed them: none is created.
    Raises KeyEncryptionKeyChangedError if this process could not follow a rotation.
    """
    if find_verifier(transaction) is not None or _was_key_deleted(transaction):
        return None
    kek = keks.lock_newest(transaction)
    key = Ed25519PrivateKey.generate()
    public_key = key.public_key().public_bytes_raw()
    added = transaction.execute(
        insert_or_skip(transaction, audit_keys)
        .values(
            key_id=THE_KEY,
            public_key=public_key,
            wrapped_private_key=kek.wrap(key.private_bytes_raw(), _PLACE),
            kek_id=kek.kek_id,
            created_at=now,
        )
        .returning(_keys.key_id)
    ).one_or_none()
    return None if added is None else format_verifier(public_key)


def open_key(connection: Connection, keks: KeyEncryptionKeys) -> Ed25519PrivateKey | None:
    """Return the key, or None if there is none yet. Raises WrongSecretError."""
    row = connection.execute(
        select(_keys.wrapped_private_key, _keys.kek_id).where(_is_the_key)
    ).one_or_none()
    if row is None:
        return None
    return Ed25519PrivateKey.from_private_bytes(keks.unwrap(connection, *row, _PLACE))


def find_verifier(connection: Connection) -> str | None:
    """Return the public key as text, or None if there is no key yet."""
    public_key = connection.execute(
        select(_keys.public_key).where(_is_the_key)
    ).scalar_one_or_none()
    return None if public_key is None else format_verifier(public_key)


def list_verifiers(connection: Connection) -> list[tuple[int, str]]:
    """Return all public keys by number, as text."""
    # SQLite stores anything in any column, and the cast makes bytes of it.
    query = select(_keys.key_id, cast(_keys.public_key, LargeBinary)).order_by(_keys.key_id)
    return [(number, format_verifier(key)) for number, key in connection.execute(query)]


def rewrap(transaction: Connection, keks: KeyEncryptionKeys) -> None:
    """Wrap the key under the newest key-encryption key."""
    row = transaction.execute(
        select(_keys.wrapped_private_key, _keys.kek_id)
        .where(_is_the_key, _keys.kek_id != keks.newest.kek_id)
        .with_for_update()
    ).one_or_none()
    if row is not None:
        wrapped = keks.newest.wrap(keks.unwrap(transaction, *row, _PLACE), _PLACE)
        transaction.execute(
            update(audit_keys)
            .where(_is_the_key)
            .values(wrapped_private_key=wrapped, kek_id=keks.newest.kek_id)
        )


def count_outdated(connection: Connection, kek_id: int | None) -> int:
    """Return how many keys are wrapped under another key-encryption key: 0 or 1."""
    others = select(func.count()).select_from(audit_keys).where(_is_the_key, _keys.kek_id != kek_id)
    return connection.execute(others).scalar_one()


def _was_key_deleted(connection: Connection) -> bool:
    return connection.execute(select(audit_checkpoints.c.number).limit(1)).first() is not None
