"""Look up what no two devices may share: folded serials, public keys and NUC hashes.

Called before and after registrations to name a conflict, by renewals, and by the doctor. UNIQUE
constraints decide races; these queries must never be the only check.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sqlalchemy import Connection, false, select, true

from birthmark_sma.authority.devices import store_postgresql, store_sqlite
from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import choose, is_any_of
from birthmark_sma.storage.schema.certificates import earlier_certificates
from birthmark_sma.storage.schema.devices import registered_devices as devices

COLLISION_SEPARATOR = "\t"
"""Separates the suffix of a stored folded serial if an older device has the same folded serial.

Folding never produces this character."""

_earlier = earlier_certificates.c


class ConflictSql(Protocol):
    """SQL of this module that differs by database, in `store_postgresql` and `store_sqlite`."""

    def find_conflicts(
        self, connection: Connection, serial: str, folded: str, fingerprint: bytes, nuc_hash: bytes
    ) -> Sequence[bool]:
        """Return in one query whether another device has the serial, the key and the NUC hash.

        The serial is compared exactly and folded. `nuc_hash` is the HMAC of the NUC hash.
        """


class RegistrationConflicts(NamedTuple):
    """The unique fields of a new device. True means that another device has the same value."""

    device_serial: bool
    public_key: bool
    nuc_hash: bool


def find_conflicts(
    connection: Connection, device_serial: str, public_key_fingerprint: bytes, nuc_hash: bytes
) -> RegistrationConflicts:
    """Return the conflicts of a new device. `nuc_hash` is the HMAC of the NUC hash.

    This runs before every signature, so it is one query.
    """
    serials = device_serial, fold(device_serial)
    sql: ConflictSql = choose(connection, postgresql=store_postgresql, sqlite=store_sqlite)
    found = sql.find_conflicts(connection, *serials, public_key_fingerprint, nuc_hash)
    return RegistrationConflicts(*found)


def had_key(connection: Connection, fingerprint: bytes, *, other_than: str) -> bool:
    """Return True if an earlier certificate of a device with another serial has the public key."""
    query = select(_earlier.device_serial).where(
        _earlier.public_key_fingerprint == fingerprint, _earlier.device_serial != other_than
    )
    return connection.execute(query.limit(1)).first() is not None


def has_nuc_hash(connection: Connection, nuc_hash: bytes, *, other_than: str) -> bool:
    """Return True if a device with another serial has the NUC hash, given as HMAC."""
    query = select(devices.c.device_serial).where(
        devices.c.nuc_hash == nuc_hash, devices.c.device_serial != other_than
    )
    return connection.execute(query).first() is not None


def list_collisions(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` pairs of serials with equal folded serials: the older, then the later.

    This reads the whole index of folded serials: half a second for a million devices.
    """
    later = devices.alias("later")
    parted = later.c.serial_folded.contains(COLLISION_SEPARATOR)
    rows = connection.execute(
        select(later.c.device_serial).where(parted).order_by(later.c.serial_folded).limit(limit)
    ).scalars()
    pairs = []
    for serial in rows:
        older = connection.execute(
            select(devices.c.device_serial).where(devices.c.serial_folded == fold(serial))
        ).scalar()
        pairs.append((older or fold(serial), serial))
    return pairs


class KeyHolder(NamedTuple):
    """The device that has or had a public key. `is_current` is False if the key was replaced."""

    device_serial: str
    status: DeviceStatus
    is_current: bool


def find_key_holders(
    connection: Connection, fingerprints: Sequence[bytes]
) -> dict[bytes, KeyHolder]:
    """Return the devices of these public keys, by fingerprint. Unknown keys are missing.

    The key of an earlier certificate belongs to its device. If the device has that key again, or
    another device has it, the holder is the one that has it now.
    """
    key, earlier_key = devices.c.public_key_fingerprint, _earlier.public_key_fingerprint
    of_device = devices.c.device_serial, devices.c.status
    replaced = (
        select(earlier_key, *of_device, false())
        .join_from(devices, earlier_certificates, _earlier.device_serial == devices.c.device_serial)
        .where(is_any_of(connection, earlier_key, fingerprints))
    )
    current = select(key, *of_device, true()).where(is_any_of(connection, key, fingerprints))
    found: dict[bytes, KeyHolder] = {}
    # The current keys first: a key that a re-enrolment replaces between both queries is then found
    # by the second one.
    for query in (current, replaced):
        for fingerprint, serial, status, is_current in connection.execute(query):
            holder = KeyHolder(serial, DeviceStatus(status), bool(is_current))
            found.setdefault(bytes(fingerprint), holder)
    return found
