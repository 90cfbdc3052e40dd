"""The rules for changes of status: which act does what to which device."""

from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.states import (
    Act,
    Effect,
    StatusChange,
    judge,
    list_acts,
    weaker_than,
)
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.pki.crl import HOLD, REASONS
from birthmark_sma.protocol.verdict import DeviceStatus
from tests.support.devices.actors import ACTOR

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CHANGED, UNCHANGED, REFUSED = Effect.CHANGED, Effect.UNCHANGED, Effect.REFUSED
COMPROMISED = "key_compromise"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (states.suspend(ACTOR), (CHANGED, UNCHANGED, REFUSED, REFUSED)),
        (states.reinstate(ACTOR), (UNCHANGED, CHANGED, REFUSED, REFUSED)),
        (states.revoke(ACTOR, "unspecified"), (CHANGED, CHANGED, UNCHANGED, CHANGED)),
        (states.retire(ACTOR), (CHANGED, CHANGED, REFUSED, UNCHANGED)),
    ],
)
def test_every_act_on_every_status(change: StatusChange, expected: tuple[Effect, ...]) -> None:
    """The statuses in their order: active, suspended, revoked, retired."""
    assert tuple(judge(change, each, "unspecified", None) for each in DeviceStatus) == expected


REVOCATIONS = [
    # the revoked device's reason and time, those of the new act, and its effect
    ("unspecified", None, COMPROMISED, None, CHANGED),
    ("superseded", None, COMPROMISED, NOW - DAY, CHANGED),
    ("superseded", None, "privilege_withdrawn", None, CHANGED),
    ("superseded", None, "cessation_of_operation", None, UNCHANGED),
    ("privilege_withdrawn", None, "superseded", None, UNCHANGED),
    ("unspecified", None, "affiliation_changed", None, UNCHANGED),
    (COMPROMISED, None, "unspecified", None, UNCHANGED),
    (COMPROMISED, NOW - DAY, "superseded", None, UNCHANGED),
    (COMPROMISED, NOW - DAY, COMPROMISED, NOW - DAY, UNCHANGED),
    (COMPROMISED, NOW - DAY, COMPROMISED, NOW - 2 * DAY, CHANGED),
    (COMPROMISED, NOW - DAY, COMPROMISED, None, CHANGED),  # unknown since when: never accepted
    (COMPROMISED, None, COMPROMISED, NOW - DAY, CHANGED),  # it is known now
    (None, None, COMPROMISED, None, CHANGED),
    (None, None, "superseded", None, CHANGED),  # an operator's own SQL did not list it
]


@pytest.mark.parametrize(("reason", "since", "new_reason", "new_since", "effect"), REVOCATIONS)
def test_a_revoked_device_is_revoked_again(
    reason: str | None,
    since: datetime | None,
    new_reason: str,
    new_since: datetime | None,
    effect: Effect,
) -> None:
    """Only for a reason for which more is rejected, or another time of the compromise."""
    change = states.revoke(ACTOR, new_reason, new_since)
    assert judge(change, DeviceStatus.REVOKED, reason, since) is effect


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_of_a_revocation(reason: str) -> None:
    """All but the one that may end again."""
    states.revoke(ACTOR, reason).check(NOW)


@pytest.mark.parametrize("reason", ["", HOLD, "KEY_COMPROMISE", "ca_compromise"])
def test_other_reasons_are_told(reason: str) -> None:
    """With those that there are."""
    with pytest.raises(DeviceStatusError, match=COMPROMISED):
        states.revoke(ACTOR, reason).check(NOW)


def test_since_when_a_key_is_compromised() -> None:
    """A time of the past, and of a compromise."""
    states.revoke(ACTOR, COMPROMISED, NOW).check(NOW)
    for since in (NOW + timedelta(seconds=1), datetime(1969, 12, 31, tzinfo=UTC)):
        with pytest.raises(DeviceStatusError, match="future, or before 1970"):
            states.revoke(ACTOR, COMPROMISED, since).check(NOW)
    for reason in set(REASONS) - {COMPROMISED}:
        with pytest.raises(DeviceStatusError, match=COMPROMISED):
            states.revoke(ACTOR, reason, NOW).check(NOW)


def test_what_an_act_leaves_behind() -> None:
    """A reason of RFC 5280, and a status."""
    assert states.suspend(ACTOR).reason == HOLD
    assert states.retire(ACTOR).reason == "cessation_of_operation"
    assert [act.status for act in Act] == ["suspended", "active", "revoked", "retired"]
    assert [act for act in Act if act.is_final] == [Act.REVOKE, Act.RETIRE]


@pytest.mark.parametrize(
    ("reason", "weaker"),
    [
        ("certificate_hold", set()),
        ("superseded", {"certificate_hold"}),
        ("cessation_of_operation", {"certificate_hold"}),
        ("unspecified", {"certificate_hold", "superseded", "cessation_of_operation"}),
        ("privilege_withdrawn", {"certificate_hold", "superseded", "cessation_of_operation"}),
        ("key_compromise", {"certificate_hold", *REASONS}),
    ],
)
def test_a_listed_reason_only_gets_stronger(reason: str, weaker: set[str]) -> None:
    """Every final reason replaces a hold; a compromise may get another time."""
    assert set(weaker_than(reason)) == weaker


@pytest.mark.parametrize("status", DeviceStatus)
def test_the_acts_that_can_change_a_device(status: DeviceStatus) -> None:
    """Those that are offered for a status, and no others."""
    listed = None if status is DeviceStatus.ACTIVE else "superseded"
    changes = (
        *(states.suspend(ACTOR), states.reinstate(ACTOR), states.retire(ACTOR)),
        states.revoke(ACTOR, "key_compromise"),
    )
    found = {e.act for e in changes if judge(e, status, listed, None) is Effect.CHANGED}
    assert set(list_acts(status)) == found
