"""The roles monitor, read and operate beside admin, as scopes of access keys.

Keys of scope admin keep it. SQLite copies the access keys, because it cannot change a constraint in
place.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

_SCOPE = "access_keys_scope_check"


def upgrade() -> None:
    with op.batch_alter_table("access_keys") as batch:
        batch.drop_constraint(op.f(_SCOPE), type_="check")
        batch.create_check_constraint(
            op.f(_SCOPE),
            "scope IN ('provision', 'validate', 'monitor', 'read', 'operate', 'admin')",
        )
