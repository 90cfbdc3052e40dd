"""Several issuers: CA certificates get a role, a state and an issuer.

The root and the intermediate that exist are the active ones. The two indexes are made without
reading certificates: about two seconds for a million devices.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0011"
down_revision = "0010"

_ACTIVE = sa.text("state = 'active' AND role <> 'cross'")


def upgrade() -> None:
    with op.batch_alter_table("ca_certificates") as batch:
        batch.add_column(
            sa.Column("role", sa.String(16), nullable=False, server_default="intermediate")
        )
        batch.add_column(sa.Column("state", sa.String(16), nullable=False, server_default="active"))
        batch.add_column(sa.Column("issuer", sa.String(16), nullable=False, server_default="root"))
        batch.add_column(sa.Column("state_changed_at", UtcDateTime))
        batch.add_column(sa.Column("invalid_since", UtcDateTime))
        batch.create_check_constraint(
            op.f("ca_certificates_role_check"), "role IN ('root', 'intermediate', 'cross')"
        )
        batch.create_check_constraint(
            op.f("ca_certificates_state_check"),
            "state IN ('prepared', 'active', 'retiring', 'retired', 'compromised')",
        )
    op.execute(sa.text("UPDATE ca_certificates SET role = 'root' WHERE name = 'root'"))
    op.create_index(
        "ca_certificates_active_key",
        "ca_certificates",
        ["role"],
        unique=True,
        postgresql_where=_ACTIVE,
        sqlite_where=_ACTIVE,
    )
    op.add_column(
        "authority", sa.Column("ca_generation", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column("authority", sa.Column("roots_signature", sa.LargeBinary))
    op.create_index(
        "registered_devices_issuer_idx",
        "registered_devices",
        ["certificate_issuer", "device_serial"],
    )
    op.create_index(
        "revoked_certificates_issuer_idx",
        "revoked_certificates",
        ["certificate_issuer", "revoked_at"],
    )
