"""Access keys: who may call the authority, for what, and until when.

Every change raises the generation in the same transaction, and marks the key with it. So servers
see that there was a change, and read only the keys that it was made to.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, or_, select, update

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
    """The name of a CA (RFC 4514); `certificate_issuer_der` is its certificate."""
    certificate_issuer_der: bytes | None = field(default=None, repr=False)
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

    def state_at(self, now: datetime) -> str:
        """Return how the key stands, for people: `in force`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "in force" if self.is_good(now) else "expired"


_NAMES = tuple(each.name for each in fields(AccessKey))


def add_key(transaction: Connection, key: AccessKey) -> None:
    """Store a new key."""
    generation = _raise_generation(transaction)
    transaction.execute(insert(access_keys).values(**asdict(key), generation=generation))


def change_key(transaction: Connection, key_id: str, **values: Any) -> None:
    """Change some columns of a key."""
    generation = _raise_generation(transaction)
    transaction.execute(
        update(access_keys).where(_columns.key_id == key_id).values(**values, generation=generation)
    )


def lock_keys(transaction: Connection) -> None:
    """Keep other changes of keys waiting until the transaction ends.

    For whoever looks at keys before it changes one: what it saw is still so then.
    """
    transaction.execute(select(authority.c.access_generation).with_for_update())


def all_keys(connection: Connection) -> list[AccessKey]:
    """Return every key, the oldest first."""
    return _find(connection)


def changed_since(connection: Connection, generation: int) -> list[AccessKey]:
    """Return the keys that were made or changed after a generation, the oldest first."""
    return _find(connection, _columns.generation > generation)


def find_rivals(connection: Connection, key: AccessKey) -> list[AccessKey]:
    """Return the keys not revoked that have the name or the certificate of this one."""
    alike = [_columns.name == key.name]
    if key.certificate_fingerprint is not None:
        alike.append(_columns.certificate_fingerprint == key.certificate_fingerprint)
    if key.certificate_issuer is not None:
        alike.append(_columns.certificate_issuer == key.certificate_issuer)
    return _find(connection, _columns.revoked_at.is_(None), or_(*alike))


def has_good_key(connection: Connection, now: datetime) -> bool:
    """Say whether there is a key that is neither revoked nor expired."""
    good = select(_columns.key_id).where(
        _columns.revoked_at.is_(None), _columns.expires_at.is_(None) | (_columns.expires_at > now)
    )
    return connection.execute(good.limit(1)).first() is not None


def find_keys(connection: Connection, name_or_id: str) -> list[AccessKey]:
    """Return the keys with this name or id, the oldest first."""
    return _find(connection, (_columns.name == name_or_id) | (_columns.key_id == name_or_id))


def lapsed_since(
    connection: Connection, scope: KeyScope, since: datetime, now: datetime
) -> list[str]:
    """Return the ids of keys of a scope that were revoked or have expired since a time."""
    lapsed = or_(_columns.revoked_at >= since, _columns.expires_at.between(since, now))
    found = select(_columns.key_id).where(_columns.scope == scope, lapsed)
    return list(connection.execute(found).scalars())


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


def note_last_use(transaction: Connection, used: Mapping[str, datetime]) -> list[str]:
    """Write down when keys were last used. This is no change: the generation stays.

    Waits for nobody: a key that somebody else is writing to is left out. Returns the others' ids.
    """
    free = select(_columns.key_id).where(_columns.key_id.in_(sorted(used)))
    noted = list(transaction.execute(free.with_for_update(skip_locked=True)).scalars())
    for key_id in noted:
        when = used[key_id]
        transaction.execute(
            update(access_keys)
            .where(
                _columns.key_id == key_id,
                _columns.last_used_at.is_(None) | (_columns.last_used_at < when),
            )
            .values(last_used_at=when)
        )
    return noted


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


def _raise_generation(transaction: Connection) -> int:
    """Return the new generation. Until the transaction ends, no other key can be changed.

    So generations become visible in their order, and none is overlooked.
    """
    raised: int = transaction.execute(
        update(authority)
        .values(access_generation=authority.c.access_generation + 1)
        .returning(authority.c.access_generation)
    ).scalar_one()
    return raised
