"""The list of metrics in the operator's guide is the table of metrics."""

import pytest

from birthmark_sma.runtime.metrics import METRICS
from checks.metric_docs import GUIDE, render, replace_list


def test_the_guide_lists_every_metric() -> None:
    """After a change of the table, run `python -m checks.metric_docs`."""
    page = GUIDE.read_text(encoding="utf-8")
    assert replace_list(page) == page
    assert render() in page


def test_every_metric_has_one_row_and_a_sentence() -> None:
    names = [each.name for each in METRICS]
    assert len(set(names)) == len(names) > 20
    assert all(each.help.endswith(".") for each in METRICS)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        replace_list("a page")
