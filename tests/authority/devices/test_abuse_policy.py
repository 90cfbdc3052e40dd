"""The rule that flags a device: for all counts, and for those that a person would try."""

from datetime import date, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.devices.abuse_policy import (
    AbuseEvidence,
    AbusePolicy,
    Activity,
    compared_days,
)

counts = st.integers(0, 2**63 - 1)
policies = st.builds(AbusePolicy, st.floats(1, 1_000_000), st.integers(1, 1_000_000_000))


@st.composite
def activities(draw: st.DrawFn) -> Activity:
    """What a device may have done: on each active day at least one picture."""
    days = draw(st.integers(0, 28))
    earlier = draw(st.integers(days, 28 * 2**63)) if days else 0
    return Activity(draw(counts), earlier, days)


@given(policies, activities())
def test_a_device_is_flagged_above_both_limits_and_only_there(
    policy: AbusePolicy, activity: Activity
) -> None:
    """To the picture, however large the numbers, and with the counts that caused it."""
    pictures, earlier, days = activity
    many = pictures > policy.least
    unusual = days == 0 or pictures * days > Fraction(policy.factor) * earlier
    excess = policy.judge(activity)
    assert (excess is not None) == (many and unusual)
    if excess is not None:
        assert (excess.pictures, excess.days_compared) == (pictures, days)
        assert excess.usual == pytest.approx(earlier / days if days else 0)
        assert policy.least <= excess.threshold < pictures


@given(policies, activities(), counts)
def test_more_pictures_never_clear_a_device(
    policy: AbusePolicy, activity: Activity, more: int
) -> None:
    """And a busier past never makes it look worse."""
    if policy.judge(activity) is not None:
        assert policy.judge(activity._replace(pictures=activity.pictures + more)) is not None
    elif activity.days:
        assert policy.judge(activity._replace(earlier=activity.earlier + more)) is None


@pytest.mark.parametrize(
    ("activity", "flagged"),
    [
        (Activity(500), None),
        (Activity(501), AbuseEvidence(501, 0.0, 0, 500)),
        (Activity(501, 28, 28), AbuseEvidence(501, 1.0, 28, 500)),
        (Activity(1_000, 2_800, 28), None),
        (Activity(1_001, 2_800, 28), AbuseEvidence(1_001, 100.0, 28, 1_000)),
        (Activity(1_004, 301, 3), AbuseEvidence(1_004, 301 / 3, 3, 1_003)),
        (Activity(0), None),
    ],
)
def test_by_hand(activity: Activity, flagged: AbuseEvidence | None) -> None:
    """Ten times the usual, 500 in any case."""
    assert AbusePolicy(10, 500).judge(activity) == flagged


def test_four_weeks_are_compared() -> None:
    """The day itself is not among them."""
    day = date(2026, 3, 1)
    days = compared_days(day)
    assert days[0] == date(2026, 2, 28)
    assert days[-1] == day - timedelta(days=28)
    assert len(set(days)) == 28
