"""Chains of the audit log and of the acts, checkpoints, and the key that signs them.

`authority.initialisation.record_migration` chains the rows that there are, in the same transaction.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("validation_history", sa.Column("time_and_ip_commitment", sa.LargeBinary))
    op.create_table(
        "audit_batches",
        sa.Column("writer", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("hour", UtcDateTime, nullable=False),
        sa.Column("first_id", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("salt", sa.LargeBinary),
        sa.Column("leaves", sa.LargeBinary),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("made_at", UtcDateTime, nullable=False),
        sa.Column("lists_all", sa.Boolean, nullable=False),
        sa.Column("pruned_before", UtcDateTime),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "audit_keys",
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("wrapped_private_key", sa.LargeBinary, nullable=False),
        sa.Column(
            "kek_id", sa.Integer, sa.ForeignKey("key_encryption_keys.kek_id"), nullable=False
        ),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "audit_batches_hour_idx",
            "audit_batches",
            ["hour"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        )
        # Hashes cannot be compressed: PostgreSQL must not try.
        op.execute("ALTER TABLE audit_batches ALTER COLUMN leaves SET STORAGE EXTERNAL")
        # One value of the sequence reserves so many consecutive ids for a writer.
        op.execute("ALTER SEQUENCE validation_history_id_seq INCREMENT BY 100000")
