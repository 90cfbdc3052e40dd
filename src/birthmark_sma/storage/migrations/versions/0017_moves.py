"""An authority can be moved to another database: where to, since when, and when it arrived."""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("authority", sa.Column("moving_to", sa.Text))
    op.add_column("authority", sa.Column("moving_since", UtcDateTime))
    op.add_column("authority", sa.Column("moved_at", UtcDateTime))
