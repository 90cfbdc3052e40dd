"""`sma history`: partitions and pruning, as an operator types them."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import create_secrets
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.engine import Database, open_database
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.audit_rows import append_rows
from tests.support.authorities import rows_of, small_settings
from tests.support.days import current_time, today
from tests.support.programs.server import PASSPHRASE
from tests.support.schemas import give_schema

AGES = (0, 1, 29, 40, 400)


class Aged:
    """A database with rows of several ages, and the commands on it."""

    def __init__(self, place: Place, url: str) -> None:
        give_schema(url)
        self.database = open_database(url)
        self._place = place
        self._settings = {
            "DATABASE_URL": url,
            "CA_PASSWORD": PASSPHRASE,
            "SMA_KEK_FILE": str(place.data_dir / "key-encryption.key"),
        }
        now = current_time()
        record, _ = create_secrets(KekSecret.of(small_settings(place.data_dir, None)), now)
        row = AuditRow(bytes(48), 1, 1, "FAIL", "not_opened", None, now, None)
        with self.database.write() as transaction:
            kek_store.add_kek(transaction, record)
            rows = [row._replace(validated_at=now - timedelta(days=days)) for days in AGES]
            append_rows(transaction, rows)

    def sma(self, *arguments: str, **settings: str) -> Any:
        """Run a command; what it says must be no error."""
        return self._place.sma("history", *arguments, settings=self._settings | settings)

    def rows(self) -> int:
        """How many rows are left."""
        return count(self.database)


def count(database: Database) -> int:
    number: int = rows_of(database, "SELECT count(*) FROM validation_history")[0][0]
    return number


@pytest.fixture
def aged(database_url: str, tmp_path: Path) -> Iterator[Aged]:
    """Rows of several ages, once on each kind of database."""
    aged = Aged(Place(tmp_path), database_url)
    yield aged
    aged.database.close()


def test_prune_deletes_what_is_older(aged: Aged) -> None:
    """First it says what it would delete, then it does; a second time nothing is left to do."""
    looked = aged.sma("prune", "--older-than-days", "30", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert looked.stdout.startswith("Would delete: 2 rows from before ")
    assert aged.rows() == len(AGES)
    pruned = aged.sma("prune", "--older-than-days", "30", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    assert pruned.stdout.startswith("Deleted: 2 rows from before ")
    assert aged.rows() == 3
    assert aged.sma("prune", "--older-than-days", "30").stdout.startswith("Nothing is older than ")


def test_prune_takes_the_setting(aged: Aged) -> None:
    """And a flag beats it, as everywhere."""
    result = aged.sma("prune", "--yes", "--json", SMA_AUDIT_RETENTION_DAYS="100")
    told = json.loads(result.stdout)
    before = today() - timedelta(days=100)
    assert told == {
        "deleted": True,
        "before": f"{before:%Y-%m-%dT%H:%M:%SZ}",
        "partitions": [],
        "rows": 1,
    }
    beaten = aged.sma(
        "prune", "--dry-run", "--json", "--older-than-days", "35", SMA_AUDIT_RETENTION_DAYS="100"
    )
    assert json.loads(beaten.stdout)["rows"] == 1
    assert json.loads(beaten.stdout)["deleted"] is False
    assert aged.rows() == 4


def test_prune_is_careful(aged: Aged) -> None:
    """Without --yes it asks, and where nobody can be asked it deletes nothing."""
    unasked = aged.sma("prune", "--older-than-days", "30")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert_refused(aged.sma("prune", "--yes"), 3, "--older-than-days", "SMA_AUDIT_RETENTION_DAYS")
    for days in ("0", "-1", "99999999"):
        refused = aged.sma("prune", "--yes", "--older-than-days", days)
        assert_refused(refused, 3, "SMA_AUDIT_RETENTION_DAYS cannot be used")
    assert aged.rows() == len(AGES)


def test_partitions(aged: Aged) -> None:
    """A table on PostgreSQL; on SQLite one sentence."""
    shown = aged.sma("partitions")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(aged.sma("partitions", "--json").stdout)
    if aged.database.dialect_name == "sqlite":
        assert shown.stdout == "SQLite has no partitions. The audit log is one table of 5 rows.\n"
        assert told == {"rows": 5, "partitions": []}
        return
    heading, first, *_ = shown.stdout.splitlines()
    assert heading.split() == [
        "PARTITION",
        "FROM",
        "(UTC)",
        "TO",
        "(UTC)",
        "ROWS,",
        "ABOUT",
        "SIZE",
    ]
    tomorrow = current_time() + timedelta(days=1)
    assert first.split()[:3] == [
        f"validation_history_{current_time():%Y%m%d}",
        f"{current_time():%Y-%m-%d}",
        f"{tomorrow:%Y-%m-%d}",
    ]
    assert "any other day" in shown.stdout
    partitions = {each["name"]: each for each in told["partitions"]}
    assert len(partitions) == 9
    assert partitions["validation_history_unforeseen"]["from"] is None
    assert all(each["bytes"] > 0 and each["rows_estimate"] >= 0 for each in partitions.values())


def test_there_must_be_a_database(tmp_path: Path) -> None:
    """No empty file is made for a question."""
    place = Place(tmp_path / "nowhere")
    for command in (["partitions"], ["prune", "--older-than-days", "1", "--yes"]):
        assert place.sma("history", *command).returncode == 4 or not place.data_dir.exists()
    assert not place.data_dir.exists()
