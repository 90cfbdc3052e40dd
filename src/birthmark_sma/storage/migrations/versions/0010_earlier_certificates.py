"""Earlier certificates of devices, permissions to re-enrol, the ends of revoked certificates."""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "earlier_certificates",
        sa.Column("certificate_serial", sa.String(40), primary_key=True),
        sa.Column("device_serial", sa.String(64), nullable=False),
        sa.Column("certificate_issuer", sa.String(16), nullable=False),
        sa.Column("public_key_fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("not_before", UtcDateTime),
        sa.Column("certificate_expires_at", UtcDateTime),
        sa.Column("replaced_at", UtcDateTime, nullable=False),
        sa.Column("replaced_by", sa.String(64), nullable=False),
    )
    for name, column in (
        ("earlier_certificates_device_serial_idx", "device_serial"),
        ("earlier_certificates_public_key_idx", "public_key_fingerprint"),
    ):
        op.create_index(name, "earlier_certificates", [column])
    op.create_table(
        "re_enrolments",
        sa.Column("device_serial", sa.String(64), primary_key=True),
        sa.Column("allowed_until", UtcDateTime, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("opened_at", UtcDateTime, nullable=False),
    )
    op.add_column(
        "access_keys",
        sa.Column("may_re_enrol", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    # Lists of revoked certificates no longer read the end from the certificate.
    op.execute(
        sa.text(
            "UPDATE revoked_certificates SET certificate_expires_at ="
            " (SELECT device.certificate_expires_at FROM registered_devices AS device"
            "  WHERE device.certificate_serial = revoked_certificates.certificate_serial)"
            " WHERE certificate_expires_at IS NULL"
        )
    )
