"""Search the register of devices, one page at a time, for the dashboard and the API.

A page continues after the last device of the page before (keyset pagination), and every filter has
an index. A search must never use OFFSET or read the whole register: there may be a million devices.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, or_, select

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
    connection: Connection, wanted: DeviceFilter, *, limit: int, after: str | None = None
) -> list[Device]:
    """Return up to `limit` matching devices after the serial `after`.

    They are in the order of serials, or of folded serials if `begins` is set.
    """
    found = _by_serial(connection, wanted, limit, after)
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
            _serial,
            limit,
        )
    return found


def _by_serial(
    connection: Connection, wanted: DeviceFilter, limit: int, after: str | None
) -> list[Device]:
    conditions = _conditions(wanted)
    if wanted.begins is None:
        if after is not None:
            conditions.append(_serial > after)
        return _select(connection, conditions, _serial, limit)
    begins = fold(wanted.begins)
    conditions.append(_folded < begins + _LAST_CHARACTER)
    # Give only one lower bound: of two, SQLite starts its index scan at the first in the query.
    if after is None or fold(after) < begins:
        conditions.append(_folded >= begins)
    else:
        # The stored folded serial may have a collision suffix, so it is read from the database. If
        # the device was deleted meanwhile, the folded `after` takes its place.
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
    order: ColumnElement[str],
    limit: int,
) -> list[Device]:
    rows = connection.execute(select(*COLUMNS).where(*conditions).order_by(order).limit(limit))
    return [device_of(row) for row in rows]
