"""CA certificates, and the certificates that were revoked."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from birthmark_sma.storage.schema import ca_certificates, revoked_certificates


@dataclass(frozen=True, slots=True)
class StoredCa:
    """A CA certificate (PEM) and, for the intermediate, its encrypted PKCS#8 key (PEM)."""

    name: str
    certificate: str
    encrypted_private_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked device certificate; its serial number in lower-case hex."""

    certificate_serial: str
    device_serial: str
    revoked_at: datetime
    revocation_reason: str


def add_ca(transaction: Connection, ca: StoredCa, now: datetime) -> None:
    """Store a CA certificate. There is one of each name."""
    transaction.execute(
        insert(ca_certificates).values(
            name=ca.name,
            certificate=ca.certificate,
            encrypted_private_key=ca.encrypted_private_key,
            created_at=now,
        )
    )


def find_ca(connection: Connection, name: str) -> StoredCa | None:
    """Return the CA of this name, `root` or `intermediate`."""
    table = ca_certificates.c
    row = connection.execute(
        select(table.name, table.certificate, table.encrypted_private_key).where(table.name == name)
    ).one_or_none()
    return None if row is None else StoredCa(*row)


def add_revocation(transaction: Connection, revocation: Revocation) -> None:
    """Record a revoked certificate."""
    transaction.execute(
        insert(revoked_certificates).values(
            certificate_serial=revocation.certificate_serial,
            device_serial=revocation.device_serial,
            revoked_at=revocation.revoked_at,
            revocation_reason=revocation.revocation_reason,
        )
    )


def list_revocations(connection: Connection) -> list[Revocation]:
    """Return every revoked certificate, oldest first."""
    table = revoked_certificates.c
    rows = connection.execute(
        select(
            table.certificate_serial,
            table.device_serial,
            table.revoked_at,
            table.revocation_reason,
        ).order_by(table.revoked_at, table.certificate_serial)
    )
    return [Revocation(*row) for row in rows]


def count_revocations(connection: Connection) -> int:
    """Return how many certificates were revoked."""
    return connection.execute(select(func.count()).select_from(revoked_certificates)).scalar_one()
