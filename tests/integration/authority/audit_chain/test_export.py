"""An export is verified without the database that it came from, and by the same code."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from birthmark_sma.authority.audit_chain.export import load_export, write_export
from birthmark_sma.authority.audit_chain.keys import find_verifier
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Finding, Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.storage.engine import Database
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """A trail with rows, acts and a checkpoint."""
    trail = ChainedTrail(database, tmp_path)
    trail.validate("aa", 1)
    trail.validate("aa")
    trail.act("one")
    trail.act("several", "caf\u00e9")
    trail.checkpoint()
    return trail


def export(trail: ChainedTrail, path: Path) -> None:
    """Export the trail."""
    with trail.database.read() as connection:
        write_export(connection, find_verifier(connection), path)


def verify_export(path: Path, folder: Path) -> tuple[list[Finding], Verified]:
    """Return what is wrong with an export, and what was verified."""
    folder.mkdir()
    database = load_export(path, folder)
    done = Verified()
    with database.read() as connection:
        found = list(verify(DatabaseReader(connection), None, [], done))
    database.close()
    return found, done


def test_an_export_is_verified(trail: ChainedTrail, tmp_path: Path) -> None:
    """As the database is: the same rows, acts, batches and checkpoints."""
    export(trail, tmp_path / "export.zip")
    found, done = verify_export(tmp_path / "export.zip", tmp_path / "loaded")
    assert found == []
    assert done == trail.verify_and_count()[1]
    assert done.rows == 8


def test_findings_are_those_of_the_database(trail: ChainedTrail, tmp_path: Path) -> None:
    """What was changed before the export."""
    [(first,)] = rows_of(trail.database, "SELECT min(id) FROM validation_history")
    execute(trail.database, f"UPDATE validation_history SET caller = NULL WHERE id = {first}")
    execute(trail.database, f"DELETE FROM validation_history WHERE id = {first} + 1")
    execute(trail.database, "UPDATE administrative_acts SET reason = 'none' WHERE id = 1")
    export(trail, tmp_path / "export.zip")
    found, _ = verify_export(tmp_path / "export.zip", tmp_path / "loaded")
    assert found == trail.verify()
    assert len(found) == 3


def change_lines(path: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a file in an export."""
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each).decode() for each in archive.namelist()}
    files[name] = "".join(change(files[name].splitlines(keepends=True)))
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)


CHANGES: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "deleted": ("validation_history.jsonl", lambda lines: lines[1:]),
    "doubled": ("validation_history.jsonl", lambda lines: [lines[0], *lines]),
    "changed": (
        "administrative_acts.jsonl",
        lambda lines: [lines[0].replace("suspend", "revoke_"), *lines[1:]],
    ),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_changed_export(trail: ChainedTrail, tmp_path: Path, fault: str) -> None:
    """Whoever passes the export on cannot change it either."""
    path = tmp_path / "export.zip"
    export(trail, path)
    change_lines(path, *CHANGES[fault])
    found, _ = verify_export(path, tmp_path / "loaded")
    assert {each.fault for each in found} == {fault}


def test_lines_in_another_order_are_the_same_rows(trail: ChainedTrail, tmp_path: Path) -> None:
    """A table has no order: the ids have."""
    path = tmp_path / "export.zip"
    export(trail, path)
    change_lines(path, "validation_history.jsonl", lambda lines: lines[::-1])
    assert verify_export(path, tmp_path / "loaded")[0] == []


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", json.dumps({"id": "x"}), json.dumps({"writer": 1}), "null"],
)
def test_a_damaged_export(trail: ChainedTrail, tmp_path: Path, line: str) -> None:
    """It is refused in a sentence, and leaves no database open."""
    path = tmp_path / "export.zip"
    export(trail, path)
    change_lines(path, "audit_batches.jsonl", lambda lines: [f"{line}\n", *lines])
    with pytest.raises(ConfigurationError, match="damaged"):
        load_export(path, tmp_path)


def test_no_export(tmp_path: Path) -> None:
    """A file that is missing, or is something else."""
    (tmp_path / "text").write_text("text")
    for name in ("missing", "text"):
        with pytest.raises(ConfigurationError, match="no export"):
            load_export(tmp_path / name, tmp_path)
