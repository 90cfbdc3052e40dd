"""Revocations past the product's own code, also of certificates that the register does not know."""

from dataclasses import asdict

from sqlalchemy import Connection, insert

from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.storage.schema.certificates import revoked_certificates


def add_revocation(transaction: Connection, revocation: Revocation) -> None:
    """Store a revoked certificate, as an operator's own SQL may do."""
    transaction.execute(insert(revoked_certificates).values(**asdict(revocation)))
