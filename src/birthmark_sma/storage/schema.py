"""The tables. Names are those that operators' queries rely on.

Secrets lie here only wrapped: master keys under the key-encryption key, a NUC hash only as HMAC.
The history has no foreign keys and few indexes, as each would cost every validation.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeDecorator, TypeEngine

HEAD_REVISION = "0007"
"""The Alembic revision that this program reads and writes."""


def as_sqlite_text(value: datetime) -> str:
    """Write a time with a zone as SQLite gets it."""
    return value.astimezone(UTC).isoformat(" ", "microseconds")


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone. SQLite, which has no such type, gets ISO 8601 text with `+00:00`.

    Both its order as text and SQLite's own date functions are right on that form.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(32))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not reach the database")
        return as_sqlite_text(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(value)
        zoned: datetime = value
        return zoned.astimezone(UTC)


_BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by INTEGER only
_TableIds = ARRAY(Integer).with_variant(JSON, "sqlite")

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
    }
)

authority = Table(
    "authority",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("tables", Integer, nullable=False),
    Column("keys_per_table", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("access_generation", BigInteger, nullable=False, server_default="0"),
    Column("sandbox", Boolean, nullable=False, server_default=false()),
)
"""One row: the authority that this database holds. `access_generation` goes up with every change to
access keys, so that servers see at a glance whether there was one. `sandbox` says what it was
founded as, and is never changed."""

access_keys = Table(
    "access_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column(
        "scope",
        String(16),
        CheckConstraint("scope IN ('provision', 'validate', 'admin')", name="scope"),
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
    # What authority.access_generation became with the last change of this key.
    Column("generation", BigInteger, nullable=False),
)
"""Who may call: a bearer secret, of which only the digest is here, or a client certificate. NULL
means no limit; of `disclosure` and `rate_limit`, that the server's own settings count."""

