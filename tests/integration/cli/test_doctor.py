"""`sma doctor`, as people and monitors use it."""

import json
import sqlite3
from contextlib import closing

from tests.integration.cli.conftest import Place, assert_refused


def test_all_is_well(place: Place) -> None:
    """Exit code 0, a line for each thing, and no secret among them."""
    looked = place.sma("doctor")
    assert looked.returncode == 0, looked.stdout
    assert looked.stdout.endswith("No fault was found.\n")
    assert looked.stderr == ""
    told = json.loads(place.sma("doctor", "--json").stdout)
    assert told["state"] == "noted"
    assert {"database", "schema", "clock", "disk"} <= {each["name"] for each in told["findings"]}
    passphrase = (place.data_dir / "ca-password").read_text().strip()
    assert passphrase not in looked.stdout


def test_a_warning_is_1(place: Place) -> None:
    (place.data_dir / "sma.db").chmod(0o644)
    looked = place.sma("doctor")
    assert looked.returncode == 1
    assert f"chmod 600 {place.data_dir / 'sma.db'}" in looked.stdout
    assert "\n0 critical, " in looked.stdout


def test_what_is_critical_is_2(place: Place) -> None:
    with closing(sqlite3.connect(place.data_dir / "sma.db")) as file, file:
        file.execute("DELETE FROM key_tables WHERE table_id = 7")
    looked = place.sma("doctor", "--json")
    assert looked.returncode == 2
    told = json.loads(looked.stdout)
    assert told["state"] == "critical"
    [finding] = [each for each in told["findings"] if each["state"] == "critical"]
    assert finding == {
        "state": "critical",
        "name": "key tables",
        "sentence": "2,499 of 2,500 key tables are there",
        "remedy": "Type sma tables populate",
    }


def test_nothing_is_there(empty: Place) -> None:
    """And nothing is made."""
    looked = empty.sma("doctor")
    assert looked.returncode == 2
    assert "Type sma init" in looked.stdout
    assert not empty.data_dir.exists()


def test_settings_that_cannot_be_used_are_3(place: Place) -> None:
    assert_refused(place.sma("doctor", settings={"SMA_PORT": "many"}), 3, "PORT")
