"""SQL for published CRLs and for the revocations that belong on the next one; a cache of CRLs.

Called by `crl_publication`, and by `web.api.pki.files`, which serves the CRLs of the cache. All
processes serve the same stored CRL, found by its number, and must never serve an older one than
another process has served before. CRLs form a chain: each has the number of the one before it
(`follows`), and a unique constraint refuses a second successor. The entries of a CRL are therefore
always read after all CRLs with lower numbers were stored, and it lacks none of their entries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from birthmark_sma.authority.ca.store import REVOKED, Revocation
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import insert_or_skip
from birthmark_sma.storage.schema.authority import authority
from birthmark_sma.storage.schema.certificates import published_crls, revoked_certificates

_KEPT = 3  # a process that has just read the newest number must still find its CRL
_CHUNK = 1_000  # entries that are read at a time


class RevocationState(NamedTuple):
    """The number of revoked certificates, the time of the newest revocation, and a generation.

    A CRL is due as soon as this differs from the state that the newest CRL was made of. Number and
    time notice rows that operators add with their own SQL. The generation rises with every act
    (`raise_generation`): a suspension that ends while another one begins changes neither.
    """

    revocations: int
    newest: datetime | None
    generation: int


@dataclass(frozen=True, slots=True)
class CrlHead:
    """The number, the times and the state of a stored CRL, without its DER."""

    number: int
    this_update: datetime
    next_update: datetime
    state: RevocationState


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """A stored CRL. `follows` is the number of the CRL before it, 0 for the first."""

    issuer: str
    follows: int
    head: CrlHead
    der: bytes = field(repr=False)


def read_state(connection: Connection, issuer: str) -> RevocationState:
    """Return the number of an issuer's revocations, the time of the newest, and the generation.

    The generation is that of all issuers.
    """
    table = revoked_certificates.c
    generation = select(func.coalesce(func.max(authority.c.revocation_generation), 0))
    query = select(func.count(), func.max(table.revoked_at), generation.scalar_subquery()).where(
        table.certificate_issuer == issuer
    )
    return RevocationState(*connection.execute(query).one())


def raise_generation(transaction: Connection) -> None:
    """Make a CRL due. Call it last in a transaction: other acts wait for its row from here on."""
    generation = authority.c.revocation_generation
    transaction.execute(update(authority).values(revocation_generation=generation + 1))


def find_newest_number(connection: Connection, issuer: str) -> int | None:
    """Return the number of an issuer's newest CRL, or None if it has none."""
    query = select(func.max(published_crls.c.number)).where(published_crls.c.issuer == issuer)
    number: int | None = connection.execute(query).scalar_one()
    return number


def find_newest_head(connection: Connection, issuer: str) -> CrlHead | None:
    """Return the head of an issuer's newest CRL, or None if it has none."""
    table = published_crls.c
    head = table.number, table.this_update, table.next_update
    row = connection.execute(
        select(*head, table.revocations, table.newest_revocation, table.revocation_generation)
        .where(table.issuer == issuer)
        .order_by(table.number.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else CrlHead(*row[:3], RevocationState(*row[3:]))


def find_der(connection: Connection, issuer: str, number: int) -> bytes | None:
    """Return the DER of a CRL, or None if it was deleted or never stored."""
    table = published_crls.c
    query = select(table.der).where(table.issuer == issuer, table.number == number)
    return connection.execute(query).scalar_one_or_none()


def add_crl(transaction: Connection, crl: PublishedCrl) -> bool:
    """Store a CRL and delete all but the newest 3 of its issuer. Return True if it was stored.

    Return False, with nothing changed, if another CRL follows the same one. Then this CRL must not
    be served.
    """
    # On PostgreSQL a concurrent transaction is not visible here: then the unique constraint on
    # (issuer, follows) skips the insert below.
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
            revocation_generation=crl.head.state.generation,
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
    connection: Connection, issuer: str, this_update: datetime
) -> Iterator[Sequence[tuple[Revocation, datetime | None]]]:
    """Yield the revocations for an issuer's next CRL, the oldest first, up to 1,000 at a time.

    Each comes with the expiry of its certificate, or None if that is unknown. A certificate that
    has not expired is always included, even if it left the CRL before because of a wrong clock.
    """
    table = revoked_certificates.c
    rows = connection.execute(
        select(*REVOKED, table.certificate_expires_at)
        .where(table.certificate_issuer == issuer)
        .where(or_(table.last_crl_number.is_(None), table.certificate_expires_at >= this_update))
        .order_by(table.revoked_at, table.certificate_serial)
    )
    for some in rows.partitions(_CHUNK):
        yield [(Revocation(*row[:-1]), row[-1]) for row in some]


def set_last_list(transaction: Connection, certificate_serials: Sequence[str], number: int) -> None:
    """Record that the CRL of this number is the last one to list these certificates."""
    if certificate_serials:
        transaction.execute(
            update(revoked_certificates)
            .where(revoked_certificates.c.certificate_serial == bindparam("serial"))
            .values(last_crl_number=number),
            [{"serial": each} for each in certificate_serials],
        )


class ServedCrl(NamedTuple):
    """A CRL as it is served: its CRL number and its DER."""

    number: int
    der: bytes


class ServedCrls:
    """Returns the newest CRL of each issuer, and caches its DER until a newer one is stored.

    Each call queries the newest number. If that were cached too, even for a second, this process
    would serve an older list after another process has served the newer one. Safe to use from any
    thread.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, ServedCrl] = {}

    def newest(self, issuer: str) -> ServedCrl | None:
        """Return the newest CRL of an issuer, or None if none is stored.

        Raises DatabaseUnavailableError.
        """
        kept = self._kept.get(issuer)
        with self._database.read() as connection:
            number = find_newest_number(connection, issuer)
            if kept is not None and kept.number == number:
                return kept
            der = None if number is None else find_der(connection, issuer, number)
        if number is None or der is None:
            return None
        found = self._kept[issuer] = ServedCrl(number, der)
        return found

    def last_known(self, issuer: str) -> ServedCrl | None:
        """Return the CRL that `newest` returned last, without a query, or None.

        Use it while the database is unavailable.
        """
        return self._kept.get(issuer)
