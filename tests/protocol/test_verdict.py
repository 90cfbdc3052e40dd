"""Every combination of what is known about a camera token, and the verdict on it."""

from itertools import product
from typing import NamedTuple

import pytest

from birthmark_sma.protocol.key_table import STANDARD_SIZES
from birthmark_sma.protocol.verdict import (
    DeviceRecord,
    DeviceStatus,
    LiveEpochs,
    Reason,
    Verdict,
    bind_to_derivation,
    decide,
)

ASSIGNED = (3, 17, 2_400)


class Known(NamedTuple):
    """What is known about a camera token; `status` is None where no device has its NUC hash."""

    table_exists: bool
    index_exists: bool
    opened: bool
    status: DeviceStatus | None
    assigned: bool


EITHER = (False, True)
ANY_STATUS = (None, *DeviceStatus)
COMBINATIONS = [Known(*values) for values in product(EITHER, EITHER, EITHER, ANY_STATUS, EITHER)]

# Which values of Known lead to which reason. The rows do not overlap, so their order says nothing.
TRUTH_TABLE = [
    ([False], EITHER, EITHER, ANY_STATUS, EITHER, Reason.UNKNOWN_TABLE),
    ([True], [False], EITHER, ANY_STATUS, EITHER, Reason.UNKNOWN_KEY_INDEX),
    ([True], [True], [False], ANY_STATUS, EITHER, Reason.NOT_OPENED),
    ([True], [True], [True], [None], EITHER, Reason.UNKNOWN_DEVICE),
    ([True], [True], [True], tuple(DeviceStatus), [False], Reason.TABLE_NOT_ASSIGNED),
    ([True], [True], [True], [DeviceStatus.SUSPENDED], [True], Reason.DEVICE_SUSPENDED),
    ([True], [True], [True], [DeviceStatus.REVOKED], [True], Reason.DEVICE_REVOKED),
    ([True], [True], [True], [DeviceStatus.RETIRED], [True], Reason.DEVICE_RETIRED),
    ([True], [True], [True], [DeviceStatus.ACTIVE], [True], Reason.GENUINE),
]


def rows_of(known: Known) -> list[Reason]:
    """Return the reasons of all rows that a combination stands in."""
    return [
        reason
        for *columns, reason in TRUTH_TABLE
        if all(value in column for value, column in zip(known, columns, strict=True))
    ]


def name_of(known: Known) -> str:
    """Name a combination by what holds of it."""
    holding = [field for field, value in known._asdict().items() if value is True]
    return "-".join([*holding, known.status or "no_device"])


def judge(known: Known) -> Reason:
    """Ask for the verdict on one combination."""
    table_id = (17 if known.assigned else 18) if known.table_exists else 2_500
    assigned = (*ASSIGNED, 2_500) if known.assigned else ASSIGNED
    return decide(
        sizes=STANDARD_SIZES,
        table_id=table_id,
        key_index=999 if known.index_exists else 1_000,
        opened=(0,) if known.opened else (),
        live=LiveEpochs(),
        device=None if known.status is None else DeviceRecord(known.status, assigned),
    )


def test_the_truth_table_is_complete() -> None:
    """Every combination stands in exactly one row, so a new status cannot be forgotten."""
    assert all(len(rows_of(known)) == 1 for known in COMBINATIONS)
    assert len(COMBINATIONS) == 80


@pytest.mark.parametrize("known", COMBINATIONS, ids=name_of)
def test_truth_table(known: Known) -> None:
    """Threats 6 and 14: the reason for every combination, the table's assignment among them."""
    assert [judge(known)] == rows_of(known)


def test_only_one_combination_passes() -> None:
    """A PASS needs all of: table and index exist, opened, registered, active, table assigned."""
    passing = [known for known in COMBINATIONS if judge(known).verdict is Verdict.PASS]
    assert passing == [Known(True, True, True, DeviceStatus.ACTIVE, True)]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_verdict(reason: Reason) -> None:
    """GENUINE is the one reason for a PASS."""
    expected = Verdict.PASS if reason is Reason.GENUINE else Verdict.FAIL
    assert reason.verdict is expected


def test_what_the_caller_is_told() -> None:
    """Threat 18: only what lies in the token's address is told; all else is the authority's."""
    told = {reason: reason.told_to_caller for reason in Reason if reason.told_to_caller}
    assert told == {
        Reason.UNKNOWN_TABLE: "Unknown table ID",
        Reason.UNKNOWN_KEY_INDEX: "Unknown key index",
    }


