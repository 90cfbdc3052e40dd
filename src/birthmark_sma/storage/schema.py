"""The tables of the database, for SQLite and PostgreSQL.

Stores and migrations use these tables, and operators' own queries rely on their names. A change
here needs a migration in `migrations/versions`. Secrets are stored only wrapped: master keys under
the key-encryption key (KEK), a NUC hash only as HMAC. The audit log (`validation_history`) has no
foreign keys and few indexes, because each would slow down every validation.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
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

from birthmark_sma.storage.portable_sql import BigId, TableIds, UtcDateTime

HEAD_REVISION = "0013"
"""The Alembic revision that this program reads and writes."""

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
)
"""One row: the authority of this database. `access_generation` rises with each change of an access
key, `ca_generation` with each change of a CA certificate, and `table_generation` with each change
of a table's keys, so that servers know when what they cache is stale. `sandbox` never changes.
`revocation_generation` rises with each act that changes devices' statuses, so that a new revocation
list is made also if the number of revoked certificates stays the same. `roots_signature` is the
detached signature (CMS) of the previous root over the list of trusted roots; NULL until the first
one is made."""

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

key_tables = Table(
    "key_tables",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("master_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
)
"""The key tables. `master_key` is wrapped under the KEK; all keys of a table derive from it.
`epoch` is the number of rotations before this master key."""

earlier_table_keys = Table(
    "earlier_table_keys",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("master_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("rotated_at", UtcDateTime, nullable=False),
    Column("accepted_until", UtcDateTime, nullable=False),
)
"""For each rotated table whose overlap is open: the master key of the epoch before, wrapped as in
`key_tables`. The primary key allows two live keys of a table, not three. A row is deleted when its
overlap has ended."""

key_table_figures = Table(
    "key_table_figures",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("devices", BigInteger, nullable=False, server_default="0"),
    Column("passes", BigInteger, nullable=False, server_default="0"),
    Column("fails", BigInteger, nullable=False, server_default="0"),
)
"""For each key table: the number of devices that use it, and the numbers of PASS and FAIL verdicts
on camera tokens that named it."""

key_table_counting = Table(
    "key_table_counting",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("counted_until", UtcDateTime),
    Column("devices_at", UtcDateTime),
    Column("devices_seconds", Float),
)
"""One row: the progress of counting `key_table_figures`. Audit rows up to `counted_until` are
counted, a stretch of time after another. Devices are counted all at once: `devices_at` is the start
of the last count, `devices_seconds` is how long it took."""

registered_devices = Table(
    "registered_devices",
    metadata,
    Column("device_serial", String(64), primary_key=True),
    Column("nuc_hash", LargeBinary, nullable=False, unique=True),
    Column("table_assignments", TableIds, nullable=False),
    Column("device_certificate", Text, nullable=False),
    Column("certificate_serial", String(40), nullable=False, unique=True),
    Column("device_public_key", Text, nullable=False),
    Column("public_key_fingerprint", LargeBinary, nullable=False, unique=True),
    Column("device_family", String(50), nullable=False),
    Column("app_version", String(50)),
    Column(
        "status",
        String(16),
        CheckConstraint("status IN ('active', 'suspended', 'revoked', 'retired')", name="status"),
        nullable=False,
    ),
    Column("provisioning_id", String(64), nullable=False, unique=True),
    Column("provisioned_at", UtcDateTime, nullable=False),
    # Collation C sorts by bytes, as SQLite does. Only then is a search by prefix a range of the
    # index.
    Column("serial_folded", Text().with_variant(Text(collation="C"), "postgresql")),
    Column("status_reason", String(32)),
    Column("status_actor", String(64)),
    Column("status_changed_at", UtcDateTime),
    Column("certificate_issuer", String(16), nullable=False, server_default="intermediate"),
    Column("certificate_expires_at", UtcDateTime),
    Column("table_epochs", TableIds),
    Column("certificate_renewed_at", UtcDateTime),
)
"""The provisioned devices. `nuc_hash` is an HMAC of the NUC hash. Two serials with one
`serial_folded` are the same name (`pki.names.fold`); it is NULL only in rows that operators
inserted with their own SQL, and so is `certificate_expires_at`. The reason, the actor and the time
of the status are NULL until it changes for the first time. `certificate_issuer` is a name in
`ca_certificates`. A re-enrolment replaces the NUC hash, the key, the certificate, the provisioning
id and `provisioned_at`. A renewal replaces the key and the certificate. `certificate_renewed_at` is
NULL if the certificate came from a provisioning. `table_epochs` is parallel to `table_assignments`:
the epoch of the key that the device has of each table. NULL means that all are 0."""
Index("registered_devices_serial_folded_key", registered_devices.c.serial_folded, unique=True)
Index("registered_devices_provisioned_at_idx", registered_devices.c.provisioned_at)
Index(
    "registered_devices_family_idx",
    registered_devices.c.device_family,
    registered_devices.c.device_serial,
)
# A search for devices of a family whose serials begin with a text.
Index(
    "registered_devices_family_folded_idx",
    registered_devices.c.device_family,
    registered_devices.c.serial_folded,
)
Index(
    "registered_devices_expiry_idx",
    registered_devices.c.certificate_expires_at,
    registered_devices.c.device_serial,
)
# The devices under an issuer: their number, and their list.
Index(
    "registered_devices_issuer_idx",
    registered_devices.c.certificate_issuer,
    registered_devices.c.device_serial,
)
OUT_OF_ORDER = registered_devices.c.status != text("'active'")
"""The condition of the partial index of the devices that are not active. Few devices meet it."""
Index(
    "registered_devices_status_idx",
    registered_devices.c.status,
    registered_devices.c.device_serial,
    postgresql_where=OUT_OF_ORDER,
    sqlite_where=OUT_OF_ORDER,
)
# Renewals since a time: of a day, of a renewal order. Most devices of a young fleet have none.
_RENEWED = registered_devices.c.certificate_renewed_at.is_not(None)
Index(
    "registered_devices_renewed_idx",
    registered_devices.c.certificate_renewed_at,
    postgresql_where=_RENEWED,
    sqlite_where=_RENEWED,
)
earlier_certificates = Table(
    "earlier_certificates",
    metadata,
    Column("certificate_serial", String(40), primary_key=True),
    Column("device_serial", String(64), nullable=False),
    Column("certificate_issuer", String(16), nullable=False),
    Column("public_key_fingerprint", LargeBinary, nullable=False),
    Column("not_before", UtcDateTime),
    Column("certificate_expires_at", UtcDateTime),
    Column("replaced_at", UtcDateTime, nullable=False),
    Column("replaced_by", String(64), nullable=False),
    Column("csr_sha256", LargeBinary),
    Column("exchanged_for", String(40)),
)
"""The certificates that devices had before the one in `registered_devices`. The key of an earlier
certificate is never certified for another device. `not_before` and `certificate_expires_at` are
NULL only if the certificate came from an operator's own SQL. `replaced_by` says who allowed the
replacement: an operator, `key` and the id of an access key, or `renewal`. If the device renewed by
presenting this certificate, `csr_sha256` is the SHA-256 of the CSR's DER, and `exchanged_for` the
serial number of the certificate that it got."""
Index("earlier_certificates_device_serial_idx", earlier_certificates.c.device_serial)
Index("earlier_certificates_public_key_idx", earlier_certificates.c.public_key_fingerprint)

re_enrolments = Table(
    "re_enrolments",
    metadata,
    Column("device_serial", String(64), primary_key=True),
    Column("allowed_until", UtcDateTime, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
)
"""The devices that may be provisioned once more under their serial, until a time. The row is
deleted by the re-enrolment that uses it."""

renewal_orders = Table(
    "renewal_orders",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("ends_at", UtcDateTime, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("certificate_issuer", String(16)),
    Column("device_family", String(50)),
    Column("app_version", String(50)),
    Column("table_id", Integer),
    Column("matched", BigInteger, nullable=False),
    Column("cancelled_at", UtcDateTime),
)
"""Orders to renew certificates early. An order names the active devices that meet every criterion
which is not NULL, as far as their certificates were issued before `opened_at`. `matched` is their
number at that time. The order is open while `cancelled_at` is NULL."""

revoked_certificates = Table(
    "revoked_certificates",
    metadata,
    Column("certificate_serial", String(40), primary_key=True),
    Column("device_serial", String(64), nullable=False),
    Column("revoked_at", UtcDateTime, nullable=False),
    Column("revocation_reason", String(32), nullable=False),
    Column("certificate_expires_at", UtcDateTime),
    Column("last_crl_number", BigInteger),
    Column("certificate_issuer", String(16), nullable=False, server_default="intermediate"),
    Column("invalid_since", UtcDateTime),
)
"""Revoked device certificates, those on hold included. `certificate_expires_at` is NULL if the
register does not know the certificate, which then stays listed. `last_crl_number` is NULL while the
certificate is on every new list. `certificate_issuer` is a name in `ca_certificates`.
`invalid_since` is the time since when the key may be in other hands; NULL if that is unknown."""
# The number of revocations of each issuer, and the time of the newest.
Index(
    "revoked_certificates_issuer_idx",
    revoked_certificates.c.certificate_issuer,
    revoked_certificates.c.revoked_at,
)

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
    Column("revocation_generation", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("issuer", "follows"),
)
"""The newest revocation lists (CRLs) of each issuer (a name in `ca_certificates`), as served.
`follows` is the number of the previous list, 0 for the first. Its UNIQUE constraint decides a race
of two processes that publish at once. `revocations`, `newest_revocation` and
`revocation_generation` describe the listed revocations, to detect whether a new list is needed."""

validation_history = Table(
    "validation_history",
    metadata,
    Column("id", BigId, primary_key=True),
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
"""The audit log. It does not store the nonce, so a stolen copy contains no token to replay.

