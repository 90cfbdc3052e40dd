"""The tables of device certificates: replaced, ordered to be renewed, revoked and listed."""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from birthmark_sma.storage.portable_sql import BigId, UtcDateTime
from birthmark_sma.storage.schema.base import metadata

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
