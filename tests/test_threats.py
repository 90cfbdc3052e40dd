"""Every weakness that must not be possible is named by a test that proves it is not.

A test's docstring says "Threat N" or "Threats N and M". The numbers are those of the table at the
end of docs/threat-model.md, and what that page says is shown by a test is shown by one that exists.
"""

import ast
import re
from pathlib import Path

import pytest

PROVEN = tuple(range(1, 52))
_NAMED = re.compile(r"\bThreats?\s((?:\d+(?:,\s|\sand\s)?)+)")
_ROOT = Path(__file__).parent.parent
_PAGE = (_ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
_TEST = re.compile(r"\btests/[\w/]+\.py::\w+")
_ROW = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.MULTILINE)


def docstrings_of_tests() -> dict[str, str]:
    """The docstring of every test function, by its path and name as pytest writes them."""
    return {
        f"{module.relative_to(_ROOT).as_posix()}::{node.name}": ast.get_docstring(node) or ""
        for module in Path(__file__).parent.rglob("test_*.py")
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def named_in(docstring: str) -> set[int]:
    """The numbers that a docstring names."""
    return {
        int(number)
        for numbers in _NAMED.findall(docstring)
        for number in re.findall(r"\d+", numbers)
    }


DOCSTRINGS = docstrings_of_tests()


def test_the_page_lists_the_weaknesses_that_are_proven() -> None:
    """Each once, in order, and none that no test is asked for."""
    assert [int(number) for number, _ in _ROW.findall(_PAGE)] == list(PROVEN)


@pytest.mark.parametrize("number", PROVEN)
def test_a_test_proves_that_it_is_not_possible(number: int) -> None:
    """The tests in the weakness's row exist, and say of themselves that they are about it."""
    [row] = [tests for listed, tests in _ROW.findall(_PAGE) if int(listed) == number]
    tests = _TEST.findall(row)
    assert tests
    assert [test for test in tests if number not in named_in(DOCSTRINGS.get(test, ""))] == []


@pytest.mark.parametrize("test", sorted(set(_TEST.findall(_PAGE))))
def test_what_the_page_names_exists(test: str) -> None:
    assert test in DOCSTRINGS


def test_no_docstring_names_a_weakness_that_is_not_listed() -> None:
    beyond = {
        test: numbers
        for test, docstring in DOCSTRINGS.items()
        if (numbers := named_in(docstring) - set(PROVEN))
    }
    assert beyond == {}


def test_every_cannot_names_a_test() -> None:
    """A claim that nothing shows would be a wish."""
    parties = _PAGE.partition("## Parties\n")[2].partition("\n## ")[0]
    claims = re.findall(r"^\* .*(?:\n  .*)*", parties, re.MULTILINE)
    assert len(claims) > 40
    assert [claim for claim in claims if not _TEST.search(claim)] == []


def test_numbers_are_read_from_docstrings() -> None:
    assert named_in("Threat 7: the answer carries keys.") == {7}
    assert named_in("Threats 1, 2 and 31. Threat 2: extensions.") == {1, 2, 31}
    assert named_in("Threatening 5") == set()
