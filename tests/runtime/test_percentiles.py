"""Percentiles of a while, held against what can be counted by hand."""

import random
from bisect import bisect_left
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.runtime.percentiles import Snapshots, quantile

BOUNDS = (1, 2, 5, 10)


def histogram(*amounts: int) -> list[int]:
    counts = [0] * (len(BOUNDS) + 1)
    for amount in amounts:
        counts[bisect_left(BOUNDS, amount)] += 1
    return list(accumulate(counts))


@pytest.mark.parametrize(
    ("counts", "share", "told"),
    [
        ([0, 0, 0, 0, 0], 0.5, None),
        ([4, 4, 4, 4, 4], 0.5, 0.5),  # evenly between 0 and 1
        ([0, 4, 4, 4, 4], 0.5, 1.5),
        ([0, 0, 10, 20, 20], 0.5, 5.0),  # exactly on a bound
        ([0, 0, 10, 20, 20], 0.75, 7.5),
        ([0, 0, 0, 0, 3], 0.5, 10.0),  # above all bounds
        ([98, 98, 98, 98, 100], 0.99, 10.0),
        ([0, 0, 1, 1, 1], 1.0, 5.0),
        ([0, 0, 0, 1, 1], 0.0, 5.0),
    ],
)
def test_quantiles(counts: list[int], share: float, told: float | None) -> None:
    """The values that Prometheus' histogram_quantile gives."""
    assert quantile(BOUNDS, counts, share) == told


@given(
    st.lists(st.integers(min_value=1, max_value=10), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.95, 0.99]),
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(amounts: list[int], share: float) -> None:
    told = quantile(BOUNDS, histogram(*amounts), share)
    assert told is not None
    rank = share * len(amounts)
    true = next(n for place, n in enumerate(sorted(amounts), 1) if place >= rank)
    bucket = bisect_left(BOUNDS, true)
    assert (BOUNDS[bucket - 1] if bucket else 0) <= told <= BOUNDS[bucket]


def test_quantiles_never_cross() -> None:
    chance = random.Random(7)
    for _ in range(200):
        counts = histogram(*(chance.randrange(20) for _ in range(chance.randrange(1, 50))))
        told = [quantile(BOUNDS, counts, share) for share in (0.5, 0.95, 0.99)]
        assert told == sorted(told, key=lambda each: each or 0)


def test_what_is_older_than_the_while_does_not_count() -> None:
    looks = Snapshots(300)
    assert looks.since_the_first() == []
    looks.take(0, [5, 5])
    assert looks.since_the_first() == [0, 0], "what came before the first look is of no interest"
    looks.take(1, [5, 9])
    assert looks.since_the_first() == [0, 4]
    looks.take(301, [6, 9])
    assert looks.since_the_first() == [1, 0], "of the look at 0 nothing is left, of that at 1 all"
    looks.take(10_000, [8, 12])
    assert looks.since_the_first() == [0, 0], "after a long sleep nothing is known of the while"
