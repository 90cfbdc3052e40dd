"""Retry-After: it grows with the fault, has a bound, and is not the same for everybody."""

from collections import Counter

import pytest

from birthmark_sma.errors import (
    BirthmarkError,
    DatabaseUnavailableError,
    PoolFullError,
    RateLimitedError,
    ShuttingDownError,
)
from birthmark_sma.web.retry_after import retry_after

TRIES = 500


def spread(error: BirthmarkError, outage_seconds: float) -> Counter[int]:
    """Return how often each value comes."""
    return Counter(retry_after(error, lambda: outage_seconds) for _ in range(TRIES))


@pytest.mark.parametrize(
    ("outage", "shortest", "longest"),
    [(0, 1, 2), (2, 1, 2), (4, 2, 4), (16, 8, 16), (60, 30, 60), (86_400, 30, 60)],
)
def test_it_grows_with_the_outage(outage: float, shortest: int, longest: int) -> None:
    """It is a whole number, at least 1, and spread over its whole range."""
    seen = spread(DatabaseUnavailableError(), outage)
    assert shortest <= min(seen) < max(seen) <= longest
    assert max(seen.values()) < 0.95 * TRIES


@pytest.mark.parametrize(
    ("drain", "shortest", "longest"), [(0.0, 1, 2), (5.0, 5, 10), (1e6, 30, 60)]
)
def test_a_full_pool_tells_when_it_is_drained(drain: float, shortest: int, longest: int) -> None:
    seen = spread(PoolFullError(drain), 0)
    assert shortest <= min(seen) < max(seen) <= longest


def test_other_faults_have_the_same_jitter() -> None:
    assert set(spread(ShuttingDownError(), 0)) == {1, 2}


def test_a_rate_limit_is_exact() -> None:
    error = RateLimitedError("Too many", retry_after=17, policy="validate")
    assert set(spread(error, 60)) == {17}
