"""The tables of devices, and of their provisioning."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    text,
)

from birthmark_sma.storage.portable_sql import TableIds, UtcDateTime
from birthmark_sma.storage.schema.authority import key_encryption_keys
from birthmark_sma.storage.schema.base import metadata

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

idempotent_responses = Table(
    "idempotent_responses",
    metadata,
    Column("idempotency_key", LargeBinary, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("sealed_response", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""Responses to requests with an Idempotency-Key, of provisioning and the administration API, kept
for 24 hours. The key and the request are stored only as digests, the response only encrypted."""
Index("idempotent_responses_created_at_idx", idempotent_responses.c.created_at)

device_family_counters = Table(
    "device_family_counters",
    metadata,
    Column("device_family", String(50), primary_key=True),
    Column("devices", BigInteger, nullable=False),
)
"""The number of devices of each family."""
