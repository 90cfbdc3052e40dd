"""docs/operate/faults.md lists the faults that the script plays, and its figures are the script's.

The faults themselves are played by `make faults` alone.
"""

import json
import re
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.catalog import FAULTS
from tests.faults.fault import Result

RESULT = Result.broken(FAULTS[0])


def test_there_are_forty_faults() -> None:
    """Each has a name of its own on its bed."""
    names = {(each.bed, each.name) for each in FAULTS}
    assert len(names) == len(FAULTS) >= 40


def test_the_page_lists_the_faults_that_are_played() -> None:
    """If not, run `make faults`, or `make faults ONLY=...` for a new one."""
    text = page.PAGE.read_text(encoding="utf-8")
    part = text.partition(page.BEGIN)[2].partition(page.END)[0]
    listed = re.findall(r"^\| (.+?) \| ", part, re.MULTILINE)
    assert [each for each in listed if each not in {"fault", "---"}] == [
        each.name for each in FAULTS
    ]


def test_the_page_is_made_of_its_figures() -> None:
    """And none of them is a loss, or a probe that did not tell the truth."""
    figures = page.PAGE.with_suffix(".json")
    results = page.read(figures)
    machine = json.loads(figures.read_text(encoding="utf-8"))["machine"]
    assert page.render(machine, results) in page.PAGE.read_text(encoding="utf-8")
    assert [each.name for each in results if each.complaints] == []
    assert {(each.lost, each.doubled, each.wrong) for each in results} == {(0, 0, 0)}


def test_a_part_of_the_faults_renews_its_rows_alone(tmp_path: Path) -> None:
    """The order is that of the list, and text outside the marks stays."""
    document = tmp_path / "faults.md"
    document.write_text(f"before\n\n{page.BEGIN}\n{page.END}\n\nafter\n", encoding="utf-8")
    machine = {"measured": "2026-11-29 18:00", "commit": "abc", "cores": "2"}
    page.write(machine, [Result.broken(each) for each in reversed(FAULTS[:3])], document)
    page.write(machine, [Result(**(vars(RESULT) | {"acknowledged": 1_234}))], document)
    text = document.read_text(encoding="utf-8")
    assert text.startswith(
        f"before\n\n{page.BEGIN}\n\n3 faults, 1,234 acknowledged verdicts: 0 lost"
    )
    assert text.endswith(f"|\n\n{page.END}\n\nafter\n")
    places = [text.index(f"| {each.name} |") for each in FAULTS[:3]]
    assert places == sorted(places)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    document.write_text("nothing here", encoding="utf-8")
    with pytest.raises(ValueError, match="no place"):
        page.write({"measured": ""}, [], document)
