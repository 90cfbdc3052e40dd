"""The table ids that have a fixed verdict in a sandbox, whatever else the token contains. PURE.

Used by `SandboxValidator` and by the scenario catalog in `web.sandbox`.
"""

from collections.abc import Mapping

from birthmark_sma.protocol.verdict import Reason

FIRST_SCRIPTED_TABLE = 9_000
"""Table ids from here on are scripted. A sandbox must have no key table of its own with such an id;
`guards.check_settings` ensures that."""

VERDICTS: Mapping[int, Reason] = {
    9_000: Reason.GENUINE,
    9_001: Reason.NOT_OPENED,
    9_002: Reason.UNKNOWN_DEVICE,
    9_003: Reason.TABLE_NOT_ASSIGNED,
    9_004: Reason.DEVICE_SUSPENDED,
    9_005: Reason.DEVICE_REVOKED,
    9_006: Reason.UNKNOWN_TABLE,
    9_007: Reason.UNKNOWN_KEY_INDEX,
    9_008: Reason.OTHER_DERIVATION,
    9_009: Reason.DEVICE_RETIRED,
    9_010: Reason.OPENED_TWICE,
    9_011: Reason.OTHER_EPOCH,
    9_012: Reason.EARLIER_EPOCH,
}
"""The reason, and so the verdict, of each scripted table id."""

ALREADY_SUBMITTED = 9_409
"""The audit trail records PASS, and the caller gets 409 without a verdict."""
DELIVERED = frozenset({ALREADY_SUBMITTED, 9_900, 9_903, 9_906, 9_907})
"""Scripted table ids whose tokens reach the validator, at once or after an injected fault. They
PASS."""


def scripted_reason(table_id: int) -> Reason | None:
    """Return the fixed reason of a table id, or None if the token is to be validated as usual."""
    return Reason.GENUINE if table_id in DELIVERED else VERDICTS.get(table_id)
