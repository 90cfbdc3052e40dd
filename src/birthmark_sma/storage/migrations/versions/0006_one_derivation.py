"""The replay ledger says under which key derivation a camera token passed.

A column with a constant default: no row is rewritten. Tokens that passed before count as if they
had not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "sighted_tokens",
        sa.Column("passed_under", sa.SmallInteger, nullable=False, server_default="0"),
    )
