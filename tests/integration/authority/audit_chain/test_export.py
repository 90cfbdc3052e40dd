"""An export is verified without the database that it came from, and by the same code."""

import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
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


def read_members(path: Path) -> dict[str, bytes]:
    """Return the members of an export by name."""
    with zipfile.ZipFile(path) as archive:
        return {each: archive.read(each) for each in archive.namelist()}


def write_members(
    path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> None:
    """Write an export with these members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


def change_lines(path: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a file in an export."""
    members = read_members(path)
    lines = members[name].decode().splitlines(keepends=True)
    members[name] = "".join(change(lines)).encode()
    write_members(path, members.items())


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


VALUES = {"deep": "[" * 100_000, "big": "9" * 30, "endless": "9" * 5_000, "half": '"\\ud800"'}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(
    ("name", "column"), [("export.json", "public_key"), ("audit_checkpoints.jsonl", "number")]
)
def test_values_that_no_program_reads(
    trail: ChainedTrail, tmp_path: Path, name: str, column: str, value: str
) -> None:
    """Deep JSON, numbers that SQLite cannot hold or Python does not read, and half a character."""
    path = tmp_path / "export.zip"
    export(trail, path)

    def change(lines: list[str]) -> list[str]:
        return [json.dumps(json.loads(lines[0]) | {column: "here"}).replace('"here"', value)]

    change_lines(path, name, change)
    with pytest.raises(ConfigurationError, match="damaged"):
        load_export(path, tmp_path)


def is_refused(path: Path) -> bool:
    """Return True. It raises if the export is loaded."""
    with pytest.raises(ConfigurationError, match="damaged"):
        load_export(path, path.parent)
    return True


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["act_subjects.jsonl", "more.jsonl", "../export.json"])
def test_other_members(trail: ChainedTrail, tmp_path: Path, name: str) -> None:
    """Which one of two is read depends on the program, and nobody verifies one of another name."""
    path = tmp_path / "export.zip"
    export(trail, path)
    write_members(path, [*read_members(path).items(), (name, b"")])
    assert is_refused(path)


def test_members_that_are_packed_in_another_way(trail: ChainedTrail, tmp_path: Path) -> None:
    """LZMA can ask for any memory, and an encrypted member for a password."""
    path = tmp_path / "export.zip"
    export(trail, path)
    members = read_members(path)
    directory = b"PK\x01\x02\x14\x03\x14\x00"  # and then the flags of the member
    path.write_bytes(path.read_bytes().replace(directory + b"\0", directory + b"\1"))
    assert is_refused(path)
    write_members(path, members.items(), zipfile.ZIP_LZMA)
    assert is_refused(path)


def test_a_line_that_would_fill_the_memory(trail: ChainedTrail, tmp_path: Path) -> None:
    """A bomb: 65 MiB in 65 KiB."""
    path = tmp_path / "export.zip"
    export(trail, path)
    bomb = b'{"subject": "' + b"0" * 65 * 1024**2
    write_members(path, (read_members(path) | {"act_subjects.jsonl": bomb}).items())
    assert path.stat().st_size < 1024**2
    tracemalloc.start()
    assert is_refused(path)
    assert tracemalloc.get_traced_memory()[1] < 160 * 1024**2
    tracemalloc.stop()


def test_no_export(tmp_path: Path) -> None:
    """A file that is missing, or is something else."""
    (tmp_path / "text").write_text("text")
    for name in ("missing", "text"):
        with pytest.raises(ConfigurationError, match="no export"):
            load_export(tmp_path / name, tmp_path)
