"""SQL for the certificates of devices: the current ones, the earlier ones, and their revocation.

Called by re-enrolment, renewal, revocation, the dashboard, the doctor and `sma devices`. The
current certificate of a device is in `registered_devices`, those that it had before in
`earlier_certificates`. A revocation must cover all certificates of a device that have not expired.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    Select,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    union_all,
    update,
)

from birthmark_sma.authority.devices.states import weaker_than
from birthmark_sma.pki.crl import HOLD
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import (
    UtcDateTime,
    insert_from_select,
    is_any_of,
)
from birthmark_sma.storage.schema import earlier_certificates, revoked_certificates
from birthmark_sma.storage.schema import registered_devices as devices

_earlier = earlier_certificates.c
_revoked = revoked_certificates.c


@dataclass(frozen=True, slots=True)
class EarlierCertificate:
    """A certificate that a device had before its current one.

    `certificate_serial` is lower-case hex. `public_key_fingerprint` is the SHA-256 of the DER
    SubjectPublicKeyInfo. `certificate_issuer` is the name of a CA certificate. `not_before` and
    `certificate_expires_at` are None only if an operator inserted the certificate. `replaced_by`
    says who allowed the replacement. `csr_sha256` and `exchanged_for` are of the renewal for which
    the device presented this certificate, or None.
    """

    certificate_serial: str
    device_serial: str
    certificate_issuer: str
    public_key_fingerprint: bytes
    not_before: datetime | None
    certificate_expires_at: datetime | None
    replaced_at: datetime
    replaced_by: str
    csr_sha256: bytes | None = None
    exchanged_for: str | None = None


class Revocation(NamedTuple):
    """The time and the reason of a revocation (RFC 5280 section 5.3.1).

    `invalid_since` is the time since when the key may be in other hands, or None.
    """

    revoked_at: datetime
    revocation_reason: str
    invalid_since: datetime | None = None


class ListedCertificate(NamedTuple):
    """An earlier certificate, and its revocation or None."""

    certificate: EarlierCertificate
    revocation: Revocation | None


class KnownCertificate(NamedTuple):
    """A certificate of a device, and the state of both.

    `is_current` is False for an earlier certificate. `status` is that of the device, which has it
    since `status_since`.
    """

    certificate_serial: str
    device_serial: str
    certificate_issuer: str
    certificate_expires_at: datetime | None
    status: DeviceStatus
    status_since: datetime
    is_current: bool
    revocation: Revocation | None


class ExpiringDevice(NamedTuple):
    """The fields of a device in a list by the end of its certificate."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    certificate_serial: str
    certificate_expires_at: datetime


def add_earlier(transaction: Connection, certificate: EarlierCertificate) -> None:
    """Store the certificate that its device has had until now. It stays valid."""
    transaction.execute(insert(earlier_certificates).values(**asdict(certificate)))


def note_exchange(
    transaction: Connection, certificate_serial: str, csr_sha256: bytes, exchanged_for: str
) -> None:
    """Store the CSR and the new certificate for which a device presented an earlier one."""
    transaction.execute(
        update(earlier_certificates)
        .where(_earlier.certificate_serial == certificate_serial)
        .values(csr_sha256=csr_sha256, exchanged_for=exchanged_for)
    )


def supersede_earlier(transaction: Connection, device_serial: str, now: datetime) -> bool:
    """Revoke all earlier certificates of a device as `superseded`.

    Also those that have expired: within the grace period they could be renewed, by whoever has the
    key. A revocation that exists stays as it is. Return True if any certificate was revoked: then
    the caller makes a CRL due.
    """
    told = (literal(now, UtcDateTime()), literal("superseded"), literal(None, UtcDateTime()))
    inserting = insert_from_select(
        transaction,
        revoked_certificates,
        _REVOCATION_COLUMNS,
        _select_earlier(transaction, [device_serial], told),
    ).on_conflict_do_nothing()
    # RETURNING, as the row count of such an INSERT is unknown on PostgreSQL.
    return bool(transaction.execute(inserting.returning(_revoked.certificate_serial)).all())


