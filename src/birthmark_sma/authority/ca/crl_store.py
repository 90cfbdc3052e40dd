"""Revocation lists as they are served, and what there is to list.

A list is read by its number, so every process serves the same one. Lists form a chain: each names
the number of the one before, and the database refuses a second successor. So a list with a higher
number was read after all lists with lower numbers were stored, and lacks none of their entries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.storage.dialects import insert_or_skip
from birthmark_sma.storage.schema import published_crls, registered_devices, revoked_certificates

INTERMEDIATE = "intermediate"
ROOT = "root"
"""The issuers, by their names in `ca_certificates`."""

_KEPT = 3  # whoever has just read the newest number still finds its list
_CHUNK = 1_000


class RevocationState(NamedTuple):
    """How many certificates were revoked, and the time of the newest revocation."""

    revocations: int
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class CrlHead:
    """A stored list without its content."""

    number: int
    this_update: datetime
    next_update: datetime
    state: RevocationState


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """A stored list. `follows` is the number of the one before, 0 for the first."""

    issuer: str
    follows: int
    head: CrlHead
    der: bytes = field(repr=False)


def read_state(connection: Connection) -> RevocationState:
    """Return what there is to list."""
    query = select(func.count(), func.max(revoked_certificates.c.revoked_at))
    return RevocationState(*connection.execute(query.select_from(revoked_certificates)).one())


def find_newest_number(connection: Connection, issuer: str) -> int | None:
    """Return the number of an issuer's newest list."""
    query = select(func.max(published_crls.c.number)).where(published_crls.c.issuer == issuer)
    number: int | None = connection.execute(query).scalar_one()
    return number


def find_newest_head(connection: Connection, issuer: str) -> CrlHead | None:
    """Return what an issuer's newest list says of itself."""
    table = published_crls.c
    row = connection.execute(
        select(
            table.number,
            table.this_update,
            table.next_update,
            table.revocations,
            table.newest_revocation,
        )
        .where(table.issuer == issuer)
        .order_by(table.number.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    number, this_update, next_update, *state = row
    return CrlHead(number, this_update, next_update, RevocationState(*state))


def find_der(connection: Connection, issuer: str, number: int) -> bytes | None:
    """Return a list as DER."""
    table = published_crls.c
    query = select(table.der).where(table.issuer == issuer, table.number == number)
    return connection.execute(query).scalar_one_or_none()


def add_crl(transaction: Connection, crl: PublishedCrl) -> bool:
    """Store a list, and forget all but the newest. False where another one follows the same list.

    Then nothing has changed, and this one must not be served.
    """
    if (find_newest_number(transaction, crl.issuer) or 0) != crl.follows:
        return False
    inserted = transaction.execute(
        insert_or_skip(transaction, published_crls).values(
            issuer=crl.issuer,
            number=crl.head.number,
            follows=crl.follows,
            this_update=crl.head.this_update,
            next_update=crl.head.next_update,
            revocations=crl.head.state.revocations,
            newest_revocation=crl.head.state.newest,
            der=crl.der,
        )
    ).rowcount
    if not inserted:
        return False
    table = published_crls.c
    newest = (
        select(table.number)
        .where(table.issuer == crl.issuer)
        .order_by(table.number.desc())
        .limit(_KEPT)
    )
    transaction.execute(
        delete(published_crls).where(table.issuer == crl.issuer, table.number.not_in(newest))
    )
    return True


# --- entries


def iterate_listed(
    connection: Connection, this_update: datetime
) -> Iterator[Sequence[tuple[Revocation, datetime | None]]]:
    """Yield what belongs on the next list, oldest first and some at a time.

    A certificate that has not expired belongs there, also if a clock that was wrong had it leave.
    Beside each revocation stands when its certificate expires; None where that is not known.
    """
    table = revoked_certificates.c
    rows = connection.execute(
        select(
            table.certificate_serial,
            table.device_serial,
            table.revoked_at,
            table.revocation_reason,
            table.certificate_expires_at,
        )
        .where(or_(table.last_crl_number.is_(None), table.certificate_expires_at >= this_update))
        .order_by(table.revoked_at, table.certificate_serial)
    )
    for some in rows.partitions(_CHUNK):
        yield [(Revocation(*row[:-1]), row[-1]) for row in some]


def set_last_list(transaction: Connection, certificate_serials: Sequence[str], number: int) -> None:
    """Let certificates be on no list after this one."""
    if certificate_serials:
        transaction.execute(
            update(revoked_certificates)
            .where(revoked_certificates.c.certificate_serial == bindparam("serial"))
            .values(last_crl_number=bindparam("number")),
            [{"serial": each, "number": number} for each in certificate_serials],
        )


def find_without_expiry(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """Return certificate serials whose expiry is not noted, with their certificates (PEM)."""
    revoked, devices = revoked_certificates.c, registered_devices.c
    rows = connection.execute(
        select(revoked.certificate_serial, devices.device_certificate)
        .join_from(
            revoked_certificates,
            registered_devices,
            revoked.certificate_serial == devices.certificate_serial,
        )
        .where(revoked.certificate_expires_at.is_(None))
        .limit(limit)
    )
    return [tuple(row) for row in rows]


def set_expiries(transaction: Connection, expiries: Sequence[tuple[str, datetime]]) -> None:
    """Note when revoked certificates expire."""
    if expiries:
        transaction.execute(
            update(revoked_certificates)
            .where(revoked_certificates.c.certificate_serial == bindparam("serial"))
            .values(certificate_expires_at=bindparam("expires")),
            [{"serial": serial, "expires": expires} for serial, expires in expiries],
        )
