"""The tables of access: keys of callers, and sessions of the dashboard."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    false,
)

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.base import metadata

access_keys = Table(
    "access_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column(
        "scope",
        String(16),
        CheckConstraint(
            "scope IN ('provision', 'validate', 'monitor', 'read', 'operate', 'admin')",
            name="scope",
        ),
        nullable=False,
    ),
    Column("secret_digest", LargeBinary),
    Column("previous_digest", LargeBinary),
    Column("previous_until", UtcDateTime),
    Column("certificate_fingerprint", LargeBinary),
    Column("certificate_issuer", Text),
    Column("certificate_issuer_der", LargeBinary),
    Column("device_family", String(50)),
    Column("uses_allowed", Integer),
    Column("uses", Integer, nullable=False, server_default="0"),
    Column("disclosure", String(8)),
    Column("rate_limit", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    # The value of authority.access_generation after the last change of this key.
    Column("generation", BigInteger, nullable=False),
    Column("may_re_enrol", Boolean, nullable=False, server_default=false()),
)
"""Access keys of callers: a bearer secret, stored as a digest, or a client certificate. NULL means
no limit, and for `disclosure` and `rate_limit` that the server's settings apply."""

dashboard_sessions = Table(
    "dashboard_sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("secret_digest", LargeBinary, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""Browser sessions of the dashboard. `digest` is SHA-256 of the cookie's value. `secret_digest` is
the digest of the access key's secret used to sign in: the session ends when that secret ends."""
