"""Statements that distributed databases refuse, and that there is another way for.

docs/operate/scaling.md lists what they refuse and still is in our SQL.
"""

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "birthmark_sma"
# Backups are made on PostgreSQL alone, and a row lock does not do that.
TABLES_LOCKED = {"storage/locks.py"}


def files_with(pattern: str) -> set[str]:
    """Return the modules whose text matches a pattern, apart from migrations."""
    return {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        if "migrations" not in file.parts and re.search(pattern, file.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"(?i)\bctid\b", set()),  # CockroachDB has none; Citus and YugabyteDB move rows
        (r"(?i)\bLOCK TABLE\b", TABLES_LOCKED),
        (r"(?i)\binteger\[\]", set()),  # eight bytes wide in CockroachDB
    ],
)
def test_it_is_not_in_our_sql(pattern: str, allowed: set[str]) -> None:
    """Rows are found by their keys, locked one by one, and types are spelled out."""
    assert files_with(pattern) == allowed
