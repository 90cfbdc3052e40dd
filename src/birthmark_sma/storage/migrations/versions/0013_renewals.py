"""Renewals: the time of each device's renewal, exchanged certificates, renewal orders."""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import BigId, UtcDateTime

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("registered_devices", sa.Column("certificate_renewed_at", UtcDateTime))
    renewed = sa.text("certificate_renewed_at IS NOT NULL")
    op.create_index(
        "registered_devices_renewed_idx",
        "registered_devices",
        ["certificate_renewed_at"],
        postgresql_where=renewed,
        sqlite_where=renewed,
    )
    op.add_column("earlier_certificates", sa.Column("csr_sha256", sa.LargeBinary))
    op.add_column("earlier_certificates", sa.Column("exchanged_for", sa.String(40)))
    op.create_table(
        "renewal_orders",
        sa.Column("id", BigId, primary_key=True),
        sa.Column("opened_at", UtcDateTime, nullable=False),
        sa.Column("ends_at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("certificate_issuer", sa.String(16)),
        sa.Column("device_family", sa.String(50)),
        sa.Column("app_version", sa.String(50)),
        sa.Column("table_id", sa.Integer),
        sa.Column("matched", sa.BigInteger, nullable=False),
        sa.Column("cancelled_at", UtcDateTime),
    )
