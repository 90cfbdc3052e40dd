"""Allow a device to be provisioned once more under its serial: the operator's permissions.

Called by `sma devices re-enrol` and, for the SQL, by `provisioning.re_enrolment`, which uses up the
permission in the transaction that replaces the certificate. All times are of the database's clock.
This module must never change a device.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.authority.devices.revocation import find_named
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time, insert_or_update
from birthmark_sma.storage.schema.devices import re_enrolments

_table = re_enrolments.c


@dataclass(frozen=True, slots=True)
class ReEnrolment:
    """The permission to provision a device once more, until a time. `actor` has given it."""

    device_serial: str
    allowed_until: datetime
    actor: str
    opened_at: datetime


def allow(database: Database, name: str, period: timedelta, actor: Actor) -> ReEnrolment:
    """Allow one re-enrolment of a device within `period` from now, in place of any earlier one.

    `name` is a serial as for `find_named`. Raises UnknownDeviceError, or DeviceStatusError if the
    device is not active.
    """

    return database.transact(lambda transaction: permit(transaction, name, period, actor))


def permit(transaction: Connection, name: str, period: timedelta, actor: Actor) -> ReEnrolment:
    """Allow one re-enrolment in the caller's transaction, as `allow` does."""
    device = find_named(transaction, name)
    if device.status is not DeviceStatus.ACTIVE:
        raise DeviceStatusError(
            f"{device.device_serial} is {device.status.value}, and only an active device can be"
            f" re-enrolled. {advise(device.status)}"
        )
    now = database_time(transaction)
    earlier = find(transaction, device.device_serial, now)
    permission = ReEnrolment(device.device_serial, now + period, actor.name, now)
    replaced = [_table.allowed_until, _table.actor, _table.opened_at]
    transaction.execute(
        insert_or_update(transaction, re_enrolments, replace=replaced), asdict(permission)
    )
    subject = Subject(device.device_serial, _facts(earlier), _facts(permission))
    trail.record(transaction, actor, ActKind.DEVICE_ALLOW_RE_ENROLMENT, [subject])
    return permission


def cancel(database: Database, name: str, actor: Actor) -> tuple[str, bool]:
    """Withdraw the permission of a device. Return its serial, and True if there was one in force.

    Raises UnknownDeviceError.
    """

    return database.transact(lambda transaction: withdraw(transaction, name, actor))


def withdraw(transaction: Connection, name: str, actor: Actor) -> tuple[str, bool]:
    """Withdraw the permission in the caller's transaction, as `cancel` does."""
    device_serial = find_named(transaction, name).device_serial
    found = use(transaction, device_serial, database_time(transaction))
    if found is not None:
        subject = Subject(device_serial, _facts(found), _facts(None))
        trail.record(transaction, actor, ActKind.DEVICE_FORBID_RE_ENROLMENT, [subject])
    return device_serial, found is not None


def find(connection: Connection, device_serial: str, now: datetime) -> ReEnrolment | None:
    """Return the permission of the device with exactly this serial if it is in force at `now`."""
    row = connection.execute(
        select(re_enrolments).where(
            _table.device_serial == device_serial, _table.allowed_until > now
        )
    ).one_or_none()
    return None if row is None else ReEnrolment(**row._asdict())


def use(transaction: Connection, device_serial: str, now: datetime) -> ReEnrolment | None:
    """Delete the permission of a device. Return it if it was in force at `now`, else None.

    Of two transactions that use it at the same time, one gets it.
    """
    row = transaction.execute(
        delete(re_enrolments).where(_table.device_serial == device_serial).returning(re_enrolments)
    ).one_or_none()
    return None if row is None or row.allowed_until <= now else ReEnrolment(**row._asdict())


def _facts(permission: ReEnrolment | None) -> Facts:
    if permission is None:
        return {"allowed": False}
    return {"allowed": True, "allowed_until": permission.allowed_until}


def advise(status: DeviceStatus) -> str:
    """Return what to do about a device of this status that shall be re-enrolled."""
    if status is DeviceStatus.SUSPENDED:
        return "The operator can end the suspension: sma devices reinstate SERIAL."
    return "Provision it under another serial, with a new key pair."
