"""The tables of the authority itself: its row, its key-encryption keys and its CA certificates."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    text,
)

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.base import metadata

authority = Table(
    "authority",
    metadata,
    # The check allows one row only.
    Column("id", SmallInteger, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("tables", Integer, nullable=False),
    Column("keys_per_table", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("access_generation", BigInteger, nullable=False, server_default="0"),
    Column("sandbox", Boolean, nullable=False, server_default=false()),
    Column("revocation_generation", BigInteger, nullable=False, server_default="0"),
    Column("ca_generation", BigInteger, nullable=False, server_default="0"),
    Column("roots_signature", LargeBinary),
    Column("table_generation", BigInteger, nullable=False, server_default="0"),
    Column("moving_to", Text),
    Column("moving_since", UtcDateTime),
    Column("moved_at", UtcDateTime),
)
"""One row: the authority of this database. `access_generation` rises with each change of an access
key, `ca_generation` with each change of a CA certificate, and `table_generation` with each change
of a table's keys, so that servers know when what they cache is stale. `sandbox` never changes.
`revocation_generation` rises with each act that changes devices' statuses, so that a new revocation
list is made also if the number of revoked certificates stays the same. `roots_signature` is the
detached signature (CMS) of the previous root over the list of trusted roots; NULL until the first
one is made. `moving_to` describes the database to which `sma move` takes this authority; NULL if it
lives here. `moving_since` is the start of that move, and identifies it: it stays in the new
database. `moved_at` is the end of the move, in the old database alone."""

key_encryption_keys = Table(
    "key_encryption_keys",
    metadata,
    Column("kek_id", Integer, primary_key=True, autoincrement=False),
    Column("source", String(16), nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("wrapped_nuc_hash_key", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("wrapped_successor", LargeBinary),
    Column("wrapped_predecessor", LargeBinary),
)
"""The key-encryption keys (KEKs) in use: where each comes from, and one value wrapped under it that
verifies it. There are several only during a rotation; then each row also holds its neighbour's
key, wrapped, so that servers with the old secret can follow."""

ca_certificates = Table(
    "ca_certificates",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("certificate", Text, nullable=False),
    Column("encrypted_private_key", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("sealed_private_key", LargeBinary),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id)),
    Column(
        "role",
        String(16),
        CheckConstraint("role IN ('root', 'intermediate', 'cross')", name="role"),
        nullable=False,
        server_default="intermediate",
    ),
    Column(
        "state",
        String(16),
        CheckConstraint(
            "state IN ('prepared', 'active', 'retiring', 'retired', 'compromised')", name="state"
        ),
        nullable=False,
        server_default="active",
    ),
    Column("issuer", String(16), nullable=False, server_default="root"),
    Column("state_changed_at", UtcDateTime),
    Column("invalid_since", UtcDateTime),
)
"""The CA certificates, as PEM: `root` and `intermediate` are the first ones, then `root-2`,
`intermediate-2` and so on. A cross-certificate certifies the key of one root under another.
`issuer` is the name of the root that signed the certificate. Private keys of roots are never
stored. `state_changed_at` is NULL until the state changes for the first time. `invalid_since` is
the time since when the key of a compromised intermediate may be in other hands, if that is
known."""

ONE_ACTIVE = text("state = 'active' AND role <> 'cross'")
"""The condition of the unique index of active CAs: one root and one intermediate."""
Index(
    "ca_certificates_active_key",
    ca_certificates.c.role,
    unique=True,
    postgresql_where=ONE_ACTIVE,
    sqlite_where=ONE_ACTIVE,
)
