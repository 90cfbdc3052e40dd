"""PASS or FAIL, and why. Every reason for a FAIL lives in this file and nowhere else.

The reason is for the audit trail and the operator. A caller learns the verdict alone, but for the
two reasons that lie in the address of the token and not in its secret (`Reason.told_to_caller`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from birthmark_sma.protocol.key_table import TableSizes


class Verdict(StrEnum):
    """What the caller is told."""

    PASS = "PASS"  # noqa: S105  a verdict, not a password
    FAIL = "FAIL"


class DeviceStatus(StrEnum):
    """Whether a registered device may pass."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


class Reason(StrEnum):
    """Why a camera token got its verdict, in the order in which the rules are applied."""

    UNKNOWN_TABLE = "unknown_table"
    UNKNOWN_KEY_INDEX = "unknown_key_index"
    NOT_OPENED = "not_opened"
    UNKNOWN_DEVICE = "unknown_device"
    TABLE_NOT_ASSIGNED = "table_not_assigned"
    DEVICE_SUSPENDED = "device_suspended"
    DEVICE_REVOKED = "device_revoked"
    OTHER_DERIVATION = "other_derivation"
    """The token passed before, under the other key derivation."""
    GENUINE = "genuine"

    @property
    def verdict(self) -> Verdict:
        """PASS for a genuine token, FAIL for every other reason."""
        return _VERDICTS[self]

    @property
    def told_to_caller(self) -> str | None:
        """The `error` that the caller is told, or None where the reason is the authority's own."""
        return _TOLD_TO_CALLER.get(self)


_VERDICTS = {
    reason: Verdict.PASS if reason is Reason.GENUINE else Verdict.FAIL for reason in Reason
}

_TOLD_TO_CALLER = {
    Reason.UNKNOWN_TABLE: "Unknown table ID",
    Reason.UNKNOWN_KEY_INDEX: "Unknown key index",
}


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What the authority knows of the device that a NUC hash belongs to."""

    status: DeviceStatus
    table_assignments: Collection[int]


def decide(  # noqa: PLR0911  one return a rule reads best
    *, sizes: TableSizes, table_id: int, key_index: int, opened: bool, standing: DeviceRecord | None
) -> Reason:
    """Judge a camera token.

    `opened` says whether it opened under the derived key; `standing` is that of the device with the
    NUC hash inside, or None where no device has it.
    """
    if not sizes.has_table(table_id):
        return Reason.UNKNOWN_TABLE
    if not sizes.has_key_index(key_index):
        return Reason.UNKNOWN_KEY_INDEX
    if not opened:
        return Reason.NOT_OPENED
    if standing is None:
        return Reason.UNKNOWN_DEVICE
    # Tables are shared secrets: a NUC hash sealed under a table that is not the device's own was
    # sealed by somebody who holds another device's keys.
    if table_id not in standing.table_assignments:
        return Reason.TABLE_NOT_ASSIGNED
    match standing.status:
        case DeviceStatus.SUSPENDED:
            return Reason.DEVICE_SUSPENDED
        case DeviceStatus.REVOKED:
            return Reason.DEVICE_REVOKED
        case DeviceStatus.ACTIVE:
            return Reason.GENUINE


def bind_to_derivation(reason: Reason, derivation: int, passed_under: int) -> Reason:
    """Let a token pass under one key derivation only.

    GCM does not commit to its key: who knows two keys can make a ciphertext that opens under both,
    to two devices. `passed_under` is the derivation under which the token passed, or passes now.
    """
    if reason is Reason.GENUINE and passed_under != derivation:
        return Reason.OTHER_DERIVATION
    return reason
