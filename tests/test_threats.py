"""Every weakness that must not be possible is named by a test that proves it is not.

A test's docstring says "Threat N" or "Threats N and M". The numbers are those of the project's list
of weaknesses.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROVEN = (*range(1, 17), 18, 19, *range(21, 32))
_NAMED = re.compile(r"\bThreats?\s((?:\d+(?:,\s|\sand\s)?)+)")


def docstrings_of_tests() -> Iterator[str]:
    """The docstring of every test function."""
    for module in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield ast.get_docstring(node) or ""


def named_in(docstring: str) -> set[int]:
    """The numbers that a docstring names."""
    return {
        int(number)
        for numbers in _NAMED.findall(docstring)
        for number in re.findall(r"\d+", numbers)
    }


@pytest.mark.parametrize("number", PROVEN)
def test_a_test_proves_that_it_is_not_possible(number: int) -> None:
    assert any(number in named_in(docstring) for docstring in docstrings_of_tests())


def test_numbers_are_read_from_docstrings() -> None:
    assert named_in("Threat 7: the answer carries keys.") == {7}
    assert named_in("Threats 1, 2 and 31. Threat 2: extensions.") == {1, 2, 31}
    assert named_in("Threatening 5") == set()
