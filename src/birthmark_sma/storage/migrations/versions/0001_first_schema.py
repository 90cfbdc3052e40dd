"""The first schema: the authority, its certificates and tables, devices and the audit trail."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "authority",
        sa.Column("id", sa.SmallInteger, primary_key=True),
        sa.Column("tables", sa.Integer, nullable=False),
        sa.Column("keys_per_table", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("authority_single_check")),
    )
    op.create_table(
        "key_encryption_keys",
        sa.Column("kek_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("wrapped_nuc_hash_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "ca_certificates",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("encrypted_private_key", sa.Text),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "key_tables",
        sa.Column("table_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("master_key", sa.LargeBinary, nullable=False),
        sa.Column(
            "kek_id", sa.Integer, sa.ForeignKey("key_encryption_keys.kek_id"), nullable=False
        ),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    _create_devices()
    _create_trails()


def _create_devices() -> None:
    op.create_table(
        "registered_devices",
        sa.Column("device_serial", sa.String(64), primary_key=True),
        sa.Column("nuc_hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column(
            "table_assignments", ARRAY(sa.Integer).with_variant(sa.JSON, "sqlite"), nullable=False
        ),
        sa.Column("device_certificate", sa.Text, nullable=False),
        sa.Column("certificate_serial", sa.String(40), nullable=False, unique=True),
        sa.Column("device_public_key", sa.Text, nullable=False),
        sa.Column("public_key_fingerprint", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("device_family", sa.String(50), nullable=False),
        sa.Column("app_version", sa.String(50)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("provisioning_id", sa.String(64), nullable=False, unique=True),
        sa.Column("provisioned_at", UtcDateTime, nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'suspended', 'revoked')",
            name=op.f("registered_devices_status_check"),
        ),
    )
    op.create_index(
        "registered_devices_provisioned_at_idx", "registered_devices", ["provisioned_at"]
    )
    op.create_table(
        "revoked_certificates",
        sa.Column("certificate_serial", sa.String(40), primary_key=True),
        sa.Column("device_serial", sa.String(64), nullable=False),
        sa.Column("revoked_at", UtcDateTime, nullable=False),
        sa.Column("revocation_reason", sa.String(32), nullable=False),
    )


def _create_trails() -> None:
    op.create_table(
        "validation_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("encrypted_nuc_hash", sa.LargeBinary, nullable=False),
        sa.Column("table_id", sa.Integer, nullable=False),
        sa.Column("key_index", sa.Integer, nullable=False),
        sa.Column("validation_result", sa.String(4), nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("device_serial", sa.String(64)),
        sa.Column("validated_at", UtcDateTime, nullable=False),
        sa.Column("request_ip", sa.String(45)),
    )
    op.create_index("validation_history_validated_at_idx", "validation_history", ["validated_at"])
    op.create_table(
        "idempotent_responses",
        sa.Column("idempotency_key", sa.LargeBinary, primary_key=True),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("sealed_response", sa.LargeBinary, nullable=False),
        sa.Column(
            "kek_id", sa.Integer, sa.ForeignKey("key_encryption_keys.kek_id"), nullable=False
        ),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_index("idempotent_responses_created_at_idx", "idempotent_responses", ["created_at"])