On PostgreSQL it is partitioned by `validated_at`, one partition for each UTC day
(`storage.partitions`), and has no primary key: nothing looks up an `id`, and the index would slow
down every validation.
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
"""The number of verdicts by minute and reason. `writer` is a random number of each process: each
has rows of its own, so processes do not wait for each other's row locks. Readers add them up."""

device_activity = Table(
    "device_activity",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
    Column("passes", BigInteger, nullable=False),
    Column("pictures", BigInteger, nullable=False, server_default="0"),
    # Free space on each page lets PostgreSQL update a row in place, without an index write (HOT).
    postgresql_with={"fillfactor": 70},
)
"""The number of PASS verdicts of each device on each UTC day. `pictures` counts only the first PASS
of a token, from callers that showed a credential: a caller without one cannot raise it. Each
process adds its counts every 3 seconds: see `authority.validation.activity_counter`."""

busiest_devices = Table(
    "busiest_devices",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
)
"""The short list of the busiest devices of each day: see `authority.devices.activity`."""

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
"""Devices with far more pictures on a day than usual, and the counts on which the flag is based."""

sighted_tokens = Table(
    "sighted_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("first_caller", String(64), nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("passed_under", SmallInteger, nullable=False, server_default="0"),
)
"""The replay ledger (docs/adr/0009): a digest of each validated camera token, its first caller.

`passed_under` is the number of the key derivation under which the token passed
(`authority.validation.replay_ledger`), or 0 if it did not. It is in the row of the normative
digest, whichever derivation that was.

No B-tree index finds old rows, because each token would have to be added to it. PostgreSQL uses a
BRIN index (a summary of each range of pages), SQLite the order in which rows were written.
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
"""Tokens that were submitted again: by which caller, and how often after the first time."""

lost_answers = Table(
    "lost_answers",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("caller", String(64), primary_key=True),
)
"""Tokens whose verdict did not reach this caller. The caller may get the verdict once more."""

repeat_counters = Table(
    "repeat_counters",
    metadata,
    Column("minute", UtcDateTime, primary_key=True),
    Column("repeat", String(16), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""The number of repeated tokens by minute and kind. `writer` is as in `validation_counters`."""

writer_commits = Table(
    "writer_commits",
    metadata,
    Column("writer", String(32), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("committed_at", UtcDateTime, nullable=False),
)
"""The last committed transaction of each writer (`outages.commit_marks`). Empty on SQLite."""

running_totals = Table(
    "running_totals",
    metadata,
    Column("counted", String(8), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""The total number of each reason (`counted` is `verdict`) and of each kind of repeat (`counted` is
`repeat`). Retention does not reduce these totals, so monitoring sees counters that only rise."""

device_family_counters = Table(
    "device_family_counters",
    metadata,
    Column("device_family", String(50), primary_key=True),
    Column("devices", BigInteger, nullable=False),
)
"""The number of devices of each family."""

idempotent_responses = Table(
    "idempotent_responses",
    metadata,
    Column("idempotency_key", LargeBinary, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("sealed_response", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""Responses to provisioning requests with an Idempotency-Key, kept for 24 hours. The key and the
request are stored only as digests, the response only encrypted."""
Index("idempotent_responses_created_at_idx", idempotent_responses.c.created_at)
