"""The number of the last committed transaction of each writer."""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "writer_commits",
        sa.Column("writer", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("committed_at", UtcDateTime, nullable=False),
    )
