"""When a camera renews: inside its window, at a time that nobody else knows, and never too late."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.device.renewal.schedule import (
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    Plan,
    Window,
    default_window,
    later,
    parse_plan,
    parse_window,
    renewal_time,
    share_of,
)

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = BEGINS + timedelta(days=730)
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
WINDOWS = st.tuples(TIMES, TIMES).filter(lambda pair: pair[0] < pair[1])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@given(WINDOWS, st.floats(0, 1))
def test_the_time_is_in_the_window_or_before_the_certificates_last_months(
    window: tuple[datetime, datetime], share: float
) -> None:
    chosen = renewal_time(Window(*window), share, begins=BEGINS, ends=ENDS)
    latest = BEGINS + (ENDS - BEGINS) * 11 / 12
    assert window[0] <= chosen <= window[1] or chosen == latest
    assert chosen <= latest + timedelta(seconds=1)


def test_a_window_beyond_the_end_strands_nobody() -> None:
    """An authority that suggests the year 9000 does not stop the renewal."""
    window = Window(datetime(9000, 1, 1, tzinfo=UTC), datetime(9001, 1, 1, tzinfo=UTC))
    assert renewal_time(window, 0.5, begins=BEGINS, ends=ENDS) < ENDS - timedelta(days=60)


def test_the_default_window() -> None:
    window = default_window(BEGINS, ENDS)
    assert (window.start - BEGINS) / (ENDS - BEGINS) == pytest.approx(2 / 3)
    assert (window.end - BEGINS) / (ENDS - BEGINS) == pytest.approx(5 / 6)


def test_the_shares_of_a_fleet_are_spread_evenly() -> None:
    """Each certificate of each camera has its own, and keeps it."""
    shares = sorted(share_of(bytes([n % 256]) * 32, n.to_bytes(2, "big")) for n in range(2_000))
    assert all(abs(share - n / 2_000) < 0.05 for n, share in enumerate(shares))
    assert share_of(bytes(32), b"a") == share_of(bytes(32), b"a") != share_of(bytes(32), b"b")


def wire(start: str, end: str) -> bytes:
    return json.dumps({"suggestedWindow": {"start": start, "end": end}}).encode()


def test_a_window_of_the_authority() -> None:
    """RFC 9773, section 4.2. Members that are not known are ignored."""
    window = parse_window(wire("2027-05-01T00:00:00Z", "2027-06-01T02:00:00+02:00"))
    assert window == Window(datetime(2027, 5, 1, tzinfo=UTC), datetime(2027, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"[" * 100_000,
        b'{"suggestedWindow": 7}',
        wire("2027-05-01T00:00:00Z", "2027-05-01T00:00:00Z"),
        wire("2027-05-02T00:00:00Z", "2027-05-01T00:00:00Z"),
        wire("2027-05-01T00:00:00", "2027-06-01T00:00:00"),
        wire("0001-01-01T00:00:00+23:00", "2027-06-01T00:00:00Z"),
        wire("tomorrow", "later"),
    ],
)
def test_no_window(content: bytes) -> None:
    """Threat 21: the camera uses its own then."""
    assert parse_window(content) is None


@given(ANY_JSON)
def test_any_json_is_a_window_or_none(value: object) -> None:
    for content in (value, {"suggestedWindow": value}, {"suggestedWindow": {"start": value}}):
        assert parse_window(json.dumps(content).encode()) is None


PLAN = Plan("ab" * 32, BEGINS, 3, Window(BEGINS, ENDS))


@pytest.mark.parametrize("plan", [PLAN, Plan("ab" * 32, BEGINS)])
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    assert parse_plan(plan.to_json()) == plan


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"null", PLAN.to_json()[:-3], PLAN.to_json().replace(b": 3", b": true")],
)
def test_a_damaged_plan_is_none(content: bytes) -> None:
    assert parse_plan(content) is None


@given(ANY_JSON, st.sampled_from(["certificate", "step_at", "attempts", "window"]))
def test_no_file_is_an_accident(value: object, name: str) -> None:
    fields = json.loads(PLAN.to_json()) | {name: value}
    plan = parse_plan(json.dumps(fields).encode())
    assert plan is None or plan.to_json() == json.dumps(fields).encode()


def test_the_pauses_are_bounded() -> None:
    assert later(BEGINS, 0) == BEGINS + timedelta(seconds=SHORTEST_SECONDS)
    assert later(BEGINS, 1e12) == BEGINS + timedelta(seconds=LONGEST_SECONDS)
    last = datetime.max.replace(tzinfo=UTC)
    assert later(last, 60) == last


def test_a_step_that_is_too_far_away_is_due() -> None:
    """The clock was years ahead when it was planned, and has been set since."""
    assert PLAN.seconds_left(BEGINS - timedelta(seconds=5)) == 5
    assert PLAN.seconds_left(BEGINS + timedelta(seconds=5)) == 0
    assert PLAN.seconds_left(BEGINS - timedelta(days=2)) == 0
