"""Durations of options: what is read, and what is refused with a sentence."""

from datetime import timedelta

import pytest
from typer import BadParameter

from birthmark_sma.cli.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("0", timedelta()),
        ("0d", timedelta()),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        (" 12h ", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("3650d", timedelta(days=3_650)),
        ("315360000s", timedelta(days=3_650)),
    ],
)
def test_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text, "--for", may_be_zero=True) == duration


@pytest.mark.parametrize(
    "text", ["", "30", "d", "-1d", "1.5d", "30 d", "1y", "٣d", "3651d", "999999999w", "9" * 99]
)
def test_anything_else_is_refused(text: str) -> None:
    match = r"is no duration|is longer than 3,650 days"
    with pytest.raises(BadParameter, match=match) as refused:
        parse_duration(text, "--for", may_be_zero=True)
    assert refused.value.param_hint == "--for"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("0", "at least a second"), ("0w", "at least a second"), ("91d", "longer than 90 days")],
)
def test_limits_of_an_option(text: str, reason: str) -> None:
    with pytest.raises(BadParameter, match=reason):
        parse_duration(text, "--for", longest=timedelta(days=90))
