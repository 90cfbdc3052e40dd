"""Search the register of devices, one page at a time, for the dashboard and the API.

A page continues after the last device of the page before (keyset pagination), and every filter has
an index. A search must never use OFFSET or read the whole register: there may be a million devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from birthmark_sma.authority.devices.abuse_flags import FlagMode
from birthmark_sma.authority.devices.store import COLUMNS, Device, device_of
from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.schema.activity import device_flags
from birthmark_sma.storage.schema.certificates import earlier_certificates
from birthmark_sma.storage.schema.devices import OUT_OF_ORDER
from birthmark_sma.storage.schema.devices import registered_devices as devices

_LAST_CHARACTER = "\U0010ffff"  # upper bound of a prefix: no serial has it, it is not printable

_serial = devices.c.device_serial
_folded = devices.c.serial_folded


class DeviceOrder(StrEnum):
    """The orders of a list of devices."""

    SERIAL = "serial"
    PROVISIONED = "provisioned"
    CHANGED = "changed"
    """By the last change of the status."""

    def serves(self, wanted: "DeviceFilter") -> bool:
        """Return True if a page of this order reads few rows, whatever the size of the register.

        The index on the time of provisioning has all devices. The time of the change has no index:
        it orders those that are not active, which are few.
        """
        if self is DeviceOrder.SERIAL:
            return True
        if wanted.begins is not None or wanted.family is not None or wanted.flagged:
            return False
        is_few = wanted.status not in {None, DeviceStatus.ACTIVE}
        return is_few if self is DeviceOrder.CHANGED else not is_few


_TIMES = {
    DeviceOrder.PROVISIONED: devices.c.provisioned_at,
    DeviceOrder.CHANGED: devices.c.status_changed_at,
}


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """The devices to search for. None and False mean no restriction.

    `begins` is a prefix of the serial, compared after folding (`pki.names.fold`). If no serial has
    this prefix, it is compared with the whole serial number (hex) of the current and the earlier
    certificates, and the whole provisioning id. `flagged` means: with an open abuse flag, not
    counting those of shadow mode.
    """

    begins: str | None = None
    family: str | None = None
    status: DeviceStatus | None = None
    flagged: bool = False


def search(
    connection: Connection,
    wanted: DeviceFilter,
    *,
    limit: int,
    after: str | None = None,
    order: DeviceOrder = DeviceOrder.SERIAL,
    descending: bool = False,
) -> list[Device]:
    """Return up to `limit` matching devices after the serial `after`, in an order that `serves`.

    The order of serials is that of folded serials if `begins` is set.
    """
    if order is not DeviceOrder.SERIAL:
        return _by_time(connection, wanted, limit, after, order, descending=descending)
    found = _by_serial(connection, wanted, limit, after, descending=descending)
    # Only on the first page: there is at most one such device for each of the two numbers.
    if not found and wanted.begins is not None and after is None:
        found = _select(
            connection,
            [
                or_(
                    devices.c.certificate_serial == wanted.begins.lower(),
                    devices.c.provisioning_id == wanted.begins,
                    # A scalar, not IN: PostgreSQL would read the whole register for that.
                    _serial
                    == select(earlier_certificates.c.device_serial)
                    .where(earlier_certificates.c.certificate_serial == wanted.begins.lower())
                    .scalar_subquery(),
                ),
                *_conditions(wanted),
            ],
            [_serial],
            limit,
        )
    return found


def _by_serial(
    connection: Connection,
    wanted: DeviceFilter,
    limit: int,
    after: str | None,
    *,
    descending: bool,
) -> list[Device]:
    conditions = _conditions(wanted)
    if wanted.begins is None:
        if after is not None:
            conditions.append(_serial < after if descending else _serial > after)
        return _select(connection, conditions, [_directed(_serial, descending)], limit)
    begins = fold(wanted.begins)
    last: ColumnElement[str] | str = begins + _LAST_CHARACTER
    if after is not None:
        # The stored folded serial may have a collision suffix, so it is read from the database. If
        # the device was deleted meanwhile, the folded `after` takes its place.
        stored = select(_folded).where(_serial == after).scalar_subquery()
        place: ColumnElement[str] = func.coalesce(stored, fold(after))
        is_inside = begins <= fold(after) < begins + _LAST_CHARACTER
        # Give only one bound at each end: of two, SQLite uses the first in the query.
        if descending and is_inside:
            last = place
        elif not descending and fold(after) >= begins:
            conditions += [_folded < last, _folded > place]
            return _select(connection, conditions, [_folded], limit)
    conditions += [_folded < last, _folded >= begins]
    return _select(connection, conditions, [_directed(_folded, descending)], limit)


def _by_time(
    connection: Connection,
    wanted: DeviceFilter,
    limit: int,
    after: str | None,
    order: DeviceOrder,
    *,
    descending: bool,
) -> list[Device]:
    """Return devices in the order of a time, and of serials where the time is the same."""
    time = _TIMES[order]
    conditions = _conditions(wanted)
    directed = [_directed(time, descending), _directed(_serial, descending)]
    if time.nullable:
        # Last in both directions: the changes from before they were recorded.
        directed.insert(0, time.is_(None))
    if after is not None:
        last = connection.execute(select(time).where(_serial == after)).one_or_none()
        if last is None:
            return []
        [at] = last
        behind = _serial < after if descending else _serial > after
        if at is None:
            conditions += [time.is_(None), behind]
        else:
            later = or_(time < at if descending else time > at, and_(time == at, behind))
            if time.nullable:
                conditions.append(or_(later, time.is_(None)))
            else:
                # The second condition follows from the first, but alone lets the index be used.
                conditions += [later, time <= at if descending else time >= at]
    return _select(connection, conditions, directed, limit)


def _directed(column: ColumnElement[Any], descending: bool) -> ColumnElement[Any]:  # noqa: FBT001
    return column.desc() if descending else column.asc()


def _conditions(wanted: DeviceFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.family is not None:
        conditions.append(devices.c.device_family == wanted.family)
    if wanted.status is not None:
        conditions.append(devices.c.status == wanted.status.value)
        if wanted.status is not DeviceStatus.ACTIVE:
            # The partial index has only these rows. A parameter does not prove to the planner that
            # the index fits, so its condition is repeated as a literal.
            conditions.append(OUT_OF_ORDER)
    if wanted.flagged:
        flags = device_flags.c
        conditions.append(
            _serial.in_(
                select(flags.device_serial).where(
                    flags.mode != FlagMode.SHADOW.value, flags.reviewed_at.is_(None)
                )
            )
        )
    return conditions


def _select(
    connection: Connection,
    conditions: list[ColumnElement[bool]],
    order: Sequence[ColumnElement[Any]],
    limit: int,
) -> list[Device]:
    rows = connection.execute(select(*COLUMNS).where(*conditions).order_by(*order).limit(limit))
    return [device_of(row) for row in rows]
