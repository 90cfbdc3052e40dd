"""The trail of administrative acts, and the subjects of acts that have several."""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import BigId, UtcDateTime

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "administrative_acts",
        sa.Column("id", BigId, primary_key=True),
        sa.Column("acted_at", UtcDateTime, nullable=False),
        sa.Column("act", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16)),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("subject_kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(64)),
        sa.Column("subjects", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("details", sa.Text, nullable=False),
    )
    for column in ("act", "actor", "subject"):
        op.create_index(f"administrative_acts_{column}_idx", "administrative_acts", [column, "id"])
    op.create_index("administrative_acts_acted_at_idx", "administrative_acts", ["acted_at"])
    op.create_table(
        "act_subjects",
        sa.Column("act_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
    )
    op.create_index("act_subjects_subject_idx", "act_subjects", ["subject", "act_id"])
