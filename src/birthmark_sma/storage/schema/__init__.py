"""The tables of the database, for SQLite and PostgreSQL: a module for each feature.

Stores and migrations use these tables, and operators' own queries rely on their names. A change
here needs a migration in `migrations/versions`. Secrets are stored only wrapped: master keys under
the key-encryption key (KEK), a NUC hash only as HMAC. The audit log (`validation_history`) has no
foreign keys and few indexes, because each would slow down every validation.

Importing any of the modules imports this package, so `metadata` always has every table.
"""

from birthmark_sma.storage.schema import (
    access,
    activity,
    acts,
    authority,
    certificates,
    devices,
    key_tables,
    validations,
)
from birthmark_sma.storage.schema.base import metadata

__all__ = [
    "HEAD_REVISION",
    "access",
    "activity",
    "acts",
    "authority",
    "certificates",
    "devices",
    "key_tables",
    "metadata",
    "validations",
]

HEAD_REVISION = "0017"
"""The Alembic revision that this program reads and writes."""
