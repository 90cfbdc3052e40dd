"""`sma audit`, as an operator and a stranger type it."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from birthmark_sma.storage.engine import Database, open_database
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail
from tests.support.schemas import give_schema


class Audited:
    """A trail in a database, and the commands on it."""

    def __init__(self, database: Database, url: str, folder: Path) -> None:
        self.trail = ChainedTrail(database, folder)
        self.place = Place(folder)
        self._url = url
        self.trail.validate("aa")
        self.trail.act("one")
        self.trail.checkpoint()

    def sma(self, *arguments: str) -> "CompletedProcess[str]":
        """Run a command on it."""
        return self.place.sma("audit", *arguments, settings={"DATABASE_URL": self._url})

    def change_a_row(self) -> str:
        """Change the first row, and return what the command calls it."""
        [(first,)] = rows_of(self.trail.database, "SELECT min(id) FROM validation_history")
        execute(
            self.trail.database, f"UPDATE validation_history SET caller = '' WHERE id = {first}"
        )
        return f"row {first}"


@pytest.fixture
def audited(database_url: str, tmp_path: Path) -> Audited:
    """A small trail on each kind of database."""
    give_schema(database_url)
    return Audited(open_database(database_url), database_url, tmp_path)


def test_verify(audited: Audited) -> None:
    """0 and a summary; after a change, 1 and the row."""
    clean = audited.sma("verify")
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "Verified 4 audit rows and 1 act in 2 batches, 1 checkpoint." in clean.stdout
    assert re.search(r"^Signed until \S+ \S+ UTC, except 0 batches\.$", clean.stdout, re.MULTILINE)
    assert clean.stdout.endswith("All is as it was written.\n")
    changed = audited.change_a_row()
    found = audited.sma("verify")
    assert found.returncode == 1
    assert found.stdout.startswith(f"changed: {changed}\n")
    told = json.loads(audited.sma("verify", "--json").stdout)
    assert told["findings"] == [{"fault": "changed", "what": changed, "detail": ""}]
    assert (told["number"], told["rows"], told["acts"]) == (1, 4, 1)


def test_a_forged_name_writes_no_line(audited: Audited) -> None:
    """Whoever writes into the database must not write the words of this command."""
    name = "x\x1b[2J\nAll is as it was."
    execute(
        audited.trail.database,
        "UPDATE audit_batches SET writer = :name WHERE writer = 'aa'",
        name=name,
    )
    found = audited.sma("verify")
    assert found.returncode == 1
    assert "chain x\\x1b[2J\\nAll is as it was.\n" in found.stdout
    assert "\x1b" not in found.stdout


def test_what_was_kept_elsewhere(audited: Audited, tmp_path: Path) -> None:
    """Checkpoints and the key: a trail that was signed anew does not fit them."""
    key = audited.sma("public-key").stdout.strip()
    kept = tmp_path / "kept.txt"
    kept.write_text(audited.sma("checkpoints").stdout)
    audited.trail.validate("aa")
    audited.trail.checkpoint()
    assert audited.sma("checkpoints", "--since", "2").stdout.count("number ") == 1
    with_both = ("verify", "--checkpoints", str(kept), "--public-key", key)
    assert audited.sma(*with_both).returncode == 0
    assert ", except 0 batches." in audited.sma(*with_both).stdout
    audited.trail.validate("aa")
    assert ", except 1 batch." in audited.sma(*with_both).stdout
    execute(audited.trail.database, "DELETE FROM audit_checkpoints")
    assert "No checkpoint has signed 4 batches." in audited.sma("verify").stdout
    found = audited.sma(*with_both)
    assert found.returncode == 1
    assert "deleted: checkpoint 1 (it was kept elsewhere)" in found.stdout
    other = audited.sma(
        "verify", "--public-key", key.replace("+A", "+B"), "--checkpoints", str(kept)
    )
    assert other.returncode == 1


def test_a_keeper_that_was_interrupted(audited: Audited, tmp_path: Path) -> None:
    """What was cut off is left out, and what is there twice does no harm."""
    audited.trail.validate("aa")
    audited.trail.checkpoint()
    both, kept = audited.sma("checkpoints").stdout, tmp_path / "kept.txt"
    for cut_at in (len(both) - 5, len(both) - 150):
        kept.write_text(both[:cut_at] + both)
        found = audited.sma("verify", "--checkpoints", str(kept))
        assert (found.returncode, "1 checkpoint cut off" in found.stderr) == (0, True)
    kept.write_text(both[:100])
    assert audited.sma("verify", "--checkpoints", str(kept)).returncode == 3


def test_a_stranger(audited: Audited, tmp_path: Path) -> None:
    """Verifies an export in an empty directory, with the public key alone."""
    export = str(tmp_path / "trail.zip")
    assert audited.sma("export", "--output", export).returncode == 0
    key = audited.sma("public-key").stdout.strip()
    stranger = Place(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    verified = stranger.sma("audit", "verify", "--export", export, "--public-key", key)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "Verified 4 audit rows and 1 act in 2 batches, 1 checkpoint." in verified.stdout
    audited.change_a_row()
    assert_refused(audited.sma("export", "--output", export), 3, "does not exist")
    audited.sma("export", "--output", f"{export}.2")
    assert stranger.sma("audit", "verify", "--export", f"{export}.2").returncode == 1


def test_what_cannot_be_read(audited: Audited, tmp_path: Path) -> None:
    """Files that are none, a database that is empty, and no key yet."""
    (tmp_path / "text").write_text("text")
    assert_refused(audited.sma("verify", "--checkpoints", str(tmp_path / "text")), 3, "checkpoints")
    assert_refused(audited.sma("verify", "--export", str(tmp_path / "text")), 3, "no export")
    empty = Place(tmp_path / "empty").sma("audit", "verify")
    assert empty.returncode in {3, 4}
    execute(audited.trail.database, "DELETE FROM audit_keys")
    assert audited.sma("public-key").returncode == 4
