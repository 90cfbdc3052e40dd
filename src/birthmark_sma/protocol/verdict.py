"""Decide PASS or FAIL for a camera token, with the reason. PURE.

Every reason for a FAIL is defined in this module and nowhere else. The reason goes to the audit log
and the operator. A caller gets the verdict only, except for the two reasons that concern the
token's address and not its secret content (`Reason.told_to_caller`).
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from birthmark_sma.protocol.key_table import TableSizes


class Verdict(StrEnum):
    """The verdict that the caller gets."""

    PASS = "PASS"  # noqa: S105  a verdict, not a password
    FAIL = "FAIL"


class DeviceStatus(StrEnum):
    """The status of a registered device. Only an active device can pass."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    RETIRED = "retired"


class Reason(StrEnum):
    """The reason for a verdict, in the order in which the rules are applied."""

    UNKNOWN_TABLE = "unknown_table"
    UNKNOWN_KEY_INDEX = "unknown_key_index"
    NOT_OPENED = "not_opened"
    OPENED_TWICE = "opened_twice"
    """The token opened under more than one of the keys that were tried."""
    UNKNOWN_DEVICE = "unknown_device"
    TABLE_NOT_ASSIGNED = "table_not_assigned"
    DEVICE_SUSPENDED = "device_suspended"
    DEVICE_REVOKED = "device_revoked"
    DEVICE_RETIRED = "device_retired"
    OTHER_EPOCH = "other_epoch"
    """The token opened under a key of its table that the device was never given."""
    EARLIER_EPOCH = "earlier_epoch"
    """The token opened under the key before the newest one, which is no longer accepted."""
    OTHER_DERIVATION = "other_derivation"
    """The token passed before, under the other key derivation."""
    GENUINE = "genuine"

    @property
    def verdict(self) -> Verdict:
        """Return PASS for a genuine token and FAIL for every other reason."""
        return _VERDICTS[self]

    @property
    def told_to_caller(self) -> str | None:
        """Return the `error` text for the caller, or None if the caller gets the verdict only."""
        return _TOLD_TO_CALLER.get(self)


_VERDICTS = {
    reason: Verdict.PASS if reason is Reason.GENUINE else Verdict.FAIL for reason in Reason
}

TEXTS = {reason: (reason.verdict.value, reason.value) for reason in Reason}
"""The texts of verdict and reason. Read once, because `value` of an enum is a slow property."""

_TOLD_TO_CALLER = {
    Reason.UNKNOWN_TABLE: "Unknown table ID",
    Reason.UNKNOWN_KEY_INDEX: "Unknown key index",
}


class DeviceRecord(NamedTuple):
    """The part of a device's record that decides a verdict.

    `table_epochs` is parallel to `table_assignments`. Missing epochs are 0.
    """

    status: DeviceStatus
    table_assignments: Sequence[int]
    table_epochs: Sequence[int] = ()

    def epoch_of(self, table_id: int) -> int:
        """Return the epoch of the key that the device has of one of its tables."""
        place = self.table_assignments.index(table_id)
        return self.table_epochs[place] if place < len(self.table_epochs) else 0


class LiveEpochs(NamedTuple):
    """The epoch of a table's newest key, and whether the key before it is accepted now."""

    current: int = 0
    earlier_accepted: bool = False


def unknown_address(sizes: TableSizes, table_id: int, key_index: int) -> Reason | None:
    """Return the reason why no key has this address, or None if there is such a key."""
    if not 0 <= table_id < sizes.tables:
        return Reason.UNKNOWN_TABLE
    if not 0 <= key_index < sizes.keys_per_table:
        return Reason.UNKNOWN_KEY_INDEX
    return None


def decide(  # noqa: PLR0911  one return a rule reads best
    *,
    sizes: TableSizes,
    table_id: int,
    key_index: int,
    opened: Sequence[int],
    live: LiveEpochs,
    device: DeviceRecord | None,
) -> Reason:
    """Return the reason for the verdict on a camera token. The first rule that applies wins.

    `opened` has the epochs of the keys under which the token opened, of all that were tried. `live`
    describes the token's table. `device` is the record of the device with the NUC hash inside the
    token, or None if there is no such device.
    """
    if (unknown := unknown_address(sizes, table_id, key_index)) is not None:
        return unknown
    if not opened:
        return Reason.NOT_OPENED
    # AES-GCM does not commit to its key: such a token was forged.
    if len(opened) > 1:
        return Reason.OPENED_TWICE
    if device is None:
        return Reason.UNKNOWN_DEVICE
    # Tables are shared secrets. A NUC hash sealed under a table of another device was sealed by
    # someone who holds that other device's keys.
    if table_id not in device.table_assignments:
        return Reason.TABLE_NOT_ASSIGNED
    match device.status:
        case DeviceStatus.SUSPENDED:
            return Reason.DEVICE_SUSPENDED
        case DeviceStatus.REVOKED:
            return Reason.DEVICE_REVOKED
        case DeviceStatus.RETIRED:
            return Reason.DEVICE_RETIRED
        case DeviceStatus.ACTIVE:
            return _judge_epoch(opened[0], device.epoch_of(table_id), live)


def _judge_epoch(opened: int, known: int, live: LiveEpochs) -> Reason:
    """Return GENUINE if a device with the key of epoch `known` may use that of epoch `opened`.

    A device that has the newest key may still send pictures from before it got it.
    """
    if known not in {opened, live.current}:
        return Reason.OTHER_EPOCH
    if opened == live.current:
        return Reason.GENUINE if known == opened else Reason.OTHER_EPOCH
    return Reason.GENUINE if live.earlier_accepted else Reason.EARLIER_EPOCH


def bind_to_derivation(reason: Reason, derivation: int, passed_under: int) -> Reason:
    """Return `reason`, or OTHER_DERIVATION if the token passed under another key derivation.

    AES-GCM does not commit to its key: an attacker who knows two keys can make one ciphertext that
    opens under both, to two different devices. This rule lets a token pass under one derivation
    only. `passed_under` is the number of the derivation under which the token passed before or
    passes now.
    """
    if reason is Reason.GENUINE and passed_under != derivation:
        return Reason.OTHER_DERIVATION
    return reason


@lru_cache(maxsize=4)  # all verdicts of a batch have the same time
def rfc3339(time: datetime) -> str:
    """Return the UTC time of a verdict in the format of RFC 3339, with milliseconds and `Z`."""
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
