"""docs/performance.md gets its figures from the last run, between two marks and nowhere else."""

from pathlib import Path

import pytest

from bench import output, plot
from bench.machine import TOP
from tests.bench import canned


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "last.json").write_text(canned.report().as_json(), encoding="utf-8")
    plot.draw(canned.report(), folder / "last.png")
    return folder


def test_filling_twice_leaves_the_same(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{output.BEGIN}\n\nold figures\n\n{output.END}\n\nafter\n")
    output.fill_document(page, results)
    once = page.read_text()
    output.fill_document(page, results)
    assert page.read_text() == once
    assert once.startswith(f"before\n\n{output.BEGIN}\n\n**")
    assert once.endswith(f"(performance.png)\n\n{output.END}\n\nafter\n")
    assert "old figures" not in once
    assert "| sma serve, PostgreSQL | 128 | 10,000 |" in once
    assert (tmp_path / "performance.json").read_text() == canned.report().as_json()
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_place_is_refused(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="no place for the figures"):
        output.fill_document(page, results)


def test_the_page_itself_has_the_place() -> None:
    page = (TOP / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.index(output.BEGIN) < page.index(output.END)
