"""A number and its noun agree."""

import pytest

from birthmark_sma.counts import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 devices"), (1, "1 device"), (2, "2 devices"), (1000, "1,000 devices")],
)
def test_a_number_and_its_noun_agree(number: int, text: str) -> None:
    assert counted(number, "device") == text


def test_a_plural_of_its_own() -> None:
    assert counted(1, "key is", "keys are") == "1 key is"
    assert counted(2, "key is", "keys are") == "2 keys are"
