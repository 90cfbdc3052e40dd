"""Flags: devices that were far above their usual rate on a day, with the counts that say so.

A device has one flag a day at most, whoever finds it first.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from birthmark_sma.storage.advisory_locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.dialects import is_any_of
from birthmark_sma.storage.schema import device_flags, registered_devices

_flags = device_flags.c


class FlagMode(StrEnum):
    """What a flag means: noted for the operator's trial, shown, or the device was suspended."""

    SHADOW = "shadow"
    FLAG = "flag"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Flag:
    """A device's flag. On `day` (UTC) it made more `pictures` than `threshold`.

    `usual` is its mean of pictures a day over the `days_compared` days before on which it was
    active. A person who put the flag aside did so at `reviewed_at`.
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
    """A flag, and its device as it is now; None where it is no longer registered."""

    flag: Flag
    device_family: str | None
    status: str | None


_COLUMNS = [_flags[field.name] for field in fields(Flag)]


def lock_flags(transaction: Connection) -> None:
    """Let one program at a time flag devices."""
    wait_for_lock(transaction, AdvisoryLock.ABUSE_FLAGS)


def find_excused(
    connection: Connection, day: date, serials: Sequence[str], *, midnight: datetime, shadow: bool
) -> set[str]:
    """Return those of these devices that must not be flagged for a day.

    They have that day's flag already, or a person reviewed one of theirs since `midnight`. Outside
    of shadow mode its flags are as good as none, unless they were reviewed.
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
    """Add flags of devices that `find_excused` does not name; those of shadow mode give way."""
    insert = postgresql.insert if transaction.dialect.name == "postgresql" else sqlite.insert
    inserting = insert(device_flags)
    replacing = {each.name: inserting.excluded[each.name] for each in _COLUMNS[2:]}
    rows = [asdict(flag) | {"mode": flag.mode.value} for flag in new]
    transaction.execute(
        inserting.on_conflict_do_update(
            index_elements=list(device_flags.primary_key), set_=replacing
        ),
        rows,
    )


def count_suspended(transaction: Connection, now: datetime) -> int:
    """Return how many devices were suspended with their flag in the last hour.

    What a wrong clock dated an hour ahead or more is no limit for ever.
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
    transaction: Connection, device_serial: str, at: datetime, *, day: date | None = None
) -> int:
    """Put a device's flags aside, all or those of a day; return how many were not before."""
    query = update(device_flags).where(
        _flags.device_serial == device_serial, _flags.reviewed_at.is_(None)
    )
    if day is not None:
        query = query.where(_flags.day == day)
    return transaction.execute(query.values(reviewed_at=at)).rowcount


def count_open(connection: Connection) -> int:
    """Return how many devices have flags that nobody has reviewed; shadow mode's do not count."""
    return connection.execute(
        select(func.count(_flags.device_serial.distinct())).where(
            _flags.mode != FlagMode.SHADOW.value, _flags.reviewed_at.is_(None)
        )
    ).scalar_one()


def list_flags(
    connection: Connection, *, shadow: bool, reviewed: bool, limit: int
) -> tuple[int, list[ShownFlag]]:
    """Return how many flags there are and up to `limit` (from 1) of them, the latest days first.

    `shadow` asks for those of shadow mode instead of the others; `reviewed`, also for those that
    were put aside.
    """
    chosen: list[ColumnElement[bool]] = [
        _flags.mode == FlagMode.SHADOW.value if shadow else _flags.mode != FlagMode.SHADOW.value
    ]
    if not reviewed:
        chosen.append(_flags.reviewed_at.is_(None))
    known = registered_devices.c
    # Counted by the same statement, so that the number fits what is shown while others are flagged.
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
    total = max((each.pop("total") for each in found), default=0)
    return total, [_shown(each) for each in found]


def list_flags_of_device(connection: Connection, device_serial: str, *, limit: int) -> list[Flag]:
    """Return the flags of a device, of every mode, the latest days first."""
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
