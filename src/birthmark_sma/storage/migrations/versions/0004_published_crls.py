"""Revocation lists are stored as they are served, and entries leave them when they may.

Columns are only added, all of them empty, so this takes no time however long the list.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("revoked_certificates", sa.Column("certificate_expires_at", UtcDateTime))
    op.add_column("revoked_certificates", sa.Column("last_crl_number", sa.BigInteger))
    op.create_table(
        "published_crls",
        sa.Column("issuer", sa.String(16), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("follows", sa.BigInteger, nullable=False),
        sa.Column("this_update", UtcDateTime, nullable=False),
        sa.Column("next_update", UtcDateTime, nullable=False),
        sa.Column("revocations", sa.BigInteger, nullable=False),
        sa.Column("newest_revocation", UtcDateTime),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("issuer", "follows", name=op.f("published_crls_issuer_key")),
    )
