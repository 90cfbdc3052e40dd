"""Key tables can be rotated: the epoch of each table, and the key before while it is accepted.

All columns have constant defaults or are NULL: no row is rewritten. A device whose `table_epochs`
is NULL has the first keys of its tables.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import TableIds, UtcDateTime

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column(
        "authority",
        sa.Column("table_generation", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.add_column("key_tables", sa.Column("epoch", sa.Integer, nullable=False, server_default="0"))
    op.add_column("registered_devices", sa.Column("table_epochs", TableIds))
    op.create_table(
        "earlier_table_keys",
        sa.Column("table_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("master_key", sa.LargeBinary, nullable=False),
        sa.Column(
            "kek_id",
            sa.Integer,
            sa.ForeignKey("key_encryption_keys.kek_id"),
            nullable=False,
        ),
        sa.Column("rotated_at", UtcDateTime, nullable=False),
        sa.Column("accepted_until", UtcDateTime, nullable=False),
    )
