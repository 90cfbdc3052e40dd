"""Retired devices, who changed a device's status and why, and the end of each certificate.

Suspended devices are on the revocation list from now on, with the reason certificateHold.
The ends of device certificates are read from the certificates: about a minute for a million
devices, in which none is provisioned. SQLite copies the register, because it cannot change a
constraint in place.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from cryptography import x509

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0009"
down_revision = "0008"

_BATCH = 5_000
_STATUS = "registered_devices_status_check"


def upgrade() -> None:
    with op.batch_alter_table("registered_devices") as batch:
        batch.drop_constraint(op.f(_STATUS), type_="check")
        batch.create_check_constraint(
            op.f(_STATUS), "status IN ('active', 'suspended', 'revoked', 'retired')"
        )
        batch.add_column(sa.Column("status_reason", sa.String(32)))
        batch.add_column(sa.Column("status_actor", sa.String(64)))
        batch.add_column(sa.Column("status_changed_at", UtcDateTime))
        batch.add_column(
            sa.Column(
                "certificate_issuer",
                sa.String(16),
                nullable=False,
                server_default="intermediate",
            )
        )
        batch.add_column(sa.Column("certificate_expires_at", UtcDateTime))
    op.add_column(
        "revoked_certificates",
        sa.Column(
            "certificate_issuer", sa.String(16), nullable=False, server_default="intermediate"
        ),
    )
    op.add_column("revoked_certificates", sa.Column("invalid_since", UtcDateTime))
    for table in ("authority", "published_crls"):
        op.add_column(
            table,
            sa.Column("revocation_generation", sa.BigInteger, nullable=False, server_default="0"),
        )
    _copy_reasons()
    _read_ends()
    _hold_suspended()
    op.create_index(
        "registered_devices_expiry_idx",
        "registered_devices",
        ["certificate_expires_at", "device_serial"],
    )
    op.create_index(
        "registered_devices_family_folded_idx",
        "registered_devices",
        ["device_family", "serial_folded"],
    )


def _copy_reasons() -> None:
    """Revoked devices get the reason and the time of their revocation."""
    op.execute(
        sa.text(
            "UPDATE registered_devices SET"
            " status_reason = (SELECT revocation_reason FROM revoked_certificates AS gone"
            "  WHERE gone.certificate_serial = registered_devices.certificate_serial),"
            " status_changed_at = (SELECT revoked_at FROM revoked_certificates AS gone"
            "  WHERE gone.certificate_serial = registered_devices.certificate_serial)"
            " WHERE status = 'revoked'"
        )
    )


_DEVICES = sa.table(
    "registered_devices",
    sa.column("device_serial"),
    sa.column("device_certificate"),
    sa.column("certificate_expires_at", UtcDateTime),
)


def _read_ends() -> None:
    connection = op.get_bind()
    page = (
        sa.select(_DEVICES.c.device_serial, _DEVICES.c.device_certificate)
        .where(_DEVICES.c.device_serial > sa.bindparam("after"))
        .order_by(_DEVICES.c.device_serial)
        .limit(_BATCH)
    )
    write = (
        sa.update(_DEVICES)
        .where(_DEVICES.c.device_serial == sa.bindparam("serial"))
        .values(certificate_expires_at=sa.bindparam("ends", type_=UtcDateTime()))
    )
    after = ""
    while rows := connection.execute(page, {"after": after}).all():
        ends = [{"serial": serial, "ends": _end(pem)} for serial, pem in rows]
        known = [each for each in ends if each["ends"] is not None]
        if known:
            connection.execute(write, known)
        after = rows[-1][0]


def _hold_suspended() -> None:
    """The certificates of suspended devices are on hold. Nothing tells since when: since now."""
    now = {"now": datetime.now(UTC)}
    set_reason = sa.text(
        "UPDATE registered_devices SET status_reason = 'certificate_hold',"
        " status_changed_at = :now WHERE status = 'suspended'"
    )
    add = sa.text(
        "INSERT INTO revoked_certificates (certificate_serial, device_serial, revoked_at,"
        " revocation_reason, certificate_expires_at)"
        " SELECT certificate_serial, device_serial, status_changed_at, 'certificate_hold',"
        " certificate_expires_at FROM registered_devices WHERE status = 'suspended'"
        " ON CONFLICT DO NOTHING"
    )
    op.get_bind().execute(set_reason.bindparams(sa.bindparam("now", type_=UtcDateTime())), now)
    op.get_bind().execute(add)


def _end(pem: str) -> datetime | None:
    """Return the end of a certificate, or None for what an operator's own SQL put there."""
    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError:
        return None
