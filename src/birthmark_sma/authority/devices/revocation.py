"""Suspend, reinstate and revoke devices.

Called by `sma devices` and the sandbox. Each of the three is a transaction of its own, so it must
never be called inside another one. There is no cache of devices: the next validation uses the new
status.
"""

from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.authority.devices import abuse_flags
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import DeviceStatusError, UnknownDeviceError
from birthmark_sma.pki.crl import REASONS
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time

_NAMED = 5  # serials that an error message lists


def suspend_device(database: Database, name: str) -> str:
    """Suspend a device: its tokens FAIL until it is reinstated. Return its serial as registered.

    `name` is a serial as for `find_named`. Raises UnknownDeviceError, or DeviceStatusError if the
    device is not active.
    """

    def suspend(transaction: Connection) -> str:
        device = find_named(transaction, name)
        _change(transaction, device, DeviceStatus.ACTIVE, DeviceStatus.SUSPENDED)
        return device.device_serial

    return database.transact(suspend)


def reinstate_device(database: Database, name: str) -> str:
    """End a suspension and mark the device's flags as reviewed. Return its serial as registered.

    The operator who reinstates a device has looked at its flags. Raises UnknownDeviceError, or
    DeviceStatusError if the device is not suspended.
    """

    def reinstate(transaction: Connection) -> str:
        device = find_named(transaction, name)
        _change(transaction, device, DeviceStatus.SUSPENDED, DeviceStatus.ACTIVE)
        abuse_flags.set_reviewed(transaction, device.device_serial, database_time(transaction))
        return device.device_serial

    return database.transact(reinstate)


def revoke_device(database: Database, name: str, reason: str) -> str:
    """Revoke a device for ever. Return its serial as registered.

    All its tokens FAIL, also for pictures from before the revocation, and its certificate is on the
    next CRL. `reason` is a key of `pki.crl.REASONS` (RFC 5280 section 5.3.1). Raises
    UnknownDeviceError, or DeviceStatusError if the device is already revoked or the reason unknown.
    """
    if reason not in REASONS:
        raise DeviceStatusError(
            f"{reason} is not a revocation reason. Give one of: {', '.join(REASONS)}"
        )

    def revoke(transaction: Connection) -> str:
        device = find_named(transaction, name)
        # From every status, except from revoked: `_change` refuses a change to the same status.
        _change(transaction, device, device.status, DeviceStatus.REVOKED)
        ca_store.add_revocation(
            transaction,
            Revocation(
                device.certificate_serial,
                device.device_serial,
                database_time(transaction),
                reason,
                certificate_issuer=device.certificate_issuer,
            ),
        )
        return device.device_serial

    return database.transact(revoke)


def find_named(connection: Connection, name: str) -> Device:
    """Return the device with exactly this serial, else the one whose folded serial is equal.

    `pki.names.fold` folds serials. Raises UnknownDeviceError if there is no such device, or more
    than one.
    """
    found = device_store.find_devices_named(connection, name)
    if not found:
        raise UnknownDeviceError(f"No device {name} is registered.")
    if len(found) > 1:
        serials = ", ".join(repr(device.device_serial) for device in found[:_NAMED])
        raise UnknownDeviceError(
            f"{len(found)} devices have serials that are the same name as {name!r}: {serials}."
            " Give one of them exactly."
        )
    return found[0]


def _change(transaction: Connection, device: Device, old: DeviceStatus, new: DeviceStatus) -> None:
    # The UPDATE checks `old` again: another process may have changed the status since the read.
    if (
        device.status is not old
        or old is new
        or not device_store.set_status(transaction, device.device_serial, old=old, new=new)
    ):
        raise DeviceStatusError(
            f"{device.device_serial} is {device.status.value}, so it cannot become {new.value}."
        )
