"""SQL for CA certificates and for revoked device certificates.

Called by the ceremony, the rotation of secrets, the revocation of devices and the CRLs. Private
keys pass through here encrypted only.
"""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from cryptography import x509
from sqlalchemy import Connection, delete, func, insert, select, update

from birthmark_sma.errors import NotInitialisedError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import ca_certificates, revoked_certificates


@dataclass(frozen=True, slots=True)
class StoredCa:
    """A CA certificate (PEM) and, for the intermediate, its encrypted private key.

    `sealed_private_key` is wrapped under the key-encryption key `kek_id`. Older authorities have
    `encrypted_private_key` instead, which is PKCS#8 (PEM) under the passphrase, until the first
    rotation. The root has neither.
    """

    name: str
    certificate: str
    encrypted_private_key: str | None = field(default=None, repr=False)
    sealed_private_key: bytes | None = field(default=None, repr=False)
    kek_id: int | None = None

    def load(self) -> x509.Certificate:
        """Return the parsed certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked device certificate. `certificate_serial` is in lower-case hex.

    `revocation_reason` is a key of `pki.crl.REASONS`, or `pki.crl.HOLD`. `invalid_since` is the
    time since when the key may be in other hands, or None.
    """

    certificate_serial: str
    device_serial: str
    revoked_at: datetime
    revocation_reason: str
    invalid_since: datetime | None = None


_CA_COLUMNS = [ca_certificates.c[each.name] for each in fields(StoredCa)]
REVOKED = [revoked_certificates.c[each.name] for each in fields(Revocation)]
"""The columns of a revocation, in the order of its fields."""


def add_ca(transaction: Connection, ca: StoredCa, now: datetime) -> None:
    """Store a CA certificate. Names are unique: `root` and `intermediate`."""
    transaction.execute(insert(ca_certificates).values(**asdict(ca), created_at=now))


def find_ca(connection: Connection, name: str) -> StoredCa | None:
    """Return the CA of this name, `root` or `intermediate`, or None."""
    query = select(*_CA_COLUMNS).where(ca_certificates.c.name == name)
    row = connection.execute(query).one_or_none()
    return None if row is None else StoredCa(*row)


def find_root_and_intermediate(connection: Connection) -> tuple[StoredCa, StoredCa]:
    """Return both CAs. Raises NotInitialisedError if one is missing."""
    root, intermediate = find_ca(connection, "root"), find_ca(connection, "intermediate")
    if root is None or intermediate is None:
        raise NotInitialisedError
    return root, intermediate


def load_certificates(database: Database) -> tuple[StoredCa, StoredCa]:
    """Return the root and the intermediate CA. Raises NotInitialisedError if one is missing."""
    with database.read() as connection:
        return find_root_and_intermediate(connection)


def ceremony_time(connection: Connection) -> datetime | None:
    """Return when the intermediate, which signs all device certificates, was created; or None."""
    return connection.execute(
        select(ca_certificates.c.created_at).where(ca_certificates.c.name == "intermediate")
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


def forget_revocations(transaction: Connection, before: datetime) -> None:
    """Delete the revocations from before a time. Call it in a sandbox only."""
    revoked = revoked_certificates
    transaction.execute(delete(revoked).where(revoked.c.revoked_at < before))


def list_revocations(connection: Connection) -> list[Revocation]:
    """Return all revoked certificates, the oldest revocation first."""
    table = revoked_certificates.c
    query = select(*REVOKED).order_by(table.revoked_at, table.certificate_serial)
    return [Revocation(*row) for row in connection.execute(query)]


def find_revocation(connection: Connection, certificate_serial: str) -> Revocation | None:
    """Return the revocation of a certificate, or None if it is not revoked."""
    found = revoked_certificates.c.certificate_serial == certificate_serial
    row = connection.execute(select(*REVOKED).where(found)).one_or_none()
    return None if row is None else Revocation(*row)


def count_revocations(connection: Connection) -> int:
    """Return how many certificates were revoked."""
    return connection.execute(select(func.count()).select_from(revoked_certificates)).scalar_one()
