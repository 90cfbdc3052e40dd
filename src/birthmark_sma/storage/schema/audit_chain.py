"""The tables of tamper evidence: batches of audit rows and acts, checkpoints, and their key."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.authority import key_encryption_keys
from birthmark_sma.storage.schema.base import metadata

audit_batches = Table(
    "audit_batches",
    metadata,
    Column("writer", String(32), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("hour", UtcDateTime, nullable=False),
    Column("first_id", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("salt", LargeBinary),
    Column("leaves", LargeBinary),
)
"""The chains of the audit log and of the acts (docs/adr/0019): a row for each commit, written by
that commit. `writer` names the chain: the random name of a validation writer as in
`writer_commits`, or `acts`, `earlier` and `earlier-acts`."""
Index(
    "audit_batches_hour_idx",
    audit_batches.c.hour,
    postgresql_using="brin",
    postgresql_with={"autosummarize": "on"},
).ddl_if(dialect="postgresql")

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("made_at", UtcDateTime, nullable=False),
    Column("lists_all", Boolean, nullable=False),
    Column("pruned_before", UtcDateTime),
    Column("coarse_before", UtcDateTime),
    Column("note", Text, nullable=False),
)
"""The checkpoints: signed notes with the heads of the chains. `lists_all` is true if the note has
all chains, and not only those that grew. `pruned_before` is set if it permits retention to delete
what is older, and `coarse_before` if it permits older rows to lose their exact time and address."""

audit_keys = Table(
    "audit_keys",
    metadata,
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("wrapped_private_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""The Ed25519 key that signs checkpoints. There is one row."""
