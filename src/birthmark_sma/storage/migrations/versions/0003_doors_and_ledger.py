"""Access keys, a key-encryption key that can be changed, the replay ledger, flags and totals.

Columns are only added, all of them empty or zero, so this takes no time however long the history.
Only the register of devices gets indexes.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _create_access_keys()
    op.add_column(
        "authority", sa.Column("sandbox", sa.Boolean, nullable=False, server_default=sa.false())
    )
    _let_keys_be_changed()
    _create_ledger()
    _create_flags()
    _create_totals()
    _create_sessions()
    _count_key_tables()
    _let_devices_be_searched()


def _create_access_keys() -> None:
    op.add_column(
        "authority",
        sa.Column("access_generation", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "access_keys",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("secret_digest", sa.LargeBinary),
        sa.Column("previous_digest", sa.LargeBinary),
        sa.Column("previous_until", UtcDateTime),
        sa.Column("certificate_fingerprint", sa.LargeBinary),
        sa.Column("certificate_issuer", sa.Text),
        sa.Column("certificate_issuer_der", sa.LargeBinary),
        sa.Column("device_family", sa.String(50)),
        sa.Column("uses_allowed", sa.Integer),
        sa.Column("uses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("disclosure", sa.String(8)),
        sa.Column("rate_limit", sa.String(64)),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime),
        sa.Column("revoked_at", UtcDateTime),
        sa.Column("last_used_at", UtcDateTime),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "scope IN ('provision', 'validate', 'admin')", name=op.f("access_keys_scope_check")
        ),
    )


def _let_keys_be_changed() -> None:
    op.add_column("key_encryption_keys", sa.Column("wrapped_successor", sa.LargeBinary))
    op.add_column("key_encryption_keys", sa.Column("wrapped_predecessor", sa.LargeBinary))
    with op.batch_alter_table("ca_certificates") as batch:  # on SQLite a copy, of two rows
        batch.add_column(sa.Column("sealed_private_key", sa.LargeBinary))
        batch.add_column(sa.Column("kek_id", sa.Integer))
        batch.create_foreign_key(
            "ca_certificates_kek_id_fkey", "key_encryption_keys", ["kek_id"], ["kek_id"]
        )


def _create_ledger() -> None:
    op.add_column("validation_history", sa.Column("caller", sa.String(16)))
    op.add_column("validation_history", sa.Column("repeat", sa.String(16)))
    op.create_table(
        "sighted_tokens",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("first_caller", sa.String(64), nullable=False),
        sa.Column("first_seen_at", UtcDateTime, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index(
            "sighted_tokens_first_seen_at_idx",
            "sighted_tokens",
            ["first_seen_at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        )
    op.create_table(
        "resubmitted_tokens",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("last_seen_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "repeat_counters",
        sa.Column("minute", UtcDateTime, primary_key=True),
        sa.Column("repeat", sa.String(16), primary_key=True),
        sa.Column("writer", sa.SmallInteger, primary_key=True),
        sa.Column("times", sa.BigInteger, nullable=False),
    )


def _create_flags() -> None:
    op.add_column(
        "device_activity",
        sa.Column("pictures", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "device_flags",
        sa.Column("device_serial", sa.String(64), primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("pictures", sa.BigInteger, nullable=False),
        sa.Column("usual", sa.Float, nullable=False),
        sa.Column("days_compared", sa.Integer, nullable=False),
        sa.Column("threshold", sa.BigInteger, nullable=False),
        sa.Column("flagged_at", UtcDateTime, nullable=False),
        sa.Column("reviewed_at", UtcDateTime),
    )


def _create_totals() -> None:
    op.create_table(
        "running_totals",
        sa.Column("counted", sa.String(8), primary_key=True),
        sa.Column("name", sa.String(24), primary_key=True),
        sa.Column("writer", sa.SmallInteger, primary_key=True),
        sa.Column("times", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO running_totals (counted, name, writer, times)"
        " SELECT 'verdict', reason, 0, sum(times) FROM validation_counters GROUP BY reason"
    )


def _create_sessions() -> None:
    op.create_table(
        "dashboard_sessions",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("secret_digest", sa.LargeBinary, nullable=False),
        sa.Column("opened_at", UtcDateTime, nullable=False),
        sa.Column("seen_at", UtcDateTime, nullable=False),
    )


def _count_key_tables() -> None:
    op.create_table(
        "key_table_figures",
        sa.Column("table_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("devices", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("passes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("fails", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "key_table_counting",
        sa.Column("id", sa.SmallInteger, primary_key=True),
        sa.Column("counted_until", UtcDateTime),
        sa.Column("devices_at", UtcDateTime),
        sa.Column("devices_seconds", sa.Float),
        sa.CheckConstraint("id = 1", name=op.f("key_table_counting_single_check")),
    )


def _let_devices_be_searched() -> None:
    """On a register of a million devices this takes some seconds, in which none is provisioned."""
    out_of_order = sa.text("status != 'active'")
    op.create_index(
        "registered_devices_family_idx", "registered_devices", ["device_family", "device_serial"]
    )
    op.create_index(
        "registered_devices_status_idx",
        "registered_devices",
        ["status", "device_serial"],
        postgresql_where=out_of_order,
        sqlite_where=out_of_order,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index(
            "registered_devices_serial_idx",
            "registered_devices",
            ["device_serial"],
            postgresql_ops={"device_serial": "text_pattern_ops"},
        )
