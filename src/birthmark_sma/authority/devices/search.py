"""Search the register of devices, a page at a time, however many there are.

Every page begins behind the last device of the one before it (no page is counted off), and what
narrows the search has an index.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, func, or_, select

from birthmark_sma.authority.devices.abuse_flags import FlagMode
from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.schema import OUT_OF_ORDER, device_flags
from birthmark_sma.storage.schema import registered_devices as devices

_LAST_CHARACTER = "\U0010ffff"  # no serial has it, as it is not printable

_serial = devices.c.device_serial
_folded = devices.c.serial_folded


class ListedDevice(NamedTuple):
    """What a list tells of a device."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    table_assignments: tuple[int, ...]
    provisioned_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices are looked for; None and False leave all in.

    `begins` is how the serial begins, under folding (`pki.names.fold`); or the whole serial number
    of a certificate, or the whole provisioning id, where no serial begins so. `flagged`: with flags
    that nobody has reviewed.
    """

    begins: str | None = None
    family: str | None = None
    status: DeviceStatus | None = None
    flagged: bool = False


def search(
    connection: Connection, wanted: DeviceFilter, *, limit: int, after: str | None = None
) -> list[ListedDevice]:
    """Return up to `limit` devices by serial, those behind `after`."""
    found = _by_serial(connection, wanted, limit, after)
    if not found and wanted.begins is not None and after is None:
        found = _select(
            connection,
            [
                or_(
                    devices.c.certificate_serial == wanted.begins.lower(),
                    devices.c.provisioning_id == wanted.begins,
                ),
                *_conditions(wanted),
            ],
            _serial,
            limit,
        )
    return found


def _by_serial(
    connection: Connection, wanted: DeviceFilter, limit: int, after: str | None
) -> list[ListedDevice]:
    conditions = _conditions(wanted)
    if wanted.begins is None:
        if after is not None:
            conditions.append(_serial > after)
        return _select(connection, conditions, _serial, limit)
    begins = fold(wanted.begins)
    conditions.append(_folded < begins + _LAST_CHARACTER)
    # One lower bound: of two, SQLite would begin at the one that comes first.
    if after is None or fold(after) < begins:
        conditions.append(_folded >= begins)
    else:
        last = select(_folded).where(_serial == after).scalar_subquery()
        conditions.append(_folded > func.coalesce(last, fold(after)))
    return _select(connection, conditions, _folded, limit)


def _conditions(wanted: DeviceFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.family is not None:
        conditions.append(devices.c.device_family == wanted.family)
    if wanted.status is not None:
        conditions.append(devices.c.status == wanted.status.value)
        if wanted.status is not DeviceStatus.ACTIVE:
            conditions.append(OUT_OF_ORDER)  # which no parameter proves: its index is of these only
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
    order: ColumnElement[str],
    limit: int,
) -> list[ListedDevice]:
    columns = [devices.c[name] for name in ListedDevice._fields]
    rows = connection.execute(select(*columns).where(*conditions).order_by(order).limit(limit))
    return [
        ListedDevice(serial, family, DeviceStatus(status), tuple(tables), at)
        for serial, family, status, tables, at in rows
    ]
