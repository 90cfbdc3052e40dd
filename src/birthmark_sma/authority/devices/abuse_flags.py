"""Store abuse flags: a device made far more pictures on a day than usual.

`background.abuse_detection` adds flags, the dashboard and `sma devices flagged` show them. A device
has at most one flag a day: the primary key ensures it. This module stores the counts of
`devices.abuse_policy` and must never judge.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.portable_sql import insert_or_update, is_any_of
from birthmark_sma.storage.schema.activity import device_flags
from birthmark_sma.storage.schema.devices import registered_devices

_flags = device_flags.c


class FlagMode(StrEnum):
    """The effect of a flag: recorded for a trial, shown to operators, or the device suspended."""

    SHADOW = "shadow"
    FLAG = "flag"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: on `day` (UTC) the device made more `pictures` than `threshold`.

    `usual` is its mean number of pictures a day, over the `days_compared` earlier days on which it
    was active. `reviewed_at` is the time when an operator reviewed the flag, or None.
    """

    device_serial: str
    day: date
    mode: FlagMode
    pictures: int
    usual: float
    days_compared: int
    threshold: int
    flagged_at: datetime
    reviewed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShownFlag:
    """A flag and the current fields of its device; None if it is no longer registered."""

    flag: Flag
    device_family: str | None
    status: str | None


_COLUMNS = [_flags[field.name] for field in fields(Flag)]  # in the order of the fields


def lock_flags(transaction: Connection) -> None:
    """Wait for the advisory lock of abuse flags, so that one process at a time flags devices.

    The lock lasts until the transaction ends.
    """
    wait_for_lock(transaction, AdvisoryLock.ABUSE_FLAGS)


def find_excused(
    connection: Connection, day: date, serials: Sequence[str], *, midnight: datetime, shadow: bool
) -> set[str]:
    """Return the devices among `serials` that must not be flagged for `day`.

    A device is excused if it has a flag for that day, or if an operator reviewed one of its flags
    since `midnight`. If `shadow` is False, flags of shadow mode excuse only if they were reviewed.
    """
    flagged: ColumnElement[bool] = _flags.day == day
    if not shadow:
        flagged = and_(flagged, _flags.mode != FlagMode.SHADOW.value)
    return set(
        connection.execute(
            select(_flags.device_serial)
            .distinct()
            .where(
                is_any_of(connection, _flags.device_serial, serials),
                or_(
                    flagged,
                    _flags.reviewed_at >= midnight,
                    and_(_flags.day == day, _flags.reviewed_at.is_not(None)),
                ),
            )
        ).scalars()
    )


def add_flags(transaction: Connection, new: Sequence[Flag]) -> None:
    """Add flags of devices that `find_excused` does not return. Flags of shadow mode are replaced.

    Call `lock_flags` and `find_excused` before, in the same transaction.
    """
    replaced = [each for each in _COLUMNS if not each.primary_key]
    transaction.execute(
        insert_or_update(transaction, device_flags, replace=replaced),
        [asdict(flag) | {"mode": flag.mode.value} for flag in new],
    )


def count_suspended(transaction: Connection, now: datetime) -> int:
    """Return the number of devices that were suspended by a flag in the last hour.

    Flags dated an hour ahead or more are not counted: a clock that was wrong once must not block
    suspensions for long.
    """
    an_hour = timedelta(hours=1)
    return transaction.execute(
        select(func.count())
        .select_from(device_flags)
        .where(
            _flags.mode == FlagMode.SUSPENDED.value,
            _flags.flagged_at > now - an_hour,
            _flags.flagged_at < now + an_hour,
        )
    ).scalar_one()


def set_reviewed(
    transaction: Connection, serials: Sequence[str], at: datetime, *, day: date | None = None
) -> int:
    """Mark the open flags of devices as reviewed, all or those of `day`; return their number."""
    query = update(device_flags).where(
        is_any_of(transaction, _flags.device_serial, serials), _flags.reviewed_at.is_(None)
    )
    if day is not None:
        query = query.where(_flags.day == day)
    return transaction.execute(query.values(reviewed_at=at)).rowcount


def count_open(connection: Connection) -> int:
    """Return the number of devices with open flags. Flags of shadow mode do not count."""
    return connection.execute(
        select(func.count(_flags.device_serial.distinct())).where(
            _flags.mode != FlagMode.SHADOW.value, _flags.reviewed_at.is_(None)
        )
    ).scalar_one()


def list_flags(
    connection: Connection,
    *,
    shadow: bool,
    reviewed: bool,
    limit: int,
    after: tuple[date, str] | None = None,
) -> tuple[int, list[ShownFlag]]:
    """Return the number of matching flags and up to `limit` (at least 1) of them, latest day first.

    With `shadow`, only flags of shadow mode match, else only the others. With `reviewed`, reviewed
    flags match as well. `after` is the day and the serial of the last flag of the page before; the
    flags up to there are not counted.
    """
    chosen: list[ColumnElement[bool]] = [
        _flags.mode == FlagMode.SHADOW.value if shadow else _flags.mode != FlagMode.SHADOW.value
    ]
    if not reviewed:
        chosen.append(_flags.reviewed_at.is_(None))
    if after is not None:
        chosen.append(_follows(*after))
    known = registered_devices.c
    # One statement counts and lists, so that both agree while other processes add flags.
    rows = connection.execute(
        select(*_COLUMNS, known.device_family, known.status, func.count().over().label("total"))
        .outerjoin_from(
            device_flags, registered_devices, known.device_serial == _flags.device_serial
        )
        .where(*chosen)
        .order_by(_flags.day.desc(), _flags.pictures.desc(), _flags.device_serial)
        .limit(limit)
    )
    found = [row._asdict() for row in rows]
    # Every row has the total, so without a row (limit 0) it would be unknown.
    total = max((each.pop("total") for each in found), default=0)
    return total, [_shown(each) for each in found]


def _follows(day: date, device_serial: str) -> ColumnElement[bool]:
    """Return the condition that a flag is behind another one in the order of `list_flags`.

    The pictures of that one are read from the database. If it is gone, the rest of its day is
    left out.
    """
    pictures = (
        select(_flags.pictures)
        .where(_flags.day == day, _flags.device_serial == device_serial)
        .scalar_subquery()
    )
    same = and_(_flags.pictures == pictures, _flags.device_serial > device_serial)
    return or_(_flags.day < day, and_(_flags.day == day, or_(_flags.pictures < pictures, same)))


def list_flags_of_device(connection: Connection, device_serial: str, *, limit: int) -> list[Flag]:
    """Return up to `limit` flags of a device, of every mode, latest day first."""
    rows = connection.execute(
        select(*_COLUMNS)
        .where(_flags.device_serial == device_serial)
        .order_by(_flags.day.desc())
        .limit(limit)
    )
    return [Flag(**row._asdict() | {"mode": FlagMode(row.mode)}) for row in rows]


def _shown(values: dict[str, Any]) -> ShownFlag:
    family, status = values.pop("device_family"), values.pop("status")
    return ShownFlag(Flag(**values | {"mode": FlagMode(values["mode"])}), family, status)