def find_earlier(connection: Connection, certificate_serial: str) -> ListedCertificate | None:
    """Return the earlier certificate with this serial number, or None."""
    row = connection.execute(
        _LISTED.where(_earlier.certificate_serial == certificate_serial)
    ).one_or_none()
    return None if row is None else _listed(row)


def has_revoked_key(connection: Connection, device_serial: str, fingerprint: bytes) -> bool:
    """Return True if a revoked earlier certificate of the device has this public key."""
    query = (
        select(_earlier.certificate_serial)
        .join(revoked_certificates, _revoked.certificate_serial == _earlier.certificate_serial)
        .where(
            _earlier.public_key_fingerprint == fingerprint, _earlier.device_serial == device_serial
        )
    )
    return connection.execute(query.limit(1)).first() is not None


def list_earlier(connection: Connection, device_serial: str) -> list[ListedCertificate]:
    """Return the earlier certificates of a device, the newest first."""
    rows = connection.execute(
        _LISTED.where(_earlier.device_serial == device_serial).order_by(
            _earlier.replaced_at.desc(), _earlier.certificate_serial
        )
    )
    return [_listed(row) for row in rows]


def find_certificates(
    connection: Connection, certificate_serials: Sequence[str]
) -> dict[str, KnownCertificate]:
    """Return certificates by serial number (lower-case hex), current or earlier.

    Unknown ones are missing.
    """
    current = (
        select(
            devices.c.certificate_serial,
            devices.c.device_serial,
            devices.c.certificate_issuer,
            devices.c.certificate_expires_at,
            devices.c.status,
            _STATUS_SINCE,
            true(),
            *_REVOCATION,
        )
        .select_from(_with_revocation(devices.c.certificate_serial, devices))
        .where(is_any_of(connection, devices.c.certificate_serial, certificate_serials))
    )
    replaced = (
        select(
            _earlier.certificate_serial,
            _earlier.device_serial,
            _earlier.certificate_issuer,
            _earlier.certificate_expires_at,
            devices.c.status,
            _STATUS_SINCE,
            false(),
            *_REVOCATION,
        )
        .select_from(
            _with_revocation(
                _earlier.certificate_serial,
                earlier_certificates.join(
                    devices, devices.c.device_serial == _earlier.device_serial
                ),
            )
        )
        .where(is_any_of(connection, _earlier.certificate_serial, certificate_serials))
    )
    found: dict[str, KnownCertificate] = {}
    # The current ones first: a certificate that is replaced between both queries is then found by
    # the second one.
    for query in (current, replaced):
        for row in connection.execute(query):
            serial, device_serial, issuer, ends, status, since, is_current, *revocation = row
            found[serial] = KnownCertificate(
                certificate_serial=serial,
                device_serial=device_serial,
                certificate_issuer=issuer,
                certificate_expires_at=ends,
                status=DeviceStatus(status),
                status_since=since,
                is_current=bool(is_current),
                revocation=_revocation(*revocation),
            )
    return found


def revoke_all(
    transaction: Connection,
    device_serials: Sequence[str],
    *,
    revoked_at: datetime,
    reason: str,
    invalid_since: datetime | None = None,
) -> None:
    """Revoke every certificate of these devices that has not expired, current and earlier.

    Call it after the status of the devices was changed, in the same transaction. Then a certificate
    that another transaction has just replaced is found as well. The next CRL lists them.

    The time of a revocation stays that of the first one, also of a hold that becomes final (X.509).
    Its reason is replaced only by a stronger one (`states.weaker_than`).
    """
    told = (
        literal(revoked_at, UtcDateTime()),
        literal(reason),
        literal(invalid_since, UtcDateTime()),
    )
    current = select(
        devices.c.certificate_serial,
        devices.c.device_serial,
        devices.c.certificate_issuer,
        devices.c.certificate_expires_at,
        *told,
    ).where(is_any_of(transaction, devices.c.device_serial, device_serials))
    earlier = _select_earlier(transaction, device_serials, told).where(
        or_(_earlier.certificate_expires_at.is_(None), _earlier.certificate_expires_at > revoked_at)
    )
    inserting = insert_from_select(
        transaction, revoked_certificates, _REVOCATION_COLUMNS, union_all(current, earlier)
    )
    given = inserting.excluded
    transaction.execute(
        inserting.on_conflict_do_update(
            index_elements=[_revoked.certificate_serial],
            set_={each: given[each] for each in ("revocation_reason", "invalid_since")},
            where=_revoked.revocation_reason.in_(weaker_than(reason)),
        )
    )


