"""SQL for CA certificates and for revoked device certificates.

Called by the ceremony, the succession of CAs, the rotation of secrets, the revocation of devices
and the CRLs. Private keys pass through here encrypted only. Every change of a CA certificate or its
state raises `ca_generation` in the same transaction, so that servers notice it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import Connection, delete, func, insert, select, update

from birthmark_sma.authority.acts.trail import Facts
from birthmark_sma.errors import NotInitialisedError, UnknownCaError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.authority import authority, ca_certificates
from birthmark_sma.storage.schema.certificates import revoked_certificates
from birthmark_sma.storage.schema.devices import registered_devices

FIRST_ROOT = "root"
FIRST_INTERMEDIATE = "intermediate"
"""The names of the CAs of the ceremony. Later ones are `root-2`, `intermediate-2` and so on."""


class CaRole(StrEnum):
    """The use of a CA certificate. A cross-certificate certifies a root under another root."""

    ROOT = "root"
    INTERMEDIATE = "intermediate"
    CROSS = "cross"


class CaState(StrEnum):
    """The state of a CA. There is one active root and one active intermediate.

    A prepared intermediate is published and signs nothing yet. The active one signs new device
    certificates. A retiring one signs none, and still publishes its CRL. A retired one has expired.
    A compromised one is on the CRL of its root, and signs nothing.
    """

    PREPARED = "prepared"
    ACTIVE = "active"
    RETIRING = "retiring"
    RETIRED = "retired"
    COMPROMISED = "compromised"


@dataclass(frozen=True, slots=True)
class StoredCa:
    """A CA certificate (PEM) and, for an intermediate, its encrypted private key.

    `sealed_private_key` is wrapped under the key-encryption key `kek_id`. Older authorities have
    `encrypted_private_key` instead, which is PKCS#8 (PEM) under the passphrase, until the first
    rotation. A root has neither. `issuer` is the name of the root that signed the certificate.
    `invalid_since` is the time since when the key of a compromised intermediate may be in other
    hands.
    """

    name: str
    certificate: str
    role: CaRole
    encrypted_private_key: str | None = field(default=None, repr=False)
    sealed_private_key: bytes | None = field(default=None, repr=False)
    kek_id: int | None = None
    state: CaState = CaState.ACTIVE
    issuer: str = FIRST_ROOT
    state_changed_at: datetime | None = None
    invalid_since: datetime | None = None

    def load(self) -> x509.Certificate:
        """Return the parsed certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked device certificate. `certificate_serial` is in lower-case hex.

    `revocation_reason` is a key of `pki.crl.REASONS`, or `pki.crl.HOLD`. `invalid_since` is the
    time since when the key may be in other hands, or None.
    `certificate_issuer` is the name of the CA whose CRL lists it.
    """

    certificate_serial: str
    device_serial: str
    revoked_at: datetime
    revocation_reason: str
    invalid_since: datetime | None = None
    certificate_issuer: str = FIRST_INTERMEDIATE


_CA_COLUMNS = [ca_certificates.c[each.name] for each in fields(StoredCa)]
REVOKED = [revoked_certificates.c[each.name] for each in fields(Revocation)]
"""The columns of a revocation, in the order of its fields."""


# --- CA certificates


def add_ca(transaction: Connection, ca: StoredCa, now: datetime) -> None:
    """Store a CA certificate under a new name."""
    transaction.execute(insert(ca_certificates).values(**asdict(ca), created_at=now))
    _raise_generation(transaction)


def list_cas(connection: Connection) -> list[StoredCa]:
    """Return all CA certificates, the oldest first."""
    query = select(*_CA_COLUMNS).order_by(ca_certificates.c.created_at, ca_certificates.c.name)
    return [_stored(row) for row in connection.execute(query)]


def pick_active(cas: Sequence[StoredCa], role: CaRole) -> StoredCa:
    """Return the active CA of a role among these. Raises NotInitialisedError without one."""
    for each in cas:
        if each.role is role and each.state is CaState.ACTIVE:
            return each
    raise NotInitialisedError


def pick(cas: Sequence[StoredCa], name: str) -> StoredCa:
    """Return the CA of this name among these. Raises UnknownCaError without one."""
    for each in cas:
        if each.name == name:
            return each
    raise UnknownCaError(f"There is no CA {name}. To see all, type: sma ca list")


def describe_states(connection: Connection) -> dict[str, Facts]:
    """Return role, state and time of a compromise of each CA, by name, for the trail of acts."""
    return {
        each.name: {
            "role": each.role.value,
            "state": each.state.value,
            "compromised_since": each.invalid_since,
        }
        for each in list_cas(connection)
    }


def find_ca(connection: Connection, name: str) -> StoredCa | None:
    """Return the CA of this name, or None."""
    query = select(*_CA_COLUMNS).where(ca_certificates.c.name == name)
    row = connection.execute(query).one_or_none()
    return None if row is None else _stored(row)


def find_active(connection: Connection, role: CaRole) -> StoredCa | None:
    """Return the active CA of a role, or None."""
    row = connection.execute(select(*_CA_COLUMNS).where(*_is_active(role))).one_or_none()
    return None if row is None else _stored(row)


def lock_active_intermediate(transaction: Connection) -> str | None:
    """Return the name of the active intermediate, which stays active until the transaction ends.

    Several transactions can hold this lock at once. A succession waits for all of them.
    """
    query = select(ca_certificates.c.name).where(*_is_active(CaRole.INTERMEDIATE))
    name: str | None = transaction.execute(query.with_for_update(read=True)).scalar_one_or_none()
    return name


def find_root_and_intermediate(connection: Connection) -> tuple[StoredCa, StoredCa]:
    """Return the active intermediate and its root. Raises NotInitialisedError without them."""
    intermediate = find_active(connection, CaRole.INTERMEDIATE)
    root = None if intermediate is None else find_ca(connection, intermediate.issuer)
    if root is None or intermediate is None:
        raise NotInitialisedError
    return root, intermediate


def load_certificates(database: Database) -> tuple[StoredCa, StoredCa]:
    """Return the active intermediate and its root. Raises NotInitialisedError without them."""
    with database.read() as connection:
        return find_root_and_intermediate(connection)


def set_state(
    transaction: Connection,
    name: str,
    *,
    old: CaState,
    new: CaState,
    now: datetime,
    invalid_since: datetime | None = None,
) -> bool:
    """Change the state of a CA; return False if it was not `old`."""
    changed = transaction.execute(
        update(ca_certificates)
        .where(
            ca_certificates.c.name == name,
            ca_certificates.c.state == old.value,
        )
        .values(state=new.value, state_changed_at=now, invalid_since=invalid_since)
    )
    _raise_generation(transaction)
    return changed.rowcount == 1


def count_devices_under(connection: Connection) -> dict[str, int]:
    """Return the number of registered devices by the name of their certificate's issuer.

    This reads an index of all devices: a tenth of a second for a million.
    """
    issuer = registered_devices.c.certificate_issuer
    rows = connection.execute(select(issuer, func.count()).group_by(issuer))
    return {row[0]: row[1] for row in rows}


def await_changes(transaction: Connection) -> None:
    """Wait until every transaction that changes CA certificates has ended."""
    # Each of them updates this row, which stays locked until its end.
    transaction.execute(select(authority.c.ca_generation).with_for_update())


def read_generation(connection: Connection) -> int:
    """Return the number of changes of CA certificates so far, 0 if there is no authority."""
    return connection.execute(select(authority.c.ca_generation)).scalar() or 0


def put_roots_signature(transaction: Connection, signature: bytes) -> None:
    """Store the signature (CMS, DER) over the list of trusted roots."""
    transaction.execute(update(authority).values(roots_signature=signature))
    _raise_generation(transaction)


def find_roots_signature(connection: Connection) -> bytes | None:
    """Return the signature (CMS, DER) over the list of trusted roots, or None."""
    signature: bytes | None = connection.execute(select(authority.c.roots_signature)).scalar()
    return signature


def _raise_generation(transaction: Connection) -> None:
    transaction.execute(update(authority).values(ca_generation=authority.c.ca_generation + 1))


def _is_active(role: CaRole) -> tuple[Any, ...]:
    return (
        ca_certificates.c.role == role.value,
        ca_certificates.c.state == CaState.ACTIVE.value,
    )


def _stored(row: Any) -> StoredCa:
    values = row._asdict()
    return StoredCa(**values | {"role": CaRole(values["role"]), "state": CaState(values["state"])})


def find_authority_id(connection: Connection) -> str | None:
    """Return the id of the authority, or None: the SHA-256 fingerprint (hex) of its first root.

    It is the same in each copy and backup of the database. Works with every version of the schema.
    """
    first = select(ca_certificates.c.certificate).where(ca_certificates.c.name == FIRST_ROOT)
    pem = connection.execute(first).scalar()
    if pem is None:
        return None
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(SHA256()).hex()


def ceremony_time(connection: Connection) -> datetime | None:
    """Return when the first intermediate was created, or None."""
    return connection.execute(
        select(ca_certificates.c.created_at).where(ca_certificates.c.name == FIRST_INTERMEDIATE)
    ).scalar()


def put_sealed_key(
    transaction: Connection, name: str, sealed_private_key: bytes, kek_id: int
) -> None:
    """Replace a CA's private key, in either form, by one that is wrapped under `kek_id`."""
    transaction.execute(
        update(ca_certificates)
        .where(ca_certificates.c.name == name)
        .values(encrypted_private_key=None, sealed_private_key=sealed_private_key, kek_id=kek_id)
    )


# --- revoked device certificates


def forget_revocations(transaction: Connection, before: datetime) -> None:
    """Delete the revocations from before a time. Call it in a sandbox only."""
    revoked = revoked_certificates
    transaction.execute(delete(revoked).where(revoked.c.revoked_at < before))


def list_revocations(connection: Connection, issuer: str | None = None) -> list[Revocation]:
    """Return the revoked certificates, or those of an issuer, the oldest revocation first."""
    table = revoked_certificates.c
    query = select(*REVOKED).order_by(table.revoked_at, table.certificate_serial)
    if issuer is not None:
        query = query.where(table.certificate_issuer == issuer)
    return [Revocation(*row) for row in connection.execute(query)]


def find_revocation(connection: Connection, certificate_serial: str) -> Revocation | None:
    """Return the revocation of a certificate, or None if it is not revoked."""
    found = revoked_certificates.c.certificate_serial == certificate_serial
    row = connection.execute(select(*REVOKED).where(found)).one_or_none()
    return None if row is None else Revocation(*row)
