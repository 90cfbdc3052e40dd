"""`sma move`: what it prints and refuses, a kill at any statement, and a forgotten DATABASE_URL."""

import json
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Place, assert_refused
from tests.support.databases.postgres import Postgres, create_database, drop_database
from tests.support.programs.commands import Background, sma
from tests.support.programs.kill_points import die_before_statement
from tests.support.programs.running import query
from tests.support.programs.server import server_environ

SMALL = {"SMA_TABLES": "6", "SMA_KEYS_PER_TABLE": "16", "SMA_CA_KEY_TYPE": "ec-p256"}


@pytest.fixture
def small(tmp_path: Path) -> Place:
    """A small authority with a device."""
    made = Place(tmp_path / "data")
    assert made.sma("init", settings=SMALL).returncode == 0
    assert made.sma("provision", "cam-1").returncode == 0
    return made


def passphrase_of(place: Place) -> str:
    """Return the generated passphrase."""
    return (place.data_dir / "ca-password").read_text().strip()


def test_a_move(small: Place, postgres_url: str) -> None:
    """The proof, the next commands, the new database, and the way back."""
    moved = small.sma("move", settings={"DATABASE_URL": postgres_url})
    assert moved.returncode == 0, moved.stderr
    assert "registered_devices" in moved.stdout
    assert "6 key tables, and the CA's key" in moved.stdout
    assert f'CA_PASSWORD="$(cat {small.data_dir / "ca-password"})"' in moved.stdout
    assert postgres_url not in moved.stdout + moved.stderr
    new = {"DATABASE_URL": postgres_url, "CA_PASSWORD": passphrase_of(small)}
    listed = small.sma("devices", "list", "--json", settings=new)
    assert [each["device_serial"] for each in json.loads(listed.stdout)["devices"]] == ["cam-1"]
    assert listed.stderr == ""
    assert small.sma("provision", "cam-2", settings=new).returncode == 0
    commands: list[tuple[str, ...]] = [
        ("serve", "--port", "0"),
        ("devices", "list"),
        ("provision", "cam-3"),
    ]
    for command in commands:
        refused = small.sma(*command, cwd=small.data_dir)
        assert_refused(refused, 3, "DATABASE_URL is not set", "in PostgreSQL")
    (small.data_dir / "authority.json").unlink()
    for command in (*commands, ("init",)):
        refused = small.sma(*command, cwd=small.data_dir)
        assert_refused(refused, 4, "was moved to PostgreSQL", "Set DATABASE_URL")
    looked = small.sma("doctor")
    assert "was moved to PostgreSQL" in looked.stdout
    assert "Set DATABASE_URL to that database" in looked.stdout
    again = small.sma("move", settings={"DATABASE_URL": postgres_url})
    assert (again.returncode, again.stderr) == (0, "")
    assert "An earlier run" in again.stdout
    asked = small.sma("move", "--undo")
    assert asked.returncode == 2
    undone = small.sma("move", "--undo", "--yes", settings=new)
    assert undone.returncode == 0, undone.stderr
    listed = small.sma("devices", "list", "--json")
    assert [each["device_serial"] for each in json.loads(listed.stdout)["devices"]] == ["cam-1"]


def test_as_json(small: Place, postgres_url: str) -> None:
    """Number and digest of the rows of each table."""
    moved = small.sma("move", "--to", postgres_url, "--json")
    assert moved.returncode == 0
    assert "every user of this machine can read the password in --to" in moved.stderr
    told = json.loads(moved.stdout)
    rows = {each["table"]: each["rows"] for each in told["proof"]["tables"]}
    assert (rows["registered_devices"], rows["key_tables"]) == (1, 6)
    assert told["proof"]["rows"] == sum(rows.values()) == told["rows_copied"]
    assert (told["proof"]["chains_verified"], told["proof"]["trail_findings"]) == (1, 0)


def test_a_trail_that_was_changed_moves_with_a_warning(small: Place, postgres_url: str) -> None:
    """The move does not hide it, and does not depend on it."""
    with closing(sqlite3.connect(small.data_dir / "sma.db", isolation_level=None)) as connection:
        connection.execute("UPDATE administrative_acts SET actor = 'nobody' WHERE id = 1")
    moved = small.sma("move", "--to", postgres_url)
    assert moved.returncode == 0
    assert "before the move: 1 finding. Type: sma audit verify" in moved.stderr


@pytest.mark.parametrize(
    ("arguments", "database_url", "said"),
    [
        ((), None, "The new database is not named"),
        (("--to", "sqlite:///x.db"), None, "to PostgreSQL only"),
        (("--to", "postgresql://x/y"), "postgresql://x/z", "is PostgreSQL already"),
        (("--to", "mysql://x"), None, "neither PostgreSQL"),
        (("--to", "postgresql://127.0.0.1:1/x"), None, "does not answer"),
        (("--undo", "--yes"), None, "was not moved"),
        (("--to", "postgresql://x/y", "--data-dir", "nowhere"), None, "does not exist"),
    ],
)
def test_refusals(
    founded_place: Place, arguments: tuple[str, ...], database_url: str | None, said: str
) -> None:
    """Nothing is marked, so the authority goes on."""
    settings = {} if database_url is None else {"DATABASE_URL": database_url}
    refused = founded_place.sma("move", *arguments, settings=settings)
    assert refused.returncode in {3, 4}
    assert "Traceback" not in refused.stderr
    assert said in refused.stderr
    assert founded_place.sma("devices", "list").returncode == 0


