"""Renewal windows: within their bounds, spread over the fleet, and pulled forward by orders."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.renewal.windows import (
    OrderTime,
    RenewalCriteria,
    RenewalTarget,
    next_check,
    pull_forward,
    usual_window,
)
from birthmark_sma.protocol.verdict import DeviceStatus

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TWO_YEARS = 730 * DAY
serials = st.integers(2**63, 2**159 - 1).map(lambda number: f"{number:x}")
validities = st.timedeltas(timedelta(hours=1), TWO_YEARS)
criteria = RenewalCriteria()
TARGET = RenewalTarget(
    certificate_issuer="intermediate",
    device_family="Android",
    app_version="1.4.0",
    table_assignments=(3, 42, 99),
    status=DeviceStatus.ACTIVE,
    issued_at=NOW - DAY,
)


def order_of(wanted: RenewalCriteria = criteria, within: timedelta = 7 * DAY) -> OrderTime:
    """Return an order from now."""
    return OrderTime(wanted, NOW, NOW + within)


@given(serials, validities)
def test_a_window_starts_between_two_thirds_and_five_sixths(
    serial: str, validity: timedelta
) -> None:
    window = usual_window(serial, NOW, NOW + validity)
    a_second = timedelta(seconds=1)
    assert NOW + validity * 2 / 3 - a_second <= window.start <= NOW + validity * 5 / 6
    length = min(30 * DAY, validity / 24)
    assert window.end - window.start == length
    assert window.end < NOW + validity
    assert usual_window(serial, NOW, NOW + validity) == window


def test_the_windows_of_a_fleet_are_spread() -> None:
    """A fleet of one day: each twelfth of the time has its share of the starts, within a fifth."""
    starts = [
        usual_window(f"{2**64 + number:x}", NOW, NOW + TWO_YEARS).start for number in range(12_000)
    ]
    earliest, width = NOW + TWO_YEARS * 2 / 3, TWO_YEARS / 6 / 12
    parts = [0] * 12
    for start in starts:
        parts[min(11, max(0, (start - earliest) // width))] += 1
    assert all(800 <= count <= 1_200 for count in parts), parts


@given(serials, st.timedeltas(timedelta(seconds=1), timedelta(minutes=2)))
def test_the_window_of_a_short_order_is_not_empty_in_whole_seconds(
    serial: str, within: timedelta
) -> None:
    """A device that gets an empty window ignores the order."""
    window = order_of(within=within).share(serial)
    assert window.start.replace(microsecond=0) < window.end.replace(microsecond=0)


@given(serials, st.timedeltas(timedelta(minutes=1), 365 * DAY))
def test_an_order_gives_each_device_a_share_of_its_time(serial: str, within: timedelta) -> None:
    order = order_of(within=within)
    share = order.share(serial)
    assert NOW - timedelta(seconds=1) <= share.start
    assert share.end <= order.ends_at
    assert share.end - share.start == within / 24


@given(serials, st.timedeltas(-700 * DAY, timedelta(0)))
def test_an_order_never_puts_a_renewal_off(serial: str, age: timedelta) -> None:
    """The earlier of both counts, however old the certificate is."""
    usual = usual_window(serial, NOW + age, NOW + age + TWO_YEARS)
    share = order_of().share(serial)
    pulled = pull_forward(usual, serial, [order_of()])
    assert pulled == (usual if usual.start < share.start else share)
    assert pull_forward(usual, serial, []) == usual


@pytest.mark.parametrize(
    "wanted",
    [
        RenewalCriteria(),
        RenewalCriteria(certificate_issuer="intermediate"),
        RenewalCriteria(device_family="Android"),
        RenewalCriteria(app_version="1.4.0"),
        RenewalCriteria(table_id=42),
        RenewalCriteria("intermediate", "Android", "1.4.0", 99),
    ],
)
def test_an_order_names_the_devices_that_meet_every_criterion(wanted: RenewalCriteria) -> None:
    assert order_of(wanted).matches(TARGET)


@pytest.mark.parametrize(
    "wanted",
    [
        RenewalCriteria(certificate_issuer="intermediate-2"),
        RenewalCriteria(device_family="android"),
        RenewalCriteria(app_version="1.4"),
        RenewalCriteria(table_id=4),
        RenewalCriteria("intermediate", "Android", "1.4.0", 98),
    ],
)
def test_one_criterion_that_is_not_met_is_enough(wanted: RenewalCriteria) -> None:
    assert not order_of(wanted).matches(TARGET)


def test_a_device_without_an_app_version_has_none_that_is_ordered() -> None:
    without = replace(TARGET, app_version=None)
    assert not order_of(RenewalCriteria(app_version="1.4.0")).matches(without)
    assert order_of().matches(without)


def test_a_certificate_that_was_issued_later_is_not_named() -> None:
    """Otherwise a device that has renewed would renew again."""
    assert not order_of().matches(replace(TARGET, issued_at=NOW))
    assert order_of().matches(replace(TARGET, issued_at=NOW - timedelta(microseconds=1)))


@pytest.mark.parametrize("status", sorted(set(DeviceStatus) - {DeviceStatus.ACTIVE}))
def test_only_active_devices_are_named(status: DeviceStatus) -> None:
    """The others cannot renew, so they would be stragglers for ever."""
    assert not order_of().matches(replace(TARGET, status=status))


def test_devices_ask_more_often_while_an_order_names_them() -> None:
    assert next_check([]) == timedelta(hours=6)
    assert next_check([order_of(within=7 * DAY)]) == timedelta(hours=6)
    assert next_check([order_of(within=DAY)]) == timedelta(hours=1)
    assert next_check([order_of(within=DAY), order_of(within=timedelta(hours=12))]) == timedelta(
        minutes=30
    )
    assert next_check([order_of(within=timedelta(minutes=5))]) == timedelta(minutes=1)
