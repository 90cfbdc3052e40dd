"""Gauges of all processes: their sum, or the highest or lowest of them."""

import pytest

from birthmark_sma.runtime import metrics
from birthmark_sma.runtime.shared_memory_metrics import Gauge, SharedCounters, SlotAllocator


@pytest.mark.parametrize(
    ("highest", "lowest", "total"), [(False, False, 12), (True, False, 7), (False, True, 5)]
)
def test_the_value_of_all_processes(*, highest: bool, lowest: bool, total: int) -> None:
    """A process without a value yet, which is 0, is not the lowest."""
    layout = SlotAllocator()
    gauge = Gauge(layout, metrics.OCSP_RESPONDER_EXPIRY, highest=highest, lowest=lowest)
    rows = SharedCounters(3, layout.size).all()[:3]
    for row, value in zip(rows, (5, 0, 7), strict=True):
        gauge.set(row, value)
    assert gauge.total(rows) == total


def test_no_process_has_a_value() -> None:
    layout = SlotAllocator()
    gauge = Gauge(layout, metrics.OCSP_RESPONDER_EXPIRY, lowest=True)
    assert gauge.total(SharedCounters(1, layout.size).all()) == 0