def release_holds(transaction: Connection, device_serials: Sequence[str]) -> None:
    """Delete the revocations of these devices that are there because of a suspension only."""
    for certificates in (
        select(devices.c.certificate_serial).where(
            is_any_of(transaction, devices.c.device_serial, device_serials)
        ),
        select(_earlier.certificate_serial).where(
            is_any_of(transaction, _earlier.device_serial, device_serials)
        ),
    ):
        transaction.execute(
            delete(revoked_certificates).where(
                _revoked.certificate_serial.in_(certificates),
                _revoked.revocation_reason == HOLD,
            )
        )


def list_expiring(
    connection: Connection,
    before: datetime,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
) -> list[ExpiringDevice]:
    """Return devices whose certificate ends before a time, in the order of the ends.

    Only devices that can still be used are listed: active and suspended ones. Certificates that
    have expired are listed as well. `after` is the end and the serial of the last device of the
    page before (keyset pagination). It uses the index of the ends.
    """
    ends, serial = devices.c.certificate_expires_at, devices.c.device_serial
    query = (
        select(*(devices.c[name] for name in ExpiringDevice._fields))
        .where(ends < before, _IN_USE)
        .order_by(ends, serial)
        .limit(limit)
    )
    if after is not None:
        # `ends >=` bounds the scan of the index. The second condition leaves out what was shown.
        query = query.where(ends >= after[0], or_(ends > after[0], serial > after[1]))
    return [
        ExpiringDevice(row[0], row[1], DeviceStatus(row[2]), row[3], row[4])
        for row in connection.execute(query)
    ]


def count_expiring(connection: Connection, since: datetime, before: datetime, most: int) -> int:
    """Return the number, up to `most`, of devices whose certificate ends between two times.

    Only active and suspended devices count. The lower bound keeps the scan of the index short: the
    certificates of all devices that were ever given up are below it.
    """
    ends = devices.c.certificate_expires_at
    found = select(ends).where(ends >= since, ends < before, _IN_USE).limit(most).subquery()
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


_IN_USE = devices.c.status.in_([DeviceStatus.ACTIVE.value, DeviceStatus.SUSPENDED.value])
_REVOCATION = (_revoked.revoked_at, _revoked.revocation_reason, _revoked.invalid_since)
_REVOCATION_COLUMNS = (
    *("certificate_serial", "device_serial", "certificate_issuer", "certificate_expires_at"),
    *("revoked_at", "revocation_reason", "invalid_since"),
)
_STATUS_SINCE = func.coalesce(
    devices.c.status_changed_at, devices.c.provisioned_at, type_=UtcDateTime()
)


def _with_revocation(certificate_serial: Any, source: Any) -> Any:
    return source.outerjoin(revoked_certificates, _revoked.certificate_serial == certificate_serial)


def _revocation(
    at: datetime | None, reason: str | None, invalid_since: datetime | None
) -> Revocation | None:
    return None if at is None or reason is None else Revocation(at, reason, invalid_since)


def _select_earlier(
    connection: Connection, device_serials: Sequence[str], told: Sequence[Any]
) -> Select[Any]:
    """Return the query for new revocations of the earlier certificates of these devices.

    `told` are the values of time, reason and `invalid_since`.
    """
    return select(
        _earlier.certificate_serial,
        _earlier.device_serial,
        _earlier.certificate_issuer,
        _earlier.certificate_expires_at,
        *told,
    ).where(is_any_of(connection, _earlier.device_serial, device_serials))


_LISTED = select(
    *(_earlier[name] for name in EarlierCertificate.__dataclass_fields__), *_REVOCATION
).select_from(_with_revocation(_earlier.certificate_serial, earlier_certificates))


def _listed(row: Row[*tuple[Any, ...]]) -> ListedCertificate:
    *certificate, revoked_at, reason, invalid_since = row
    revocation = _revocation(revoked_at, reason, invalid_since)
    return ListedCertificate(EarlierCertificate(*certificate), revocation)
