"""Find devices that make far more pictures than usual, flag them and, if configured, suspend them.

`AbuseDetection` scans in the background; the command line calls `review_flags`, and the dashboard
`review_several`. The rule itself is in `devices.abuse_policy`. Never suspend more than
`SUSPENSIONS_AN_HOUR` devices an hour.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor, Source
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.authority.devices import abuse_flags, activity
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.abuse_flags import Flag, FlagMode
from birthmark_sma.authority.devices.abuse_policy import (
    AbuseEvidence,
    AbusePolicy,
    Activity,
    compared_days,
)
from birthmark_sma.authority.devices.revocation import change_registered, find_named, finish
from birthmark_sma.authority.devices.states import suspend
from birthmark_sma.config import AbuseMode
from birthmark_sma.errors import UnknownFlagError
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time

SUSPENSIONS_AN_HOUR = 20
"""The most devices that are suspended automatically in an hour, so that a fault cannot disable a
whole fleet. A person can suspend more."""

_SERVER = Actor("abuse-detection", Source.SERVER)
_STEP_DEVICES = 1_000
_STEP_PAUSE_SECONDS = 0.05
_LOGGED = 20  # devices of one scan that the log names, one line each
# For this long after midnight (UTC) a scan includes the day before, so that its last minutes count.
_YESTERDAY_FOR = timedelta(hours=1)

_log = logging.getLogger(__name__)

Pause = Callable[[float], bool]
"""Waits for some seconds and returns True if the work must stop, because the server shuts down."""


@dataclass(slots=True)
class AbuseScan:
    """The result of a scan: the numbers of devices that it flagged and suspended.

    `spared` devices were flagged but not suspended, because of the limit of `SUSPENSIONS_AN_HOUR`.
    """

    flagged: int = 0
    suspended: int = 0
    spared: int = 0


class _Due(NamedTuple):
    """A device that is to be flagged."""

    device_serial: str
    excess: AbuseEvidence

    def how_far(self) -> float:
        """Return the number of pictures divided by the threshold."""
        return self.excess.pictures / self.excess.threshold


class AbuseDetection(BackgroundTask):
    """Scans for abuse every 5 minutes.

    Several processes may scan at once: `_flag` takes an advisory lock, so a flag is added once.
    """

    name = "abuse-watch"
    every_seconds = 300.0

    def __init__(self, database: Database, policy: AbusePolicy, mode: AbuseMode) -> None:
        super().__init__()
        self._database = database
        self._policy = policy
        self._mode = mode

    def work(self, now: datetime) -> None:  # noqa: ARG002 - the database's time alone counts
        """Scan once, unless abuse detection is off."""
        if self._mode is not AbuseMode.OFF:
            scan_for_abuse(self._database, self._policy, self._mode, self.pause, _SERVER)


def scan_for_abuse(
    database: Database, policy: AbusePolicy, mode: AbuseMode, pause: Pause, actor: Actor
) -> AbuseScan:
    """Flag the devices that made far more pictures than usual today, by the database's clock.

    In the first hour after midnight (UTC), scan yesterday as well. Each transaction reads or writes
    at most 1,000 devices, and `pause` is called after each 1,000, so that validations do not wait.
    Log the first 20 flags and, if there are more, their number. Raises DatabaseUnavailableError.
    """
    with database.read() as connection:
        now = database_time(connection)
    done = AbuseScan()
    days = sorted({(now - _YESTERDAY_FOR).date(), now.date()})
    # One loop, not two: a stop during the first day must not begin the second.
    steps = ((day, found) for day in days for found in _iterate_due(database, policy, mode, day))
    for day, found in steps:
        if found:
            _flag(database, mode, day, found, done, actor=actor)
        if pause(_STEP_PAUSE_SECONDS):
            break
    if done.flagged > _LOGGED:
        _log.warning("%d devices in all. To see them: sma devices flagged", done.flagged)
    if done.spared:
        _log.warning(
            "%d devices were flagged and not suspended: more than %d in an hour look like a fault."
            " Look at them with: sma devices flagged",
            done.spared,
            SUSPENSIONS_AN_HOUR,
        )
    return done


def review_flags(
    database: Database, device_serial: str, actor: Actor, day: date | None = None
) -> int:
    """Mark a device's flags as reviewed, all or those of a day (UTC), and return their number.

    The device is not flagged again before the next midnight (UTC). Its status does not change, so a
    suspended device stays suspended. Raises UnknownDeviceError, or UnknownFlagError if no flag is
    to be reviewed.
    """
    return database.transact(
        lambda transaction: set_reviewed(transaction, device_serial, actor, day)
    )[1]


def set_reviewed(
    transaction: Connection, name: str, actor: Actor, day: date | None = None
) -> tuple[str, int]:
    """Mark flags as reviewed in the caller's transaction, as `review_flags` does.

    Return the serial of the device, and the number of flags.
    """
    reviewed = _review(transaction, [(name, day)], actor)
    for serial, number in reviewed.items():
        return serial, number
    # A device that is not registered any more may still have flags.
    find_named(transaction, name)  # raises UnknownDeviceError
    when = "" if day is None else f" of {day}"
    raise UnknownFlagError(f"{name} has no flag{when} that waits for review.")


def review_several(
    database: Database, chosen: Sequence[tuple[str, date | None]], actor: Actor
) -> int:
    """Mark flags of devices as reviewed in one act, and return their number; 0 if none was open.

    `chosen` has serials, each with a day (UTC), or None for all days. `review_flags` has the
    effect.
    """
    return sum(database.transact(lambda each: _review(each, chosen, actor)).values())


def _review(
    transaction: Connection, chosen: Sequence[tuple[str, date | None]], actor: Actor
) -> dict[str, int]:
    """Mark flags as reviewed, record the act, and return the number of flags of each device."""
    now = database_time(transaction)
    reviewed = Counter[str]()
    for name, day in sorted(chosen, key=itemgetter(0)):  # the lock order of all reviews
        named = device_store.find_devices_named(transaction, name)
        serial = named[0].device_serial if len(named) == 1 else name
        reviewed[serial] += abuse_flags.set_reviewed(transaction, [serial], now, day=day)
    subjects = [
        Subject(serial, {"open_flags": number}, {"open_flags": 0})
        for serial, number in sorted(reviewed.items())
        if number
    ]
    more = {"day": chosen[0][1]} if len(chosen) == 1 else None
    trail.record(transaction, actor, ActKind.DEVICE_REVIEW_FLAGS, subjects, more=more)
    return {serial: number for serial, number in reviewed.items() if number}


def _iterate_due(
    database: Database, policy: AbusePolicy, mode: AbuseMode, day: date
) -> Iterator[list[_Due]]:
    """Yield the devices to flag for a day, in one list for each 1,000 devices that are checked."""
    after = ""
    while True:
        with database.read() as connection:
            above = activity.devices_above(
                connection, day, policy.least, after=after, limit=_STEP_DEVICES
            )
            due = _judge(connection, policy, mode, day, above)
        yield due
        if len(above) < _STEP_DEVICES:
            return
        after = above[-1][0]


def _judge(
    connection: Connection,
    policy: AbusePolicy,
    mode: AbuseMode,
    day: date,
    above: Sequence[tuple[str, int]],
) -> list[_Due]:
    excused = _excused(connection, mode, day, [serial for serial, _ in above])
    made = {serial: number for serial, number in above if serial not in excused}
    if not made:
        return []
    earlier = activity.count_pictures(connection, list(made), compared_days(day))
    judged = {
        serial: policy.judge(Activity(number, *earlier.get(serial, (0, 0))))
        for serial, number in made.items()
    }
    return [_Due(serial, excess) for serial, excess in judged.items() if excess is not None]


def _excused(
    connection: Connection, mode: AbuseMode, day: date, serials: Sequence[str]
) -> set[str]:
    midnight = datetime.combine(day, time(), UTC)
    in_shadow = mode is AbuseMode.SHADOW
    return abuse_flags.find_excused(connection, day, serials, midnight=midnight, shadow=in_shadow)


def _flag(
    database: Database,
    mode: AbuseMode,
    day: date,
    due: Sequence[_Due],
    done: AbuseScan,
    *,
    actor: Actor,
) -> None:
    """Add flags, and suspend the devices if that is the mode, in one transaction; then log them.

    Add the numbers to `done`.
    """

    def flag_all(transaction: Connection) -> tuple[list[Flag], set[str], int]:
        abuse_flags.lock_flags(transaction)
        # Check again under the lock: another process may have added the flags since the read, or a
        # person may have reviewed one.
        excused = _excused(transaction, mode, day, [each.device_serial for each in due])
        found = [each for each in due if each.device_serial not in excused]
        # The most extreme devices first: the limit of suspensions may not suffice for all.
        found.sort(key=_Due.how_far, reverse=True)
        now = database_time(transaction)
        suspended, spared = (
            _suspend(transaction, found, now, actor) if mode is AbuseMode.SUSPEND else (set(), 0)
        )
        new = FlagMode.SHADOW if mode is AbuseMode.SHADOW else FlagMode.FLAG
        added = [
            Flag(
                each.device_serial,
                day,
                FlagMode.SUSPENDED if each.device_serial in suspended else new,
                flagged_at=now,
                **each.excess._asdict(),
            )
            for each in found
        ]
        if added:
            abuse_flags.add_flags(transaction, added)
            subjects = [Subject(each.device_serial, None, _facts(each)) for each in added]
            trail.record(transaction, actor, ActKind.DEVICE_FLAG, subjects, more={"day": day})
        if suspended:
            finish(transaction)
        return added, suspended, spared

    added, suspended, spared = database.transact(flag_all)
    # Log after the commit: a transaction that fails has flagged nothing.
    for flag in added[: max(0, _LOGGED - done.flagged)]:
        _log_flag(flag)
    done.flagged += len(added)
    done.suspended += len(suspended)
    done.spared += spared


def _facts(flag: Flag) -> Facts:
    return {"flag": flag.mode.value, "pictures": flag.pictures, "threshold": flag.threshold}


def _suspend(
    transaction: Connection, due: Sequence[_Due], now: datetime, actor: Actor
) -> tuple[set[str], int]:
    """Suspend devices up to the limit; return their serials, and how many devices are left over.

    A device that is not active, such as a revoked one, keeps its status.
    """
    allowed = SUSPENSIONS_AN_HOUR - abuse_flags.count_suspended(transaction, now)
    suspended: set[str] = set()
    waiting = [each.device_serial for each in due]
    while waiting and len(suspended) < allowed:
        tried = allowed - len(suspended)
        some, waiting = waiting[:tried], waiting[tried:]
        suspended |= change_registered(transaction, some, suspend(actor))
    return suspended, len(waiting)


_LEVELS = {FlagMode.SHADOW: logging.INFO}
_SAID = {
    FlagMode.SHADOW: "noted, as in shadow mode nothing else happens",
    FlagMode.FLAG: "flagged",
    FlagMode.SUSPENDED: "suspended",
}


def _log_flag(flag: Flag) -> None:
    _log.log(
        _LEVELS.get(flag.mode, logging.WARNING),
        "device %s is %s: %d pictures on %s, more than %d; usual are %.1f (of %d days)",
        flag.device_serial,
        _SAID[flag.mode],
        flag.pictures,
        flag.day,
        flag.threshold,
        flag.usual,
        flag.days_compared,
    )
