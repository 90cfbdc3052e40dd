"""Table ids for which a sandbox has its verdict ready, whatever else is in the token. PURE."""

from collections.abc import Mapping

from birthmark_sma.protocol.verdict import Reason

FIRST_SCRIPTED_TABLE = 9_000
"""From here on table ids are scripts: a sandbox has no key table of its own so high."""

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
}
"""The verdicts to be had."""

ALREADY_SUBMITTED = 9_409
"""Recorded as PASS, and the caller is told no verdict."""
DELIVERED = frozenset({ALREADY_SUBMITTED, 9_900, 9_903, 9_906, 9_907})
"""Scripts that the authority is asked about, sooner or later, and then it is PASS."""


def scripted_reason(table_id: int) -> Reason | None:
    """Return the verdict that a table id asks for, or None where the token is judged."""
    return Reason.GENUINE if table_id in DELIVERED else VERDICTS.get(table_id)
