"""Suspend, reinstate, revoke and retire devices: one, or many in one transaction.

Called by `sma devices`, the dashboard, abuse detection and the sandbox. `devices.states` has the
rules. An act is done as a whole or not at all. There is no cache of devices, and an act commits
only while no validation is under way (docs/adr/0012): so no token of a device passes after its
suspension, revocation or retirement, in any process.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import NoReturn

from sqlalchemy import ColumnElement, Connection, select, update

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.devices import abuse_flags, certificates_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.states import Act, Effect, StatusChange, judge
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import ConfigurationError, DeviceStatusError, UnknownDeviceError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS, USUAL_SECONDS
from birthmark_sma.storage.portable_sql import database_time, is_any_of
from birthmark_sma.storage.schema.certificates import revoked_certificates as revoked
from birthmark_sma.storage.schema.devices import registered_devices as devices

_NAMED = 5  # serials that an error message lists
_CHUNK = 1_000  # devices of one statement: SQLite takes a bounded number of parameters
_serial = devices.c.device_serial


@dataclass(frozen=True, slots=True)
class DeviceCriteria:
    """The devices of an act: those that meet every criterion that is not None.

    Devices are provisioned at `provisioned_after` or later, and before `provisioned_before`.
    """

    family: str | None = None
    app_version: str | None = None
    provisioned_after: datetime | None = None
    provisioned_before: datetime | None = None
    table_id: int | None = None


@dataclass(frozen=True, slots=True)
class ActedDevice:
    """A device of an act, with its status before the act, and the reason of that.

    `compromised_since` is the time since when its key may be in other hands, or None. `changed_at`
    is the time of the latest change of its status.
    """

    device_serial: str
    device_family: str
    status: DeviceStatus
    reason: str | None = None
    compromised_since: datetime | None = None
    changed_at: datetime | None = None


@dataclass(slots=True)
class ActResult:
    """The result of an act, or of a dry run, each list in the order of serials.

    `refused` devices have a status that does not allow the act. `unknown` serials are not
    registered. If devices were named and one is in these two lists, then nothing was done
    (`is_prevented`). An act on devices that meet criteria leaves the refused ones as they are.
    Nothing was done either if the devices are not those that the caller expected (`is_outdated`).
    """

    changed: list[ActedDevice] = field(default_factory=list)
    unchanged: list[ActedDevice] = field(default_factory=list)
    refused: list[ActedDevice] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    is_prevented: bool = False
    is_outdated: bool = False

    @property
    def fingerprint(self) -> str:
        """Return a digest of the devices and of their statuses before the act, in hex.

        It is another one as soon as a device is added or gone, or its status was changed.
        """
        found = [*self.changed, *self.unchanged, *self.refused]
        states = sorted(
            (each.device_serial, each.status.value, f"{each.reason} {each.changed_at}")
            for each in found
        )
        return sha256(repr((states, self.unknown)).encode()).hexdigest()

    def check(self, change: StatusChange) -> None:
        """Raise UnknownDeviceError or DeviceStatusError if the act was prevented."""
        if self.is_prevented:
            refused = ((each.device_serial, each.status.value) for each in self.refused)
            refuse(change, refused, self.unknown)


def refuse(
    change: StatusChange, refused: Iterable[tuple[str, str]], unknown: Sequence[str]
) -> NoReturn:
    """Raise UnknownDeviceError or DeviceStatusError for an act that was prevented.

    `refused` has the serials and the statuses of the devices that cannot change.
    """
    if unknown:
        some = ", ".join(unknown[:_NAMED])
        are = "is" if len(unknown) == 1 else "are"
        raise UnknownDeviceError(
            f"No device {some}{_more(unknown)} {are} registered. Nothing changed."
        )
    found = [f"{serial} is {status}" for serial, status in refused]
    who = "it" if len(found) == 1 else "they"
    raise DeviceStatusError(
        f"{', '.join(found[:_NAMED])}{_more(found)}, so {who} cannot become"
        f" {change.act.status.value}. Nothing changed."
    )


def _more(listed: Sequence[object]) -> str:
    return f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""


def change_devices(
    database: Database,
    wanted: Sequence[str] | DeviceCriteria,
    change: StatusChange,
    *,
    dry_run: bool = False,
    expected: str | None = None,
    chosen_by: Facts | None = None,
) -> ActResult:
    """Change the status of devices in one transaction; with `dry_run`, only tell what would change.

    `wanted` has serials as for `find_named`, or criteria. Nothing is done if `expected` is not the
    fingerprint of the result: the devices changed since a dry run. `chosen_by` goes into the trail
    of acts, for serials that a filter has found. Raises DeviceStatusError if the change
    does not make sense, UnknownDeviceError if a serial means several devices, ConfigurationError if
    there are no criteria, and DatabaseUnavailableError. What the devices themselves prevent is in
    the result: see `ActResult`.
    """
    # Criteria may need a scan of the register. Everything else is in statements of 1,000 devices.
    seconds = LONG_SECONDS if isinstance(wanted, DeviceCriteria) else USUAL_SECONDS
    if dry_run:
        with database.read(seconds) as connection:
            return act_on_devices(connection, wanted, change, dry_run=True)
    return database.transact(
        lambda each: act_on_devices(each, wanted, change, expected=expected, chosen_by=chosen_by),
        seconds,
    )


def act_on_devices(
    transaction: Connection,
    wanted: Sequence[str] | DeviceCriteria,
    change: StatusChange,
    *,
    dry_run: bool = False,
    expected: str | None = None,
    chosen_by: Facts | None = None,
) -> ActResult:
    """Change the status of devices in the caller's transaction, which should do little after it.

    From then on, validations wait for the commit. Arguments and errors are those of
    `change_devices`. If the act is prevented or outdated, nothing was changed.
    """
    now = database_time(transaction)
    change.check(now)
    serials, unknown = _resolve(transaction, wanted)
    if not dry_run and not unknown:
        _lock(transaction, serials)
    result = _judge(transaction, serials, change)
    result.unknown = unknown
    by_name = not isinstance(wanted, DeviceCriteria)
    result.is_prevented = by_name and bool(unknown or result.refused)
    result.is_outdated = expected is not None and expected != result.fingerprint
    is_refused = result.is_prevented or result.is_outdated
    if not dry_run and not is_refused and result.changed:
        criteria = asdict(wanted) if isinstance(wanted, DeviceCriteria) else chosen_by
        _write(transaction, result.changed, change, now, criteria)
        finish(transaction)
    return result


def change_device(database: Database, name: str, change: StatusChange) -> str:
    """Change the status of one device, unless it has this status; return its registered serial.

    Raises the errors of `change_devices`, and UnknownDeviceError or DeviceStatusError if the device
    prevents the act.
    """
    result = change_devices(database, [name], change)
    result.check(change)
    [device] = [*result.changed, *result.unchanged]
    return device.device_serial


def change_registered(
    transaction: Connection, serials: Sequence[str], change: StatusChange
) -> set[str]:
    """Change the status of registered devices in the caller's transaction, as far as allowed.

    Return the serials of those that changed. Call `finish` last in the transaction.
    """
    in_order = sorted(serials)
    _lock(transaction, in_order)
    changed = _judge(transaction, in_order, change).changed
    _write(transaction, changed, change, database_time(transaction))
    return {each.device_serial for each in changed}


def finish(transaction: Connection) -> None:
    """Make a revocation list due, and let the commit wait for the validations under way.

    Call it last in a transaction that changes statuses: new validations wait from then on.
    """
    crl_store.raise_generation(transaction)
    device_store.await_verdicts(transaction)


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


def find_serial(connection: Connection, name: str) -> str:
    """Return the serial of a device, or the name itself if no such device is registered now.

    Raises UnknownDeviceError if the name means several devices.
    """
    if not device_store.find_devices_named(connection, name):
        return name
    return find_named(connection, name).device_serial


def find_by_serial_or_certificate(connection: Connection, name: str) -> Device:
    """Return the device of `find_named`, else the one that has or had the certificate `name`.

    `name` is then the serial number of the certificate in hex, in either case. Raises
    UnknownDeviceError as `find_named`.
    """
    try:
        return find_named(connection, name)
    except UnknownDeviceError:
        known = certificates_store.find_certificates(connection, [name.lower()])
        if not known:
            raise
        return find_named(connection, known[name.lower()].device_serial)


def _resolve(
    connection: Connection, wanted: Sequence[str] | DeviceCriteria
) -> tuple[list[str], list[str]]:
    """Return the serials of registered devices, sorted, and the names that nobody has."""
    if isinstance(wanted, DeviceCriteria):
        query = select(_serial).where(*_conditions(connection, wanted))
        return sorted(connection.execute(query).scalars()), []
    names = list(dict.fromkeys(wanted))
    exact: set[str] = set()
    for some in _chunks(names):
        exact.update(
            connection.execute(
                select(_serial).where(is_any_of(connection, _serial, some))
            ).scalars()
        )
    serials, unknown = set(exact), []
    # In batches: a look-up for each name would hold SQLite's one writer for many seconds.
    for some in _chunks([name for name in names if name not in exact]):
        folded = device_store.find_serials_folded(connection, some)
        serials.update(
            each or find_named(connection, name).device_serial for name, each in folded.items()
        )
        unknown += [name for name in some if name not in folded]
    return sorted(serials), unknown


def _conditions(connection: Connection, wanted: DeviceCriteria) -> list[ColumnElement[bool]]:
    columns = devices.c
    conditions: list[ColumnElement[bool]] = []
    if wanted.family is not None:
        conditions.append(columns.device_family == wanted.family)
    if wanted.app_version is not None:
        conditions.append(columns.app_version == wanted.app_version)
    if wanted.provisioned_after is not None:
        conditions.append(columns.provisioned_at >= wanted.provisioned_after)
    if wanted.provisioned_before is not None:
        conditions.append(columns.provisioned_at < wanted.provisioned_before)
    if wanted.table_id is not None:
        conditions.append(device_store.has_table(connection, wanted.table_id))
    if not conditions:  # never silently all devices
        raise ConfigurationError("Name the devices, or give a criterion such as the family.")
    return conditions


def _lock(transaction: Connection, serials: Sequence[str]) -> None:
    """Lock the rows of devices, in the order of their serials: the lock order of all acts."""
    for some in _chunks(serials):
        query = select(_serial).where(is_any_of(transaction, _serial, some)).order_by(_serial)
        transaction.execute(query.with_for_update(key_share=True)).all()


def _judge(connection: Connection, serials: Sequence[str], change: StatusChange) -> ActResult:
    """Return what a change does to each device. After `_lock`, nobody else changes them."""
    result = ActResult()
    lists = {
        Effect.CHANGED: result.changed,
        Effect.UNCHANGED: result.unchanged,
        Effect.REFUSED: result.refused,
    }
    columns = (
        *(_serial, devices.c.device_family, devices.c.status, devices.c.status_reason),
        *(revoked.c.revocation_reason, revoked.c.invalid_since, devices.c.status_changed_at),
    )
    same = revoked.c.certificate_serial == devices.c.certificate_serial
    query = select(*columns).join_from(devices, revoked, same, isouter=True).order_by(_serial)
    for some in _chunks(serials):
        rows = connection.execute(query.where(is_any_of(connection, _serial, some)))
        for serial, family, status, told, reason, since, changed_at in rows:
            device = ActedDevice(serial, family, DeviceStatus(status), told, since, changed_at)
            lists[judge(change, device.status, reason, since)].append(device)
    return result


def _write(
    transaction: Connection,
    changed: Sequence[ActedDevice],
    change: StatusChange,
    now: datetime,
    criteria: Facts | None = None,
) -> None:
    """Change devices, and record the act with the criteria that they met, if there were any."""
    _record(transaction, changed, change, criteria)
    serials = [each.device_serial for each in changed]
    for some in _chunks(serials):
        these = is_any_of(transaction, _serial, some)
        transaction.execute(
            update(devices)
            .where(these)
            .values(
                status=change.act.status.value,
                status_reason=change.reason,
                status_actor=change.actor.name,
                status_changed_at=now,
            )
        )
        if change.act is Act.REINSTATE:
            certificates_store.release_holds(transaction, some)
            # Who reinstates a device has looked at its flags.
            abuse_flags.set_reviewed(transaction, some, now)
        elif change.reason is not None:
            certificates_store.revoke_all(
                transaction,
                some,
                revoked_at=now,
                reason=change.reason,
                invalid_since=change.invalid_since,
            )


def _record(
    transaction: Connection,
    changed: Sequence[ActedDevice],
    change: StatusChange,
    criteria: Facts | None,
) -> None:
    after = _facts(change.act.status, change.reason, change.invalid_since)
    subjects = [
        Subject(each.device_serial, _facts(each.status, each.reason, each.compromised_since), after)
        for each in changed
    ]
    more = None if criteria is None else {"criteria": criteria}
    trail.record(
        transaction, change.actor, change.act.kind, subjects, reason=change.reason, more=more
    )


def _facts(status: DeviceStatus, reason: str | None, since: datetime | None) -> Facts:
    return {"status": status.value, "reason": reason, "compromised_since": since}


def _chunks(serials: Sequence[str]) -> Iterator[Sequence[str]]:
    for begins in range(0, len(serials), _CHUNK):
        yield serials[begins : begins + _CHUNK]
