"""SQL for access keys: add, change, find and count their uses in the table `access_keys`.

Called by `keys`, `cache`, provisioning and the dashboard. Each change of a key increments the
generation in the same transaction and stores it in the key's row. Servers therefore detect a change
with one query, and read only the changed keys. Never update a key without a new generation, except
its counters `uses` and `last_used_at`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, or_, select, update

from birthmark_sma.config import Disclosure
from birthmark_sma.storage.schema.access import access_keys
from birthmark_sma.storage.schema.authority import authority

_columns = access_keys.c


class KeyScope(StrEnum):
    """The kind of requests that a key allows: those of devices, of aggregation servers, or a role.

    Roles are for those who operate the authority (`ROLES`). No role includes the other two.
    """

    PROVISION = "provision"
    VALIDATE = "validate"
    MONITOR = "monitor"
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


ROLES = (KeyScope.MONITOR, KeyScope.READ, KeyScope.OPERATE, KeyScope.ADMIN)
"""The roles, the least first. Each allows what those before it allow."""


def at_least(role: KeyScope) -> frozenset[KeyScope]:
    """Return a role and those that include it."""
    return frozenset(ROLES[ROLES.index(role) :])


def in_words(scopes: frozenset[KeyScope]) -> str:
    """Return scopes as the words of a sentence, the least role first: `read, operate or admin`."""
    *others, last = (each.value for each in KeyScope if each in scopes)
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key as the database stores it.

    A caller proves it with a secret or with a client certificate. Secrets are stored as SHA-256
    digests (32 bytes); `previous_digest` is valid until `previous_until` after a rotation. A
    certificate is identified by its SHA-256 fingerprint or by its issuer.
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
    """The subject of a CA (RFC 4514). `certificate_issuer_der` is the certificate of that CA."""
    certificate_issuer_der: bytes | None = field(default=None, repr=False)
    device_family: str | None = None
    """The only device family that the key may provision; None for any."""
    uses_allowed: int | None = None
    """The number of devices that the key may provision in total; None for no limit."""
    uses: int = 0
    may_re_enrol: bool = False
    """True if the key may re-enrol devices of its family, which replaces their certificates."""
    disclosure: str | None = None
    rate_limit: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    @property
    def may_export_serials(self) -> bool:
        """Return True unless the disclosure leaves the serials of devices out of exports."""
        return self.disclosure in {None, Disclosure.SERIAL.value}

    def is_good(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def state_at(self, now: datetime) -> str:
        """Return the state of the key for display: `in force`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "in force" if self.is_good(now) else "expired"


_NAMES = tuple(each.name for each in fields(AccessKey))


def add_key(transaction: Connection, key: AccessKey) -> None:
    """Store a new key."""
    generation = _raise_generation(transaction)
    transaction.execute(insert(access_keys).values(**asdict(key), generation=generation))


def change_key(transaction: Connection, key_id: str, **values: Any) -> None:
    """Set columns of a key, and its generation."""
    generation = _raise_generation(transaction)
    transaction.execute(
        update(access_keys).where(_columns.key_id == key_id).values(**values, generation=generation)
    )


def lock_keys(transaction: Connection) -> None:
    """Lock all keys against changes by other transactions until this transaction ends.

    Call it before you read keys and change one according to what you read. It locks the row of the
    generation, which every change of a key updates (`_raise_generation`).
    """
    transaction.execute(select(authority.c.access_generation).with_for_update())


def all_keys(connection: Connection) -> list[AccessKey]:
    """Return every key, the oldest first."""
    return _find(connection)


def changed_since(connection: Connection, generation: int) -> list[AccessKey]:
    """Return the keys that were created or changed after a generation, the oldest first."""
    return _find(connection, _columns.generation > generation)


def find_rivals(connection: Connection, key: AccessKey) -> list[AccessKey]:
    """Return the keys that are not revoked and have the name or the certificate of this one."""
    alike = [_columns.name == key.name]
    if key.certificate_fingerprint is not None:
        alike.append(_columns.certificate_fingerprint == key.certificate_fingerprint)
    if key.certificate_issuer is not None:
        alike.append(_columns.certificate_issuer == key.certificate_issuer)
    return _find(connection, _columns.revoked_at.is_(None), or_(*alike))


def has_good_key(connection: Connection, now: datetime) -> bool:
    """Return whether there is a key that is neither revoked nor expired."""
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
    """Return the ids of the keys of a scope that were revoked or expired between two times."""
    lapsed = or_(_columns.revoked_at >= since, _columns.expires_at.between(since, now))
    found = select(_columns.key_id).where(_columns.scope == scope, lapsed)
    return list(connection.execute(found).scalars())


def generation(connection: Connection) -> int:
    """Return the generation: the number of changes of keys so far, 0 if there is no authority."""
    return connection.execute(select(authority.c.access_generation)).scalar() or 0


def uses_left(connection: Connection, key_id: str) -> int | None:
    """Return how many more devices a key may provision, or None if there is no limit or no key."""
    left = _columns.uses_allowed - _columns.uses
    return connection.execute(select(left).where(_columns.key_id == key_id)).scalar()


def use(transaction: Connection, key_id: str, times: int) -> int:
    """Count up to `times` uses of a key, as many as its limit allows, and return that number.

    Return 0 for an unknown key. The row stays locked until the transaction ends, so that two
    processes cannot exceed the limit together.
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
    """Subtract uses of a key. Call it only in the transaction in which `use` counted them."""
    _add_uses(transaction, key_id, -times)


def note_last_use(transaction: Connection, used: Mapping[str, datetime]) -> list[str]:
    """Store when keys were last used, and return the ids of the keys that were written.

    The generation stays, because servers need not read the key again. Skip the keys that another
    transaction has locked, so that this never waits.
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
    """Increment the generation and return it.

    The row stays locked until the transaction ends, so changes of keys commit one after the other.
    Generations therefore become visible in ascending order, and `changed_since` misses none.
    """
    raised: int = transaction.execute(
        update(authority)
        .values(access_generation=authority.c.access_generation + 1)
        .returning(authority.c.access_generation)
    ).scalar_one()
    return raised
