"""Rates as operators write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import ConfigurationError, RateRefusedError
from birthmark_sma.rates import Rate, burst_of, parse_rates


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("600/minute", [(600, 60)]),
        ("100/second", [(100, 1)]),
        ("10 per 2 hours", [(10, 7_200)]),
        ("1000/day; 20/second", [(20, 1), (1_000, 86_400)]),
        ("5/second|7 PER 3minutes, 9/month", [(5, 1), (7, 180), (9, 2_592_000)]),
        ("none", []),
        (" None ", []),
    ],
)
def test_rates_are_read_as_people_write_them(text: str, rates: list[Rate]) -> None:
    """The shortest window comes first."""
    assert list(parse_rates(text)) == rates


@pytest.mark.parametrize(
    "text",
    [
        "",
        "600",
        "600/fortnight",
        "600/minute;",
        "600/minute 20/second",
        "\N{ARABIC-INDIC DIGIT THREE}/minute",
        "0/minute",
        "-1/minute",
        "1000000001/minute",
        "1/13 months",
        "1/minute;2/60 seconds",
        "1/second;1/minute;1/hour;1/day;1/week",
        "1/second;1/minute;1/hour;1/day;1/month",
        "secret",
        "9" * 5_000 + "/minute",
    ],
)
def test_what_nobody_means_is_refused(text: str) -> None:
    """With a sentence, which does not repeat it."""
    with pytest.raises(RateRefusedError) as refused:
        parse_rates(text)
    assert "secret" not in str(refused.value)
    assert isinstance(refused.value, ConfigurationError)


@given(st.text(max_size=40))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    """Nothing else comes of it."""
    try:
        rates = parse_rates(text)
    except RateRefusedError:
        return
    assert all(rate.amount > 0 and rate.seconds > 0 for rate in rates)


def test_a_rate_reads_as_a_sentence_wants_it() -> None:
    assert str(Rate(600, 60)) == "600 in 60 seconds"
    assert str(Rate(3, 1)) == "3 in 1 second"


@pytest.mark.parametrize(
    ("text", "burst"),
    [
        ("300000/minute", Rate(30_000, 6)),
        ("6000/minute", Rate(600, 6)),
        ("600/minute", Rate(100, 10)),
        ("150/minute", Rate(100, 40)),
        ("36000/hour", Rate(3_600, 360)),
        ("101/minute", None),
        ("100/minute", None),
        ("5/minute", None),
        ("100000/second", None),
        ("100/second; 3000/minute", None),
        ("none", None),
    ],
)
def test_a_burst_is_a_tenth_in_a_tenth_of_the_time(text: str, burst: Rate | None) -> None:
    """But at least 100 units, and none where the window is a second or a shorter rate exists."""
    assert burst_of(parse_rates(text)) == burst