dashboard_sessions = Table(
    "dashboard_sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("secret_digest", LargeBinary, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""Browsers that are signed in to the dashboard: SHA-256 of what their cookie holds, the access key,
and by which secret of it they came, so that the session ends where that secret does."""

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
"""Where each key-encryption key comes from, and one value wrapped under it that proves it."""

ca_certificates = Table(
    "ca_certificates",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("certificate", Text, nullable=False),
    Column("encrypted_private_key", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("sealed_private_key", LargeBinary),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id)),
)
"""`root` and `intermediate`, PEM. The root's private key is never here."""

key_tables = Table(
    "key_tables",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("master_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

key_table_figures = Table(
    "key_table_figures",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("devices", BigInteger, nullable=False, server_default="0"),
    Column("passes", BigInteger, nullable=False, server_default="0"),
    Column("fails", BigInteger, nullable=False, server_default="0"),
)
"""How many devices each key table was assigned to, and how many camera tokens named it."""

key_table_counting = Table(
    "key_table_counting",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("counted_until", UtcDateTime),
    Column("devices_at", UtcDateTime),
    Column("devices_seconds", Float),
)
"""One row: how far `key_table_figures` have got. Tokens are counted a stretch of time after
another; devices all at once, which took `devices_seconds`."""

registered_devices = Table(
    "registered_devices",
    metadata,
    Column("device_serial", String(64), primary_key=True),
    Column("nuc_hash", LargeBinary, nullable=False, unique=True),
    Column("table_assignments", _TableIds, nullable=False),
    Column("device_certificate", Text, nullable=False),
    Column("certificate_serial", String(40), nullable=False, unique=True),
    Column("device_public_key", Text, nullable=False),
    Column("public_key_fingerprint", LargeBinary, nullable=False, unique=True),
    Column("device_family", String(50), nullable=False),
    Column("app_version", String(50)),
    Column(
        "status",
        String(16),
        CheckConstraint("status IN ('active', 'suspended', 'revoked')", name="status"),
        nullable=False,
    ),
    Column("provisioning_id", String(64), nullable=False, unique=True),
    Column("provisioned_at", UtcDateTime, nullable=False),
    # In the order of bytes, by which alone a beginning is a range, as on SQLite.
    Column("serial_folded", Text().with_variant(Text(collation="C"), "postgresql")),
)
"""`serial_folded` is what the serial is equal to (`pki.names.fold`). Only rows that operators'
own SQL inserted have none."""
Index("registered_devices_serial_folded_key", registered_devices.c.serial_folded, unique=True)
Index("registered_devices_provisioned_at_idx", registered_devices.c.provisioned_at)

Index(
    "registered_devices_family_idx",
    registered_devices.c.device_family,
    registered_devices.c.device_serial,
)
OUT_OF_ORDER = registered_devices.c.status != text("'active'")
"""Of few devices; they alone are in the index of what is suspended or revoked."""
Index(
    "registered_devices_status_idx",
    registered_devices.c.status,
    registered_devices.c.device_serial,
    postgresql_where=OUT_OF_ORDER,
    sqlite_where=OUT_OF_ORDER,
)
revoked_certificates = Table(
    "revoked_certificates",
    metadata,
    Column("certificate_serial", String(40), primary_key=True),
    Column("device_serial", String(64), nullable=False),
    Column("revoked_at", UtcDateTime, nullable=False),
    Column("revocation_reason", String(32), nullable=False),
    Column("certificate_expires_at", UtcDateTime),
    Column("last_crl_number", BigInteger),
)
"""`certificate_expires_at` is NULL where the register does not know the certificate, or until the
next list is made; `last_crl_number` is NULL while the certificate is on every list."""

published_crls = Table(
    "published_crls",
    metadata,
    Column("issuer", String(16), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("follows", BigInteger, nullable=False),
    Column("this_update", UtcDateTime, nullable=False),
    Column("next_update", UtcDateTime, nullable=False),
    Column("revocations", BigInteger, nullable=False),
    Column("newest_revocation", UtcDateTime),
    Column("der", LargeBinary, nullable=False),
    UniqueConstraint("issuer", "follows"),
)
"""The newest revocation lists of each issuer (a name of `ca_certificates`), as they are served.
`follows` is the number of the list before, 0 for the first: two lists never follow the same one.
`revocations` and `newest_revocation` say what there was to list, to see whether that changed."""

validation_history = Table(
    "validation_history",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("encrypted_nuc_hash", LargeBinary, nullable=False),
    Column("table_id", Integer, nullable=False),
    Column("key_index", Integer, nullable=False),
    Column("validation_result", String(4), nullable=False),
    Column("reason", String(24), nullable=False),
    Column("device_serial", String(64)),
    Column("validated_at", UtcDateTime, nullable=False),
    Column("request_ip", String(45)),
    Column("caller", String(16)),
    Column("repeat", String(16)),
)
"""The audit trail. It leaves the nonce out, so that a stolen copy holds no token to replay.

On PostgreSQL it is partitioned by `validated_at`, a partition a UTC day (`storage.partitions`), and
has no primary key there: nobody looks an `id` up, and its index would cost every validation.
"""
Index("validation_history_validated_at_idx", validation_history.c.validated_at)

validation_counters = Table(
    "validation_counters",
    metadata,
    Column("minute", UtcDateTime, primary_key=True),
    Column("reason", String(24), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""How often each reason was given in each minute. `writer` is a random number that each process
draws for itself, so that no two of them wait for one row; it says nothing else."""

device_activity = Table(
    "device_activity",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
    Column("passes", BigInteger, nullable=False),
    Column("pictures", BigInteger, nullable=False, server_default="0"),
    postgresql_with={"fillfactor": 70},  # room to count up in place, without touching the index
)
"""How many PASS verdicts each device had on each day (UTC). Of these `pictures` counts the first
ones of their tokens from callers that showed a credential: no stranger can drive it up."""

busiest_devices = Table(
    "busiest_devices",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
)
"""The few devices of each day whose activity is worth looking at: see `storage.activity`."""

device_flags = Table(
    "device_flags",
    metadata,
    Column("device_serial", String(64), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("pictures", BigInteger, nullable=False),
    Column("usual", Float, nullable=False),
    Column("days_compared", Integer, nullable=False),
    Column("threshold", BigInteger, nullable=False),
    Column("flagged_at", UtcDateTime, nullable=False),
    Column("reviewed_at", UtcDateTime),
)
"""Devices far above their usual rate, with the counts that say so."""

sighted_tokens = Table(
    "sighted_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("first_caller", String(64), nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("passed_under", SmallInteger, nullable=False, server_default="0"),
)
"""The replay ledger: every camera token that was judged, as a digest, and who brought it first.

`passed_under` is the number of the key derivation under which the token passed (`storage.ledger`),
0 where it did not. It stands in the row of the normative digest, whichever derivation it was.

What is old is found without an index that every token would pay for: on PostgreSQL by a summary of
each range of pages, on SQLite by the order in which rows were written.
"""
Index(
    "sighted_tokens_first_seen_at_idx",
    sighted_tokens.c.first_seen_at,
    postgresql_using="brin",
    postgresql_with={"autosummarize": "on"},
).ddl_if(dialect="postgresql")

resubmitted_tokens = Table(
    "resubmitted_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("caller", String(64), primary_key=True),
    Column("times", Integer, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
)
"""Tokens that came again, from whom, and how often after their first sight."""

lost_answers = Table(
    "lost_answers",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("caller", String(64), primary_key=True),
)
"""Tokens of the ledger whose verdict did not reach this caller, who may have it once more."""

repeat_counters = Table(
    "repeat_counters",
    metadata,
    Column("minute", UtcDateTime, primary_key=True),
    Column("repeat", String(16), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""How many tokens of each minute had come before, by kind of repeat; as `validation_counters`."""

running_totals = Table(
    "running_totals",
    metadata,
    Column("counted", String(8), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""How often each reason (`counted` is `verdict`) and each kind of repeat (`repeat`) was ever given.
Not even retention takes away from it, so that whoever watches sees counts that only rise."""

device_family_counters = Table(
    "device_family_counters",
    metadata,
    Column("device_family", String(50), primary_key=True),
    Column("devices", BigInteger, nullable=False),
)
"""How many devices each family has."""

idempotent_responses = Table(
    "idempotent_responses",
    metadata,
    Column("idempotency_key", LargeBinary, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("sealed_response", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""First answers, kept for a day. Key and request only as digests, the answer only sealed."""
Index("idempotent_responses_created_at_idx", idempotent_responses.c.created_at)
