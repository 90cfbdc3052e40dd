"""Request ids, batch positions, token digests and waiting times in the audit log.

The columns of existing rows are NULL, which takes no time. PostgreSQL reads the audit log once for
the index of request ids (docs/adr/0018).
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_BLOOM = "text_bloom_ops(n_distinct_per_range=2500, false_positive_rate=0.01)"


def upgrade() -> None:
    for column in (
        sa.Column("request_id", sa.String(128)),
        sa.Column("batch_position", sa.SmallInteger),
        sa.Column("token_digest", sa.LargeBinary),
        sa.Column("waited_us", sa.Integer),
    ):
        op.add_column("validation_history", column)
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "validation_history_request_id_idx",
            "validation_history",
            ["request_id"],
            postgresql_using="brin",
            postgresql_ops={"request_id": _BLOOM},
            postgresql_with={"pages_per_range": 64, "autosummarize": "on"},
        )
