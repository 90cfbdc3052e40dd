"""Which verdicts did not reach their callers."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "lost_answers",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("caller", sa.String(64), primary_key=True),
    )
