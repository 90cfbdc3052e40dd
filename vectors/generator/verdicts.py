"""Generate verdict_test.json: the verdict and its reason, for every combination of the inputs."""

from itertools import product

from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.protocol.verdict import DeviceRecord, DeviceStatus, LiveEpochs, Reason, decide
from vectors.generator.document import Case, Document, Group, Result

_SIZES = TableSizes(tables=2_500, keys_per_table=1_000)
_ASSIGNED = (3, 42, 2_499)
_NOTES = {
    reason.name.title().replace("_", ""): text
    for reason, text in {
        Reason.UNKNOWN_TABLE: "There is no such table: the caller is told so (400 at the API).",
        Reason.UNKNOWN_KEY_INDEX: "The table has no such key: the caller is told so (400, too).",
        Reason.NOT_OPENED: "The token does not open under the derived key.",
        Reason.UNKNOWN_DEVICE: "No device has this NUC hash.",
        Reason.TABLE_NOT_ASSIGNED: "The device was not given this table.",
        Reason.DEVICE_SUSPENDED: "The device is suspended.",
        Reason.DEVICE_REVOKED: "The device is revoked.",
        Reason.DEVICE_RETIRED: "The device is out of use.",
        Reason.GENUINE: "Nothing speaks against it.",
    }.items()
}


def make() -> Document:
    """Decide every combination of the inputs of the rules."""
    tests = []
    for table, index, opened, device in product(
        (42, 0, 2_499, 2_500), (0, 999, 1_000), (True, False), (None, *DeviceStatus)
    ):
        if device is not None and not opened:
            continue  # its device is unknown
        record = None if device is None else DeviceRecord(device, _ASSIGNED)
        reason = decide(
            sizes=_SIZES,
            table_id=table,
            key_index=index,
            opened=(0,) if opened else (),
            live=LiveEpochs(),
            device=record,
        )
        who = "unknown device" if device is None else f"{device} device"
        comment = f"table {table}, index {index}, {'opened' if opened else 'not opened'}, {who}"
        fields = {
            "tableId": table,
            "keyIndex": index,
            "opened": opened,
            "device": None
            if device is None
            else {"status": device.value, "tableAssignments": list(_ASSIGNED)},
            "verdict": reason.verdict.value,
            "reason": reason.value,
            "toldToCaller": reason.told_to_caller,
        }
        result: Result = "valid" if reason is Reason.GENUINE else "invalid"
        flag = reason.name.title().replace("_", "")
        tests.append(Case(comment, result, fields, (flag,)))
    return Document(
        algorithm="Verdict",
        schema="schemas/verdict_test_schema.json",
        header=[
            "PASS (valid) or FAIL (invalid) for a well-formed camera token. The first rule that"
            " speaks against it gives the reason.",
            "The reason is for the audit trail; a caller is told no more than toldToCaller.",
            "All key tables have their first keys: none was rotated.",
        ],
        notes=_NOTES,
        groups=[
            Group(
                "Verdict", tests, {"tables": _SIZES.tables, "keysPerTable": _SIZES.keys_per_table}
            )
        ],
    )
