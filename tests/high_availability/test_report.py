"""The count after a scenario finds what was lost, doubled and wrong."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.high_availability.load import Load, longest_gap
from tests.high_availability.report import Outcome, table, take_stock
from tests.support.cameras.camera import Camera

KEYS = [bytes([number]) * 48 for number in range(4)]
EXPECTED = ["PASS", "FAIL", "PASS", "PASS"]


@pytest.fixture
def nodes(tmp_path: Path) -> list[str]:
    """Return two databases with the rows of a load in which all went well."""
    names = [tmp_path / "first.db", tmp_path / "second.db"]
    for name in names:
        write(
            name,
            "CREATE TABLE validation_history (encrypted_nuc_hash BLOB, validation_result TEXT)",
        )
        for row in zip(KEYS, EXPECTED, strict=True):
            write(name, "INSERT INTO validation_history VALUES (?, ?)", *row)
        write(name, "INSERT INTO validation_history VALUES (?, ?)", b"before", "FAIL")
    return [f"sqlite:///{name}" for name in names]


def write(name: Path | str, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(str(name).removeprefix("sqlite:///"))) as connection:
        connection.execute(statement, values)
        connection.commit()


@pytest.fixture
def load() -> Load:
    """Return a load that has ended. The last token got no answer."""
    load = Load(["http://127.0.0.1:1"], Camera("camera", bytes(32), {1: bytes(32)}, {}))
    load.expected = dict(zip(KEYS, EXPECTED, strict=True))
    load.acknowledged = dict(zip(KEYS[:3], EXPECTED, strict=False))
    load.statuses.update({"200": 3, "503": 1, "none": 2})
    return load


def test_all_is_well(load: Load, nodes: list[str]) -> None:
    """A row of a token that got no answer is allowed, and so is none."""
    outcome = take_stock("quiet", load, nodes)
    assert outcome == Outcome("quiet", 0.0, 3, 3, 0, 0, 0)
    assert outcome.is_clean
    for node in nodes:
        write(node, "DELETE FROM validation_history WHERE encrypted_nuc_hash = ?", KEYS[3])
    assert take_stock("quiet", load, nodes).is_clean


@pytest.mark.parametrize("node", [0, 1])
def test_a_lost_row_is_found(load: Load, nodes: list[str], node: int) -> None:
    write(nodes[node], "DELETE FROM validation_history WHERE encrypted_nuc_hash = ?", KEYS[0])
    outcome = take_stock("lossy", load, nodes)
    assert (outcome.lost, outcome.is_clean) == (1, False)


def test_a_doubled_row_is_found(load: Load, nodes: list[str]) -> None:
    """Also that of a token without an answer: it was sent once."""
    write(nodes[0], "INSERT INTO validation_history VALUES (?, ?)", KEYS[3], "PASS")
    outcome = take_stock("doubling", load, nodes)
    assert (outcome.doubled, outcome.is_clean) == (1, False)


def test_a_wrong_verdict_is_found(load: Load, nodes: list[str]) -> None:
    """In an answer, and in a row."""
    load.acknowledged[KEYS[0]] = "FAIL"
    write(
        nodes[1],
        "UPDATE validation_history SET validation_result = 'PASS' WHERE encrypted_nuc_hash = ?",
        KEYS[1],
    )
    outcome = take_stock("wrong", load, nodes)
    assert (outcome.wrong, outcome.is_clean) == (2, False)


def test_a_machine_that_stands_still_does_not_count() -> None:
    """The gap from 1 to 8 has 3 seconds of it, and the one from 8 to 13 has 2."""
    moments = [0.0, 1.0, 8.0, 13.0]
    assert longest_gap(moments, []) == 7.0
    assert longest_gap(moments, [(3.0, 6.0)]) == 5.0
    assert longest_gap(moments, [(3.0, 6.0), (7.0, 10.0)]) == 3.0


def test_the_table_adds_up_the_rounds_of_a_scenario() -> None:
    """Rounds of a scenario follow each other."""
    outcomes = [
        Outcome("kill", 3.0, 10, 1, 0, 0, 0),
        Outcome("kill", 5.0, 20, 2, 1, 0, 0),
        Outcome("cut", 7.0, 30, 3, 0, 0, 2),
    ]
    assert table(outcomes).splitlines()[2:] == [
        "| kill | 2 | 4.0 | 5.0 | 30 | 3 | 1 | 0 | 0 |",
        "| cut | 1 | 7.0 | 7.0 | 30 | 3 | 0 | 0 | 2 |",
    ]
