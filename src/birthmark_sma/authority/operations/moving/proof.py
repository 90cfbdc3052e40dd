"""Prove that a moved authority is complete: the same rows in both databases, and usable secrets.

`move` calls it before the new database becomes an authority's. It reads every row of both, and
changes nothing.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Table, select

from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.operations.backup import Bar
from birthmark_sma.authority.operations.restore_proof import prove_usable
from birthmark_sma.config import Settings
from birthmark_sma.errors import MoveError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.schema import metadata

_ROWS_A_FETCH = 5_000
_DIGEST_BITS = 256


@dataclass(frozen=True, slots=True)
class TableProof:
    """The rows of a table, equal in both databases: their number, and their digest in hex."""

    table: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class MoveProof:
    """What was proved: tables, and the numbers of key tables and device certificates.

    `trail_findings` is the number of faults in the audit log and the acts. As the tables are equal,
    the old database has them, too.
    """

    tables: tuple[TableProof, ...]
    key_tables: int
    devices: int
    chains: int
    trail_findings: int

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return sum(each.rows for each in self.tables)


def prove_move(source: Connection, target: Database, settings: Settings, bar: Bar) -> MoveProof:
    """Compare all tables, open the secrets in the new database, and verify its trail.

    `settings` are those of the new database.

    Raises MoveError if a table differs, BackupError if a certificate is wrong, and the errors of
    opening the secrets.
    """
    tables = tuple(_compare_tables(source, target, bar))
    usable = prove_usable(target, settings, bar)
    verified = Verified()
    with target.read(LONG_SECONDS) as connection, bar("Verifying the trail", "steps"):
        findings = sum(1 for _ in verify(DatabaseReader(connection), None, (), verified))
    return MoveProof(tables, usable.key_tables, usable.devices, verified.chains, findings)


def _compare_tables(source: Connection, target: Database, bar: Bar) -> list[TableProof]:
    proofs = []
    tables = metadata.sorted_tables
    with bar("Comparing tables", "steps") as progress:
        for done, table in enumerate(tables):
            progress(done, len(tables))
            with source.begin():
                before = take_digest(source, table)
            with target.read(LONG_SECONDS) as connection:
                after = take_digest(connection, table)
            if before != after:
                raise MoveError(
                    f"The proof failed: {table.name} has {before.rows:,} rows with digest"
                    f" {before.digest[:16]} in SQLite, and {after.rows:,} with"
                    f" {after.digest[:16]} in PostgreSQL. Drop the new database, create it again,"
                    " and type the same command."
                )
            proofs.append(after)
        progress(len(tables), len(tables))
    return proofs


def take_digest(connection: Connection, table: Table) -> TableProof:
    """Return the number of rows and their digest, which is the same in each kind of database.

    The digest is the sum, modulo 2^256, of the SHA-256 of each row's values, as Python writes
    them. So it does not depend on the order of the rows, which differs by collation.
    """
    digest: Callable[[bytes], hashlib._Hash] = hashlib.sha256
    total = rows = 0
    streamed = connection.execution_options(yield_per=_ROWS_A_FETCH).execute(select(table))
    for row in streamed:
        total += int.from_bytes(digest(repr(tuple(row)).encode()).digest())
        rows += 1
    return TableProof(table.name, rows, f"{total % (1 << _DIGEST_BITS):064x}")
