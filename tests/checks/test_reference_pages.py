"""The generated parts of docs/ are made from the code as it is now."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from birthmark_sma.runtime.metrics import METRICS
from birthmark_sma.storage.schema import metadata
from checks.reference_pages.marks import replace_part, table
from checks.reference_pages.pages import DOCS, make_files
from checks.reference_pages.problems import REMEDIES
from checks.reference_pages.schema_diagram import GROUPS, list_references
from checks.reference_pages.schema_tables import COLUMNS

SURFACE = Path(__file__).parents[1] / "public_surface"
FILES = make_files()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_up_to_date(name: str) -> None:
    """If not, run `make reference-pages`."""
    assert (DOCS / name).read_text(encoding="utf-8") == FILES[name]


def test_openapi_json_is_the_document_of_a_server() -> None:
    """The recorded public surface comes from a running application."""
    recorded = json.loads((SURFACE / "openapi.json").read_text(encoding="utf-8"))["document"]
    made = json.loads(FILES["openapi.json"])
    assert made["openapi"].startswith("3.1")
    assert {p: sorted(o) for p, o in made["paths"].items()} == {
        p: sorted(o) for p, o in recorded["paths"].items()
    }
    assert sorted(made["components"]["schemas"]) == sorted(recorded["components"]["schemas"])


def test_every_problem_type_has_its_statuses_and_a_remedy() -> None:
    types = json.loads((SURFACE / "problems.json").read_text(encoding="utf-8"))["types"]
    recorded = {
        name.rpartition(":")[2]: {each.split()[0] for each in titles}
        for name, titles in types.items()
    }
    assert {name: set(status.split(", ")) for name, (status, *_) in REMEDIES.items()} == recorded


def test_every_column_is_described() -> None:
    schema = {of.name: [column.name for column in of.columns] for of in metadata.tables.values()}
    assert {name: list(columns) for name, columns in COLUMNS.items()} == schema


def test_no_table_has_a_column_for_a_person() -> None:
    """The register holds devices, and nobody's name, e-mail address or location."""
    words = re.compile(r"owner|user|e?mail|phone|customer|latitude|(?<!re)place")
    assert [name for columns in COLUMNS.values() for name in columns if words.search(name)] == []


def test_the_diagram_has_every_table_once_and_every_foreign_key() -> None:
    drawn = [name for names in GROUPS.values() for name in names]
    assert sorted(drawn) == sorted(metadata.tables)
    picture = ElementTree.fromstring(FILES["schema.svg"])
    lines = [each for each in picture.iter() if each.get("class", "").startswith("line")]
    keys = [key for of in metadata.tables.values() for key in of.foreign_keys]
    references = list(list_references())
    assert len(lines) == len(references) > len(keys) >= 3
    assert sum(not logical for _, _, logical in references) == len(keys)


def test_every_metric_has_one_row_and_a_sentence() -> None:
    names = [each.name for each in METRICS]
    assert len(set(names)) == len(names) > 20
    assert all(each.help.endswith(".") for each in METRICS)


def test_a_part_is_replaced_between_its_marks_alone() -> None:
    page = (
        "before\n<!-- generated: x; run `make reference-pages` -->\nold\n<!-- end of x -->\nafter\n"
    )
    made = replace_part(page, "x", "new")
    assert "old" not in made
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert replace_part(made, "x", "new") == made


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        replace_part("a page", "x", "text")


def test_a_cell_cannot_break_its_table() -> None:
    assert table(("a",), [("x | y\nz",)]).splitlines()[2] == r"| x \| y z |"
