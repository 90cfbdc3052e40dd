"""Figures: percentiles, medians, and a report that comes back from JSON as it went."""

from dataclasses import asdict

from bench.figures import NOOP, POSTGRESQL, SERVER, Report, Round, Series, percentile
from bench.options import Options


def round_of(rate: float) -> Round:
    return Round(rate, 1.0, 2.0, 3.0, 0.1, 0.2, 100.0)


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(each) for each in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile(values, 100) == 100
    assert percentile([7.0], 1) == 7


def test_a_report_survives_json() -> None:
    report = Report({"cores": "2"}, {"parts": ["validate"]}, faults=["a row is missing"])
    report.series.append(Series(SERVER, POSTGRESQL, 128, 100, [round_of(1.0), round_of(9.0)]))
    report.read("start", "s", 1.5)
    report.read("start", "s", 0.5)
    assert Report.from_json(report.as_json()) == report
    assert report.reading("start") == 1.0
    assert report.reading("something else") is None


def test_only_the_series_of_that_load_is_found() -> None:
    one = Series(SERVER, POSTGRESQL, 1, rounds=[round_of(1.0)])
    many = Series(SERVER, POSTGRESQL, 128, rounds=[round_of(1.0), round_of(4.0), round_of(2.0)])
    batch = Series(SERVER, POSTGRESQL, 4, 100, [round_of(1.0)])
    report = Report({}, {}, [one, many, batch, Series(NOOP, "", 128)])
    assert report.find(SERVER, POSTGRESQL, connections=128) is many
    assert report.find(SERVER, POSTGRESQL, batch=100) is batch
    assert report.find(NOOP, "", connections=128) is None, "it has no rounds"
    assert many.median("tokens_per_second") == 2.0
    assert (many.name, batch.name) == ("sma serve, PostgreSQL", "sma serve, PostgreSQL by 100")


def test_a_quick_run_says_that_it_is_small() -> None:
    assert Options().quick().small
    assert not Options().small
    assert "small" in asdict(Options())
