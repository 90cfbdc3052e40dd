"""Access keys: who may call the authority, for what, and until when.

Every change raises the generation in the same transaction, by which servers see that there was one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from birthmark_sma.storage.schema import access_keys, authority

_columns = access_keys.c


class KeyScope(StrEnum):
    """What a key is good for. None of them includes another."""

    PROVISION = "provision"
    VALIDATE = "validate"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key as it is stored; its secret only as a SHA-256 digest of 32 bytes.

    It has a secret, a client certificate (by SHA-256 fingerprint or by issuer), or both.
    """

    key_id: str
    name: str
    scope: KeyScope
    created_at: datetime
    secret_digest: bytes | None = field(default=None, repr=False)
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_until: datetime | None = None
    certificate_fingerprint: bytes | None = None
    certificate_issuer: str | None = None
    device_family: str | None = None
    """Only devices of this family may be provisioned."""
    uses_allowed: int | None = None
    """How many devices may be provisioned in all."""
    uses: int = 0
    disclosure: str | None = None
    rate_limit: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_good(self, now: datetime) -> bool:
        """Say whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


_NAMES = tuple(each.name for each in fields(AccessKey))


def add_key(transaction: Connection, key: AccessKey) -> None:
    """Store a new key."""
    transaction.execute(insert(access_keys).values(**asdict(key)))
    _raise_generation(transaction)


def change_key(transaction: Connection, key_id: str, **values: Any) -> None:
    """Change some columns of a key."""
    transaction.execute(update(access_keys).where(_columns.key_id == key_id).values(**values))
    _raise_generation(transaction)


def all_keys(connection: Connection) -> list[AccessKey]:
    """Return every key, the oldest first."""
    return _find(connection)


def find_keys(connection: Connection, name_or_id: str) -> list[AccessKey]:
    """Return the keys with this name or id, the oldest first."""
    return _find(connection, (_columns.name == name_or_id) | (_columns.key_id == name_or_id))


def generation(connection: Connection) -> int:
    """Return how often keys have been changed; 0 where there is no authority yet."""
    return connection.execute(select(authority.c.access_generation)).scalar() or 0


def uses_left(connection: Connection, key_id: str) -> int | None:
    """Return how many more devices a key may provision; None where there is no limit."""
    left = _columns.uses_allowed - _columns.uses
    return connection.execute(select(left).where(_columns.key_id == key_id)).scalar()


def use(transaction: Connection, key_id: str, times: int) -> int:
    """Count uses of a key, as many as it allows of those wanted; return how many that is.

    Until the transaction ends, others who use the key wait.
    """
    row = transaction.execute(
        select(_columns.uses, _columns.uses_allowed)
        .where(_columns.key_id == key_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return 0
    granted = times if row.uses_allowed is None else min(times, row.uses_allowed - row.uses)
    _add_uses(transaction, key_id, granted)
    return granted


def give_back(transaction: Connection, key_id: str, times: int) -> None:
    """Count uses of a key as not made. For the transaction that counted them."""
    _add_uses(transaction, key_id, -times)


def note_last_use(transaction: Connection, used: Mapping[str, datetime]) -> None:
    """Write down when keys were last used. This is no change: the generation stays."""
    for key_id, when in sorted(used.items()):  # all programs in one order, so that none waits
        transaction.execute(
            update(access_keys)
            .where(
                _columns.key_id == key_id,
                _columns.last_used_at.is_(None) | (_columns.last_used_at < when),
            )
            .values(last_used_at=when)
        )


def _find(connection: Connection, *conditions: ColumnElement[bool]) -> list[AccessKey]:
    rows = connection.execute(
        select(*(_columns[name] for name in _NAMES))
        .where(*conditions)
        .order_by(_columns.created_at, _columns.key_id)
    ).mappings()
    return [AccessKey(**{**row, "scope": KeyScope(row["scope"])}) for row in rows]


def _add_uses(transaction: Connection, key_id: str, times: int) -> None:
    transaction.execute(
        update(access_keys).where(_columns.key_id == key_id).values(uses=_columns.uses + times)
    )


def _raise_generation(transaction: Connection) -> None:
    transaction.execute(
        update(authority).values(access_generation=authority.c.access_generation + 1)
    )