def test_the_words_on_the_wire() -> None:
    """Verdicts and reasons are written as the contract and the audit trail write them."""
    assert [str(verdict) for verdict in Verdict] == ["PASS", "FAIL"]
    assert [str(status) for status in DeviceStatus] == ["active", "suspended", "revoked", "retired"]
    assert len({str(reason) for reason in Reason}) == len(Reason)


@pytest.mark.parametrize("table_id", ASSIGNED)
def test_each_of_the_devices_tables_passes(table_id: int) -> None:
    """All three tables of a device are its own."""
    record = DeviceRecord(DeviceStatus.ACTIVE, ASSIGNED)
    reason = decide(
        sizes=STANDARD_SIZES,
        table_id=table_id,
        key_index=0,
        opened=(0,),
        live=LiveEpochs(),
        device=record,
    )
    assert reason is Reason.GENUINE


# --- epochs: the table of the token was rotated twice, so the newest key has epoch 2

NEWEST, EARLIER, OLDEST = 2, 1, 0

# By the epoch of the key that the device has, and of the key that opened the token: the reason
# during the overlap, and after it.
EPOCHS = {
    (NEWEST, NEWEST): (Reason.GENUINE, Reason.GENUINE),
    (NEWEST, EARLIER): (Reason.GENUINE, Reason.EARLIER_EPOCH),  # pictures that waited in a queue
    (EARLIER, NEWEST): (Reason.OTHER_EPOCH, Reason.OTHER_EPOCH),
    (EARLIER, EARLIER): (Reason.GENUINE, Reason.EARLIER_EPOCH),
    (OLDEST, NEWEST): (Reason.OTHER_EPOCH, Reason.OTHER_EPOCH),
    (OLDEST, EARLIER): (Reason.OTHER_EPOCH, Reason.OTHER_EPOCH),
}


def judge_epochs(
    known: int, *opened: int, accepted: bool, status: DeviceStatus = DeviceStatus.ACTIVE
) -> Reason:
    """Return the reason for a token of a device that has the key of epoch `known` of table 17."""
    return decide(
        sizes=STANDARD_SIZES,
        table_id=17,
        key_index=0,
        opened=opened,
        live=LiveEpochs(NEWEST, accepted),
        device=DeviceRecord(status, ASSIGNED, (9, known, 9)),
    )


@pytest.mark.parametrize(("known", "opened"), EPOCHS)
def test_a_token_passes_under_the_keys_of_its_device(known: int, opened: int) -> None:
    """Under the device's own key, or during the overlap under the one before it."""
    during, after = EPOCHS[known, opened]
    assert judge_epochs(known, opened, accepted=True) is during
    assert judge_epochs(known, opened, accepted=False) is after


@pytest.mark.parametrize("known", [NEWEST, EARLIER, OLDEST])
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("status", DeviceStatus)
def test_a_token_that_opens_twice_fails(known: int, accepted: bool, status: DeviceStatus) -> None:
    """Threat 42: whatever else is right."""
    reason = judge_epochs(known, NEWEST, EARLIER, accepted=accepted, status=status)
    assert reason is Reason.OPENED_TWICE


@pytest.mark.parametrize("status", [DeviceStatus.SUSPENDED, DeviceStatus.REVOKED])
def test_no_epoch_excuses_a_status(status: DeviceStatus) -> None:
    """The status is judged first, so that the audit log names what the operator did."""
    for known, opened in EPOCHS:
        assert judge_epochs(known, opened, accepted=True, status=status).value.endswith(status)


def test_missing_epochs_are_zero() -> None:
    """Rows that are older than epochs, or that operators inserted, have none."""
    for epochs in ((), (5,)):
        record = DeviceRecord(DeviceStatus.ACTIVE, ASSIGNED, epochs)
        assert [record.epoch_of(table_id) for table_id in ASSIGNED[1:]] == [0, 0]


@pytest.mark.parametrize("reason", list(Reason))
def test_a_token_passes_under_one_derivation(reason: Reason) -> None:
    """Threat 42: only a PASS can become a FAIL by it."""
    assert bind_to_derivation(reason, 1, 1) is reason
    bound = Reason.OTHER_DERIVATION if reason is Reason.GENUINE else reason
    assert bind_to_derivation(reason, 1, 2) is bound