def test_a_move_that_is_killed_at_any_statement(small: Place, postgres_url: str) -> None:
    """Threat 30: each run dies a little later and goes on where the last one ended."""
    environ = server_environ(small.data_dir) | {"DATABASE_URL": postgres_url}
    new = environ | {"CA_PASSWORD": passphrase_of(small)}
    kills, number = 0, 3
    while True:
        killed = partial(die_before_statement, number)
        run = Background("move", environ=environ, cwd=small.data_dir, before=[killed])
        out, error = run.communicate()
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, error
        kills += 1
        for command in ("init", "devices list"):
            refused = sma(*command.split(), environ=new, cwd=small.data_dir)
            assert refused.returncode in {3, 4} or is_complete(postgres_url), refused.stdout
        number += 23
    assert kills > 8
    assert "The authority is moved" in out
    looked = sma("doctor", "--json", environ=new, cwd=small.data_dir)
    found = json.loads(looked.stdout)["findings"]
    critical = {each["name"] for each in found if each["state"] == "critical"}
    assert critical <= {"durability"}, looked.stdout
    assert query(postgres_url, "SELECT count(*) FROM registered_devices") == [(1,)]


def is_complete(url: str) -> bool:
    """Return whether the move was finished, so that the new database is an authority's."""
    progress = query(url, "SELECT to_regclass('move_progress') IS NULL")
    return bool(progress[0][0]) and query(url, "SELECT count(*) FROM authority") == [(1,)]


# --- a database that is not the one of the data directory


def test_a_forgotten_url_creates_no_second_authority(
    empty: Place, postgres_admin_url: str, postgres_url: str
) -> None:
    """An authority on PostgreSQL; then DATABASE_URL is forgotten, or names another database."""
    new = SMALL | {"DATABASE_URL": postgres_url, "CA_PASSWORD": "a passphrase of these tests"}
    assert empty.sma("init", settings=new).returncode == 0
    for command in (("init",), ("serve", "--port", "0"), ("provision", "cam"), ("devices", "list")):
        refused = empty.sma(*command, cwd=empty.data_dir)
        assert_refused(refused, 3, "DATABASE_URL is not set", "last used at 20")
    assert not (empty.data_dir / "sma.db").exists()
    other = create_database(postgres_admin_url, "other_of_directory")
    try:
        refused = empty.sma("init", settings=new | {"DATABASE_URL": other})
        assert_refused(refused, 3, "other_of_directory", "use another --data-dir")
        elsewhere = Place(empty.data_dir.with_name("elsewhere"))
        made = elsewhere.sma("init", settings=new | {"DATABASE_URL": other})
        assert made.returncode == 0, made.stderr
        for name in ("serve", "init"):
            refused = empty.sma(name, settings=new | {"DATABASE_URL": other})
            assert_refused(refused, 3, "This is authority", "But the data directory")
        listed = empty.sma("devices", "list", settings=new | {"DATABASE_URL": other})
        assert listed.returncode == 0
        assert listed.stderr.startswith("WARNING: This is authority")
        (empty.data_dir / "authority.json").unlink()
        for _ in range(2):
            listed = empty.sma("devices", "list", settings=new | {"DATABASE_URL": other})
            assert (listed.returncode, listed.stderr) == (0, "")
    finally:
        drop_database(postgres_admin_url, "other_of_directory")


def test_from_sqlite_to_an_empty_postgresql(small: Place, postgres_url: str) -> None:
    """`sma init` names the move: its cameras would pass nowhere else."""
    new = {"DATABASE_URL": postgres_url, "CA_PASSWORD": "a passphrase of these tests"}
    assert_refused(small.sma("init", settings=new), 3, "type: sma move")
    (small.data_dir / "sma.db").unlink()
    for command in ("init", "serve"):
        assert_refused(small.sma(command), 3, "restore a backup", "last used at 20")


def test_a_database_that_cannot_be_written(small: Place, own_postgres: Postgres) -> None:
    """The error is told, and what to do; once it can be written, the same command goes on."""
    url = own_postgres.create_database("target")
    with_fewer = f"{url}?options=-c%20default_transaction_read_only%3Don"
    refused = small.sma("move", "--to", with_fewer)
    assert refused.returncode == 4
    assert "read-only" in refused.stderr
    assert "The move is not finished" in refused.stderr
    moved = small.sma("move", "--to", url)
    assert moved.returncode == 0, moved.stderr
