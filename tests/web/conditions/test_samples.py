"""Questions to the metrics of the last minutes."""

import pytest

from birthmark_sma.web.conditions.samples import History, Labels, Snapshot, parse_snapshot


def counted(*values: float | None, every: float = 60.0, name: str = "c") -> History:
    """Return the history of one counter, whose value is missing where it is None."""
    history = History()
    for number, value in enumerate(values):
        samples: dict[Labels, float] = {} if value is None else {(): value}
        history.add(Snapshot(number * every, {name: samples}))
    return history


def test_only_named_samples_are_kept() -> None:
    text = (
        '# TYPE c counter\nc_total{b="2",a="1"} 3.0\n# TYPE g gauge\ng 7\n'
        '# TYPE h histogram\nh_bucket{le="+Inf"} 4\nh_count 4\nh_sum 1\n'
    )
    known: dict[Labels, Labels] = {}
    wanted: dict[str, dict[str, str]] = {"c_total": {"a": "1"}, "h_bucket": {}, "absent": {}}
    snapshot = parse_snapshot(text, 1.0, wanted, known)
    assert snapshot.samples == {
        "c_total": {(("a", "1"), ("b", "2")): 3.0},
        "h_bucket": {(("le", "+Inf"),): 4.0},
        "absent": {},
    }
    again = parse_snapshot(text, 2.0, wanted | {"c_total": {"a": "2"}}, known)
    assert again.samples["c_total"] == {}
    assert len(known) == 2


@pytest.mark.parametrize(
    ("values", "seconds", "rise"),
    [
        ([5], 300, 0),
        ([5, 5], 300, 0),
        ([5, 8], 300, 3),
        ([0, 9, 9, 9], 60, 0),
        ([9, 2], 300, 2),
        ([None, 1_000_000], 300, 0),
        ([None, 1_000_000, 1_000_001], 300, 1),
        ([7, None], 300, 0),
        ([None, None], 300, 0),
    ],
    ids=str,
)
def test_increases(values: list[float | None], seconds: float, rise: float) -> None:
    """A reset counts from 0. A counter that nobody could read before has not risen."""
    assert counted(*values).rise("c", seconds) == rise


def test_a_new_label_has_risen_from_zero() -> None:
    history = History()
    history.add(Snapshot(0.0, {"c": {(("kind", "a"),): 1.0}}))
    history.add(Snapshot(60.0, {"c": {(("kind", "a"),): 1.0, (("kind", "b"),): 4.0}}))
    assert history.rises("c", "kind", 300) == {"a": 0.0, "b": 4.0}
    assert history.rate("c", 300, kind="b") == pytest.approx(4 / 60)
    assert history.rate("c", 300, kind="a|c") == 0


def test_what_is_older_than_a_window_is_forgotten() -> None:
    history = counted(*range(100))
    assert history.rise("c", 5 * 60) == 5
    assert history.rise("c", 10**6) == 16


def test_a_clock_that_was_set_back() -> None:
    """The samples from the future are dropped; nothing is divided by a negative time."""
    history = counted(0, 100)
    history.add(Snapshot(30.0, {"c": {(): 103.0}}))
    assert history.rate("c", 300) == pytest.approx(103 / 30)
    history.add(Snapshot(-1_000.0, {"c": {(): 104.0}}))
    assert history.rate("c", 300) == 0


def test_quantiles() -> None:
    """Linear within a bucket, as in PromQL; the last finite bound for what is above it."""

    def bucket(le: str, value: float) -> tuple[tuple[tuple[str, str], ...], float]:
        return (("le", le), ("route", "/a")), value

    history = History()
    history.add(Snapshot(0.0, {"h_bucket": dict([bucket("1.0", 0), bucket("+Inf", 0)])}))
    assert history.quantile(0.5, "h", 300, route="/a") is None
    half = dict([bucket("1.0", 50), bucket("2.0", 100), bucket("+Inf", 100)])
    history.add(Snapshot(60.0, {"h_bucket": half}))
    assert history.quantile(0.75, "h", 300, route="/a") == pytest.approx(1.5)
    assert history.quantile(0.25, "h", 300, route="/a") == pytest.approx(0.5)
    assert history.quantile(0.5, "h", 300, route="/b") is None
    late = dict([bucket("1.0", 50), bucket("2.0", 100), bucket("+Inf", 900)])
    history.add(Snapshot(120.0, {"h_bucket": late}))
    assert history.quantile(0.99, "h", 300, route="/a") == 2.0


def test_changes() -> None:
    assert counted(2, 2, 1, None, 2, 2).changes("c", 15 * 60) == 2
